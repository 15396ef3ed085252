"""Columns to slice by: they travel to the texts they belong to, and decide nothing."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetune.data.config import DataConfig
from fleetune.data.dataset import Dataset
from fleetune.data.prepare import prepare
from fleetune.data.slices import EMPTY, slice_value
from fleetune.errors import DataError

ROWS = [
    {
        "text": f"text {n} {'good' if n % 2 else 'bad'}",
        "label": "ab"[n % 2],
        "source": ("web", "mail", "")[n % 3],
        "n": n,
    }
    for n in range(60)
]


def source_of(text: str) -> str:
    """Returns the source that the row with this text has."""
    return ("web", "mail", EMPTY)[int(text.split()[1]) % 3]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        import pandas as pd

        pd.DataFrame(rows).to_parquet(path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return name


def dataset_of(folder: Path, **settings: Any) -> Dataset:
    return prepare(DataConfig.model_validate(settings), folder).dataset


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_each_text_keeps_its_own_value_through_bad_rows_samples_and_splits(tmp_path: Path, suffix: str) -> None:
    bad: list[dict[str, Any]] = [
        {"text": "text 1 twice", "label": "c", "source": "nowhere", "n": 1},
        {**ROWS[0], "text": " "},
    ]
    name = write(tmp_path, f"file.{suffix}", [ROWS[0], *bad, *ROWS[1:], {**ROWS[5], "label": "b"}])
    made = dataset_of(
        tmp_path, path=name, slices=["source"], labels=["a", "b"], max_bad_rows=2, sample=0.7, where={"n": "< 55"}
    )
    assert len(made) < 50 and list(made.slices) == ["source"]
    assert made.slices["source"] == [source_of(text) for text in made.texts]
    assert set(made.slices["source"]) == {"web", "mail", EMPTY}


def test_texts_left_out_for_leaks_and_texts_without_labels_take_their_values_with_them(tmp_path: Path) -> None:
    train = write(tmp_path, "train.csv", ROWS[:40])
    test = write(tmp_path, "test.csv", [ROWS[3], *ROWS[40:]])
    made = dataset_of(tmp_path, train=train, test=test, slices=["source"], leaks="drop")
    assert made.slices["source"] == [source_of(text) for text in made.texts]
    bare = write(tmp_path, "bare.csv", [{"text": row["text"], "source": row["source"]} for row in ROWS[40:]])
    unlabelled = dataset_of(tmp_path, train=train, test=bare, slices=["source"])
    assert len(unlabelled.splits["test"]) == 20
    assert unlabelled.slices["source"] == [source_of(text) for text in unlabelled.texts]


def test_slices_change_nothing_that_training_sees(tmp_path: Path) -> None:
    name = write(tmp_path, "file.csv", ROWS)
    plain, sliced = dataset_of(tmp_path, path=name), dataset_of(tmp_path, path=name, slices=["source", "label"])
    assert plain.content_hash() == sliced.content_hash() and plain.slices == {}
    assert sliced.slices["label"] == [sliced.label_names[label] for label in sliced.labels]


def test_a_column_that_is_absent_or_has_too_many_values_is_refused(tmp_path: Path) -> None:
    name = write(tmp_path, "file.csv", ROWS)
    with pytest.raises(DataError, match=r"has no column 'sorce'; did you mean 'source'\?"):
        dataset_of(tmp_path, path=name, slices=["sorce"])
    with pytest.raises(DataError, match="column 'n' has 60 different values, such as '0'; at most 50 make slices"):
        dataset_of(tmp_path, path=name, slices=["source", "n"])
    fifty = write(tmp_path, "fifty.csv", [{**row, "n": row["n"] % 50} for row in ROWS])
    assert len(set(dataset_of(tmp_path, path=fifty, slices=["n"]).slices["n"])) == 50
    with pytest.raises(ValueError, match="listed twice"):
        DataConfig.model_validate({"path": name, "slices": ["n", "n"]})


@pytest.mark.parametrize(
    ("cell", "name"),
    [(None, EMPTY), (math.nan, EMPTY), ("", EMPTY), ("  ", EMPTY), (" a ", "a"), (0, "0"), (True, "true"), (1.5, "1.5"),
     (["b", 1], '["b", 1]'), (b"x", "b'x'"), ("\ud800", "\\ud800")],
)  # fmt: skip
def test_a_cell_is_the_name_of_its_slice(cell: Any, name: str) -> None:
    assert slice_value(cell) == name


@given(st.text() | st.integers() | st.floats() | st.none() | st.booleans())
def test_every_cell_gives_a_name_that_can_be_written(cell: Any) -> None:
    assert slice_value(cell) and slice_value(cell).encode("utf-8")
