"""Test texts without labels, as published test sets have them: they are predicted and never scored."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from fleetune.data.config import DataConfig
from fleetune.data.dataset import Dataset, SplitName, absent_label
from fleetune.data.examples import Examples
from fleetune.data.slices import joined_slices
from fleetune.data.table import Cell, Table

KEPT_BACK = ("-1", "-1.0")
"""What published test sets have in place of a label."""


def take_unlabelled(tables: dict[SplitName, list[Table]], config: DataConfig) -> list[Table]:
    """Takes the tables of test whose texts all lack a label out of `tables`, and returns them.

    A label is lacking where its cell is empty, or -1 and -1 is no label of the other splits.
    """
    if "test" not in tables:
        return []
    others = [table for split, group in tables.items() if split != "test" for table in group]
    known = {_written(cell) for table in others for cell in _label_cells(table, config)}
    lacking = {"", *(value for value in KEPT_BACK if value not in known)}
    test = tables.pop("test")
    for table in test:
        if table.lines and all(_written(cell) in lacking for cell in _label_cells(table, config)):
            table.labelled = False
    if labelled := [table for table in test if table.labelled]:
        tables["test"] = labelled
    return [table for table in test if not table.labelled]


def _label_cells(table: Table, config: DataConfig) -> list[Cell]:
    return [cell for name in config.label_columns for cell in table.columns.get(name, [])] if table.labelled else []


def _written(cell: Cell) -> str:
    absent = cell is None or (isinstance(cell, float) and math.isnan(cell))
    return "" if absent else str(cell).strip()


def with_unlabelled(dataset: Dataset, sources: list[Examples]) -> Dataset:
    """Returns the data set with the texts of `sources` as its test split, each with `absent_label` for a label."""
    texts = [text for source in sources for text in source.texts]
    if not texts:
        return dataset
    absent = np.full((len(texts), *dataset.labels.shape[1:]), absent_label(dataset.labels), dtype=dataset.labels.dtype)
    files = np.repeat(np.arange(len(sources)), [len(source.texts) for source in sources]) + len(dataset.sources)
    lines = [line for source in sources for line in source.lines]
    return replace(
        dataset,
        texts=[*dataset.texts, *texts],
        pairs=None if dataset.pairs is None else [*dataset.pairs, *(pair for one in sources for pair in one.pairs)],
        labels=np.concatenate([dataset.labels, absent]),
        splits={**dataset.splits, "test": np.arange(len(dataset), len(dataset) + len(texts), dtype=np.int64)},
        files=np.concatenate([dataset.files, files]).astype(np.int64),
        lines=np.concatenate([dataset.lines, lines]).astype(np.int64),
        sources=[*dataset.sources, *(source.source for source in sources)],
        slices=joined_slices([dataset.slices, *(source.slices for source in sources)]),
    )


def unlabelled_warning(number: int) -> str:
    """Returns what a reader should know of a test split without labels."""
    return (
        f"the {number:,} texts of test have no labels: each trial's logits of them are in its predictions.parquet, "
        "and no score is claimed on them"
    )
