"""Test texts without labels: found in every form, kept apart, and never taken for something to score by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetune.data.config import DataConfig
from fleetune.data.prepare import Prepared, prepare
from fleetune.errors import DataError
from fleetune.lab.predictions import read_predictions, write_predictions

TRAIN = [{"text": f"text {n} {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
TEST = [{"text": f"unseen {n}"} for n in range(7)]


def written(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        import pandas as pd

        pd.DataFrame(rows).to_parquet(path)
    else:
        lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return name


def read(folder: Path, test: list[dict[str, Any]], suffix: str = "csv", train: Any = None, **settings: Any) -> Prepared:
    names = {"train": written(folder, f"train.{suffix}", TRAIN if train is None else train),
             "test": written(folder, f"test.{suffix}", test)}  # fmt: skip
    return prepare(DataConfig.model_validate({**names, **settings}), folder)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_test_file_without_a_column_of_labels(tmp_path: Path, suffix: str) -> None:
    result = read(tmp_path, TEST, suffix if suffix != "tsv" else "csv")
    dataset, audit = result.dataset, result.audit
    assert [dataset.texts[index] for index in dataset.splits["test"]] == [row["text"] for row in TEST]
    assert (audit.train, audit.validation, audit.test, audit.unscored) == (36, 4, 7, 7)
    assert audit.accepted == audit.train + audit.validation + audit.test == audit.records
    assert set(audit.class_counts) == {"train", "validation"}
    assert dataset.place(int(dataset.splits["test"][0])).startswith("test.")
    assert not result.quarantine


@pytest.mark.parametrize("cell", ["", "-1", " ", "-1.0"])
def test_a_test_file_whose_labels_are_kept_back(tmp_path: Path, cell: str) -> None:
    assert read(tmp_path, [{**row, "label": cell} for row in TEST]).audit.unscored == 7


def test_minus_one_is_a_label_where_training_has_it(tmp_path: Path) -> None:
    train = [{**row, "label": "-1" if row["label"] == "0" else "1"} for row in TRAIN]
    result = read(tmp_path, [{**row, "label": "-1"} for row in TEST], train=train)
    assert result.audit.unscored == 0 and result.audit.class_counts["test"] == {"-1": 7, "1": 0}


def test_a_label_that_some_have_is_missing_in_the_others(tmp_path: Path) -> None:
    some = [{**row, "label": "1" if number else ""} for number, row in enumerate(TEST)]
    with pytest.raises(DataError, match="missing label"):
        read(tmp_path, some)
    result = read(tmp_path, some, max_bad_rows=1)
    assert (result.audit.test, result.audit.unscored) == (6, 0)


def test_other_splits_and_half_of_the_columns_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "bare.csv", TEST)
    written(tmp_path, "train.csv", TRAIN)
    for names in ({"train": "bare.csv"}, {"train": "train.csv", "validation": "bare.csv"}):
        with pytest.raises(DataError, match="has no column 'label'"):
            prepare(DataConfig.model_validate(names), tmp_path)
    flags = [{"text": row["text"], "joy": n % 2, "fear": n % 3 // 2} for n, row in enumerate(TRAIN)]
    half = [{**row, "joy": 1} for row in TEST]
    with pytest.raises(DataError, match="has no column 'fear'"):
        read(tmp_path, half, train=flags, label=["joy", "fear"])


def test_bad_texts_leaks_and_where_of_an_unlabelled_test(tmp_path: Path) -> None:
    rows = [{**row, "kind": "a" if number else "b"} for number, row in enumerate(TEST)]
    rows += [{"text": "", "kind": "a"}, {"text": TRAIN[0]["text"], "kind": "a"}]
    train = [{**row, "kind": "a"} for row in TRAIN]
    result = read(tmp_path, rows, train=train, max_bad_rows=1, where={"kind": "a"})
    assert (result.audit.test, result.audit.filtered, result.audit.leaks) == (7, 1, 0)
    assert [(bad.file, bad.reason) for bad in result.quarantine] == [("test.csv", "empty text")]
    with pytest.raises(DataError, match=r"test\.csv:9: empty text"):
        read(tmp_path, rows, train=train, where={"kind": "a"})


@pytest.mark.parametrize("multi_label", [False, True])
def test_predictions_hold_logits_and_no_labels(tmp_path: Path, multi_label: bool) -> None:
    if multi_label:
        flags = [{"text": row["text"], "joy": n % 2, "fear": n % 3 // 2} for n, row in enumerate(TRAIN)]
        dataset = read(tmp_path, TEST, train=flags, label=["joy", "fear"]).dataset
    else:
        dataset = read(tmp_path, TEST).dataset
    assert dataset.multi_label == multi_label
    rng = np.random.default_rng(0)
    logits: Any = {
        split: rng.normal(size=(len(dataset.splits[split]), 2)).astype(np.float32) for split in ("validation", "test")
    }
    write_predictions(tmp_path / "p.parquet", dataset, logits)
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pandas()
    label = "label_1" if multi_label else "label"
    assert table[table["split"] == "test"][label].isna().all() and len(table) == 11
    assert table[table["split"] == "validation"][label].notna().all()
    read_back = read_predictions(tmp_path / "p.parquet")
    known, absent = read_back["validation"][0], read_back["test"][0]
    assert (known == dataset.labels[dataset.splits["validation"]]).all() and known.dtype == dataset.labels.dtype
    assert (absent == (255 if multi_label else -1)).all()
    assert (read_back["test"][1] == logits["test"]).all()
