"""What a run holds in memory does not grow with the number of trials, and hardly with that of held-out texts."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from fleetune.compare.decisions import mean_of
from fleetune.compare.resampling import draws_of, kept_draws, resampled
from fleetune.compare.result import TrialResult
from fleetune.compare.summary import compare
from fleetune.data.csv_reader import CsvText, Dialect
from fleetune.data.dataset import Dataset
from fleetune.data.tokens import _write_arrays
from fleetune.data.writing import ROWS_IN_GROUP
from fleetune.engine import logits as logits_module
from fleetune.engine.events import Finished
from fleetune.engine.fleet import Fleet
from fleetune.engine.forecast import order_bytes, text_bytes
from fleetune.engine.generation import FolderCheckpoints
from fleetune.engine.logits import KeptLogits
from fleetune.lab import predictions as predictions_module
from fleetune.lab.predictions import KeptPredictions, read_predictions, write_predictions
from tests.tiny import mixed_specs, random_data, tiny_backbone
from tests.unit.synthetic_runs import trial

TEXTS, LABELS = 20_000, 4


@contextmanager
def peak_below(most_bytes: int) -> Iterator[None]:
    """Ends the block in an error if more than `most_bytes` were allocated in it at a time."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most_bytes, f"{peak:,} bytes at the peak, {most_bytes:,} allowed"


def held_out(texts: int = TEXTS, labels: int = LABELS, multi_label: bool = False) -> Dataset:
    """A data set whose texts are all validation or test; the words do not matter here."""
    random = np.random.default_rng(0)
    values: Any = random.integers(0, labels, texts)
    if multi_label:
        values = random.integers(0, 2, (texts, labels)).astype(np.uint8)
    splits: Any = {"train": np.arange(0), "validation": np.arange(texts // 4), "test": np.arange(texts // 4, texts)}
    names = [f"label {number}" for number in range(labels)]
    nothing = np.zeros(texts, dtype=np.int64)
    return Dataset("data", [""] * texts, None, names, values, splits, nothing, nothing, ["file"])


def some_logits(dataset: Dataset, seed: int) -> dict[Any, Any]:
    random = np.random.default_rng(seed)
    return {
        split: random.normal(size=(len(dataset.splits[split]), dataset.num_labels)).astype(np.float32)
        for split in ("validation", "test")
    }


def test_logits_of_many_texts_lie_in_a_file_that_leaves_nothing_behind(tmp_path: Path):
    texts, width = 300_000, 8
    order = np.random.default_rng(0).permutation(texts)
    with peak_below(texts * width * 4 // 3):
        kept = KeptLogits(texts, width, tmp_path)
        for rows in np.array_split(order, 300):
            kept.put(rows, (rows[:, None] + np.arange(width) / 16).astype(np.float32))
        values = kept.array()
        for start in range(0, texts, 1000):
            wanted = np.arange(start, start + 1000)[:, None] + np.arange(width) / 16
            assert np.array_equal(values[start : start + 1000], wanted.astype(np.float32))
    del kept
    assert values[texts - 1, 0] == texts - 1, "an array must outlive what it came from"
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = KeptLogits(300_000, 2, tmp_path)
    monkeypatch.setattr("os.pwrite", lambda handle, data, place: len(data) - 1)
    with pytest.raises(OSError, match="No space left"):
        kept.put(np.arange(2), np.zeros((2, 2), np.float32))


def test_what_the_system_takes_in_parts_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept, write = KeptLogits(300_000, 3, tmp_path), os.pwrite
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", lambda handle, data, place: write(handle, data[:5], place))
        kept.put(np.array([7, 299_999]), values)
    assert np.array_equal(kept.array()[[7, 299_999]], values)


def test_where_logits_are_kept_changes_no_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def ends(folder: Path) -> dict[str, Finished]:
        fleet = Fleet(
            tiny_backbone(precision="fp32"), mixed_specs("bert", 3)[:3], random_data(), FolderCheckpoints(folder)
        )
        return {event.trial: event for event in fleet.train() if isinstance(event, Finished)}

    in_memory = ends(tmp_path / "memory")
    monkeypatch.setattr(logits_module, "MOST_BYTES_IN_MEMORY", 0)
    # Five passes a round, so that there are several.
    monkeypatch.setattr("fleetune.engine.evaluation.PASSES_AT_ONCE", 5)
    monkeypatch.setattr("fleetune.engine.evaluation.tokens_in_one_pass", lambda: 24)
    few_a_pass = ends(tmp_path / "files")
    monkeypatch.setattr(logits_module, "MOST_BYTES_IN_MEMORY", 1 << 20)
    monkeypatch.setattr("fleetune.engine.evaluation.PASSES_AT_ONCE", 512)
    assert in_memory.keys() == few_a_pass.keys()
    for name, end in ends(tmp_path / "few").items():
        for split in ("validation", "test"):
            assert end.predictions[split].tobytes() == few_a_pass[name].predictions[split].tobytes()
            assert np.allclose(in_memory[name].predictions[split], end.predictions[split], atol=1e-5)
    assert not [path for path in (tmp_path / "files").rglob("*") if "logits" in path.name]


@pytest.mark.parametrize("multi_label", [False, True])
def test_predictions_are_written_in_groups_of_rows(tmp_path: Path, multi_label: bool):
    dataset = held_out(8 * ROWS_IN_GROUP, multi_label=multi_label)
    logits = some_logits(dataset, 1)
    size = sum(values.nbytes for values in logits.values())
    # What is imported at the first array is not to be counted.
    write_predictions(tmp_path / "b.parquet", dataset, logits)
    with peak_below(size * 3 // 4):
        write_predictions(tmp_path / "a.parquet", dataset, logits)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]
    facts = pyarrow.parquet.read_metadata(tmp_path / "a.parquet")
    rows = [facts.row_group(number).num_rows for number in range(facts.num_row_groups)]
    assert sum(rows) == len(dataset) and max(rows) <= ROWS_IN_GROUP
    for split, (labels, values) in read_predictions(tmp_path / "a.parquet").items():
        assert values.tobytes() == logits[split].tobytes()
        assert np.array_equal(labels, dataset.labels[dataset.splits[split]])  # type: ignore[index]


def test_rows_of_splits_that_lie_apart_are_put_together(tmp_path: Path):
    dataset = held_out(40)
    write_predictions(tmp_path / "a.parquet", dataset, some_logits(dataset, 1))
    whole = read_predictions(tmp_path / "a.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    mixed = np.random.default_rng(0).permutation(40)
    pyarrow.parquet.write_table(table.take(mixed), tmp_path / "mixed.parquet")
    for split, (labels, values) in read_predictions(tmp_path / "mixed.parquet").items():
        own = mixed[np.isin(mixed, dataset.splits[split])]  # type: ignore[index]
        places = own - dataset.splits[split][0]  # type: ignore[index]
        assert np.array_equal(values, whole[split][1][places]) and np.array_equal(labels, whole[split][0][places])


def stored_trials(folder: Path, trials: int, monkeypatch: pytest.MonkeyPatch, most_bytes: int) -> list[TrialResult]:
    """Trials whose predictions lie in files, and of which about `most_bytes` may be in memory."""
    monkeypatch.setattr(predictions_module, "MOST_BYTES_KEPT", most_bytes)
    dataset, kept = held_out(), KeptPredictions()
    made = []
    for seed in range(trials):
        path = folder / f"{seed}.parquet"
        if not path.exists():
            write_predictions(path, dataset, some_logits(dataset, seed))
        kind = ("lora", "ia3")[seed % 2]
        found = kept.of(path, "tweets")
        made.append(trial(kind, seed // 2, dataset.label_names, evaluations=1, predictions=found))
    return made


def test_many_trials_are_compared_in_the_memory_of_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trials = 24
    all_logits = trials * TEXTS * LABELS * 4
    stored_trials(tmp_path, trials, monkeypatch, all_logits)
    most = TEXTS * LABELS * 4
    with peak_below(all_logits // 2):
        few = stored_trials(tmp_path, trials, monkeypatch, most)
        looked_at = [float(one.predictions["test"][1].sum()) for one in few for _ in range(2)]
    everything = stored_trials(tmp_path, trials, monkeypatch, all_logits)
    assert looked_at == [float(one.predictions["test"][1].sum()) for one in everything for _ in range(2)]
    assert few[0].labels("test") is few[-1].labels("test"), "labels of the same texts lie in memory once"
    assert not len(few[0].labels("train")) and "train" not in few[0].predictions


def test_where_predictions_lie_changes_no_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stored = stored_trials(tmp_path, 4, monkeypatch, 1)
    plain = stored_trials(tmp_path, 4, monkeypatch, 1 << 30)
    assert compare(stored).to_json() == compare(plain).to_json()


@pytest.mark.parametrize("metric", ["f1_macro", "accuracy", "f1_weighted", "matthews", "log_loss", "ece"])
def test_draws_for_a_few_trials_at_a_time_are_the_same(metric: str, monkeypatch: pytest.MonkeyPatch):
    trials = [trial("lora", seed, ["a", "b", "c"], evaluations=1) for seed in range(3)]
    together = resampled(trials, "test", metric, 40)
    monkeypatch.setattr("fleetune.compare.resampling.MOST_BYTES", 1)
    monkeypatch.setattr("fleetune.compare.resampling.MANY_TEXTS", 1)
    apart = resampled(trials, "test", metric, 40)
    assert np.array_equal(together, apart) and np.isfinite(apart).all()


def test_draws_are_kept_in_a_byte_a_text():
    kept, fresh = kept_draws(5_000, 30), list(draws_of(5_000, 30))
    assert sum(block.nbytes for block in kept.blocks) == 5_000 * 30
    part = np.arange(0, 5_000, 7)
    assert all(np.array_equal(a, b) for a, b in zip(kept, fresh, strict=True))
    assert all(np.array_equal(a, b[:, part]) for a, b in zip(kept.of(part), fresh, strict=True))


@pytest.mark.parametrize("make", [np.float64, np.bool_])
def test_a_mean_of_arrays_is_that_of_numpy(make: Callable[..., Any]):
    arrays = [make(np.random.default_rng(seed).random((300, 3)) - 0.3 * (seed % 2)) for seed in range(11)]
    assert np.array_equal(mean_of(iter(arrays)), np.mean(arrays, axis=0))


def test_token_ids_are_never_in_memory_together(tmp_path: Path):
    parts, size = 200, 20_000

    def made() -> Iterator[dict[str, Any]]:
        for number in range(parts):
            ids = np.full(size, number, dtype=np.int32)
            lengths = np.full(size // 100, 100)
            yield {"input_ids": ids, "offsets": lengths, "full_lengths": lengths}

    with peak_below(parts * size * 4 // 2):
        _write_arrays(made(), tmp_path)
    ids = np.load(tmp_path / "input_ids.npy", mmap_mode="r")
    assert ids.shape == (parts * size,) and (ids[::size] == np.arange(parts)).all()
    assert np.load(tmp_path / "offsets.npy")[-1] == len(ids)


@pytest.mark.parametrize("quoted", [False, True])
def test_records_of_a_csv_file_come_one_by_one(quoted: bool):
    rows = "".join(f'"some words, and {number}",yes\n' if quoted else f"some words and {number},yes\n" for number in
                   range(40_000))  # fmt: skip
    text = "text,label\n" + rows
    with peak_below(len(text) * 2):
        count = sum(not record.problem for record in CsvText(text, Dialect()).records(1, ["yes"]))
    assert count == 40_000


def test_a_forecast_counts_what_grows_with_texts():
    few, many = random_data(train=100), random_data(train=10_000)
    assert order_bytes(many) == 8 * 10_000
    tokens = len(many.tokens.input_ids) - len(few.tokens.input_ids)
    assert text_bytes(many, 2) - text_bytes(few, 2) >= 4 * tokens
    assert text_bytes(few, 50) - text_bytes(few, 2) >= 12 * 48 * 8
