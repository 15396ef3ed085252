"""A trial's logits as a Parquet file, whole or not there at all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.compare.stored import StoredPredictions
from fleetune.data.dataset import SPLITS, Dataset, SplitName, absent_label, are_known
from fleetune.data.writing import make_folder, runs, write_row_groups
from fleetune.errors import RunError

Labels = NDArray[Any]
Logits = NDArray[np.float32]
Predictions = dict[str, tuple[Labels, Logits]]

MOST_BYTES_KEPT = 256 << 20
"""Of logits read from a run's files; those that were not asked for longest are read again."""


def write_predictions(path: Path, dataset: Dataset, logits: Mapping[SplitName, Logits]) -> None:
    """Writes one row a text: `split`, `index`, the label (`label`, or one 0/1 `label_<i>` each), one `logit_<i>` each.

    A label that is not known is null. Logits are looked at a group of rows at a time.

    Args:
        path: The file.
        dataset: Gives labels and the indices of each split.
        logits: `(texts of the split, num_labels)` by split, in the order of the split's indices.

    Raises:
        FileNotFoundError: If more is missing than the trial's folder and that of all trials.
    """
    make_folder(path.parent, above=1)
    write_row_groups(path, _schema(dataset), _groups(dataset, logits))


def _groups(dataset: Dataset, logits: Mapping[SplitName, Logits]) -> Iterator[list[Any]]:
    for split in (name for name in SPLITS if name in logits):
        done = 0
        for indices in runs(dataset.splits[split]):
            yield _columns_of(dataset, split, indices, logits[split][done : done + len(indices)])
            done += len(indices)


def _columns_of(dataset: Dataset, split: SplitName, indices: NDArray[np.int64], logits: Logits) -> list[Any]:
    """Returns the columns of some rows of one split."""
    import pyarrow

    labels = dataset.labels[indices]
    by_column = [labels[:, i] for i in range(labels.shape[1])] if labels.ndim == 2 else [labels]
    absent = absent_label(labels)
    name = pyarrow.DictionaryArray.from_arrays(np.zeros(len(indices), dtype=np.int32), [split])
    return [
        name,
        pyarrow.array(indices),
        *(pyarrow.array(values, mask=values == absent) for values in by_column),
        *(pyarrow.array(logits[:, i].astype(np.float32)) for i in range(dataset.num_labels)),
    ]


def _schema(dataset: Dataset) -> Any:
    import pyarrow

    kind = pyarrow.from_numpy_dtype(dataset.labels.dtype)
    labels = [f"label_{i}" for i in range(dataset.labels.shape[1])] if dataset.multi_label else ["label"]
    return pyarrow.schema(
        [
            ("split", pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
            ("index", pyarrow.int64()),
            *((name, kind) for name in labels),
            *((f"logit_{i}", pyarrow.float32()) for i in range(dataset.num_labels)),
        ]
    )


def read_predictions(path: Path) -> Predictions:
    """Returns labels and logits by split, as they were written; a split without labels has `absent_label` each.

    Raises:
        RunError: If the file is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, memory_map=True, read_dictionary=["split"])
    except (pyarrow.ArrowException, OSError) as error:
        raise RunError(
            f"{path} cannot be read ({str(error).splitlines()[0]}).\nRun the recipe again to make it"
        ) from None
    logits: Any = _side_by_side(table, "logit_", 0.0)
    several = any(name.startswith("label_") for name in table.column_names)
    labels = _side_by_side(table, "label_", 255) if several else table["label"].fill_null(-1).to_numpy()
    return {name: (labels[rows], logits[rows]) for name, rows in rows_by_split(table["split"])}


def _side_by_side(table: Any, prefix: str, absent: float) -> NDArray[Any]:
    """Returns the columns called `prefix` and a number as one array `(rows, columns)`, in order of their number."""
    names = sorted(
        (name for name in table.column_names if name.startswith(prefix)), key=lambda n: int(n[len(prefix) :])
    )
    return np.stack([table[name].fill_null(absent).to_numpy() for name in names], axis=1)


def rows_by_split(column: Any) -> list[tuple[str, slice | NDArray[np.int64]]]:
    """Returns which rows each split has, in order of its first row; a slice where they lie side by side.

    Args:
        column: Of names, as a dictionary.
    """
    whole = column.unify_dictionaries().combine_chunks()
    codes, names = np.asarray(whole.indices), whole.dictionary.to_pylist()
    present, firsts = np.unique(codes, return_index=True)
    found: list[tuple[str, slice | NDArray[np.int64]]] = []
    for code in present[np.argsort(firsts)].tolist():
        rows = np.flatnonzero(codes == code)
        first, last = int(rows[0]), int(rows[-1])
        found.append((str(names[code]), slice(first, last + 1) if last - first + 1 == len(rows) else rows))
    return found


class KeptPredictions:
    """The predictions of a run's trials, read from their files; of many large ones only the last few stay in memory."""

    def __init__(self) -> None:
        self._logits: OrderedDict[Path, dict[str, Logits]] = OrderedDict()
        self._labels: dict[tuple[str, str], Labels] = {}

    def of(self, path: Path, data: str) -> StoredPredictions:
        """Returns the predictions in a trial's file on those splits whose labels are known.

        Args:
            path: The file.
            data: Name of the trial's data; trials on the same have their labels in common.

        Raises:
            RunError: If the file is damaged.
        """
        read = {split: pair for split, pair in read_predictions(path).items() if are_known(pair[0])}
        labels = {split: self._shared(data, split, own) for split, (own, _) in read.items()}
        self._keep(path, {split: logits for split, (_, logits) in read.items()})
        return StoredPredictions(labels, partial(self._read, path))

    def _read(self, path: Path, split: str) -> Logits:
        if path not in self._logits:
            self._keep(path, {name: logits for name, (_, logits) in read_predictions(path).items()})
        self._logits.move_to_end(path)
        return self._logits[path][split]

    def _keep(self, path: Path, logits: dict[str, Logits]) -> None:
        self._logits[path] = logits
        held = sum(one.nbytes for each in self._logits.values() for one in each.values())
        while held > MOST_BYTES_KEPT and len(self._logits) > 1:
            _, oldest = self._logits.popitem(last=False)
            held -= sum(one.nbytes for one in oldest.values())

    def _shared(self, data: str, split: str, labels: Labels) -> Labels:
        """Returns the labels that another trial on the same data has, where they are the same."""
        known = self._labels.setdefault((data, split), labels)
        return known if known.dtype == labels.dtype and np.array_equal(known, labels) else labels
