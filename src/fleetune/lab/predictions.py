"""A trial's logits as a Parquet file, whole or not there at all."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.data.dataset import SPLITS, Dataset, SplitName, absent_label
from fleetune.engine.checkpoint import write_whole
from fleetune.errors import RunError

Predictions = dict[str, tuple[NDArray[Any], NDArray[np.float32]]]


def write_predictions(path: Path, dataset: Dataset, logits: Mapping[SplitName, NDArray[np.float32]]) -> None:
    """Writes one row a text: `split`, `index`, the label (`label`, or one 0/1 `label_<i>` each), one `logit_<i>` each.

    A label that is not known is null.

    Args:
        path: The file.
        dataset: Gives labels and the indices of each split.
        logits: `(texts of the split, num_labels)` by split, in the order of the split's indices.
    """
    import pyarrow
    import pyarrow.parquet

    splits = [split for split in SPLITS if split in logits]
    indices = np.concatenate([dataset.splits[split] for split in splits] or [np.empty(0, dtype=np.int64)])
    values = np.concatenate([logits[split] for split in splits] or [np.empty((0, dataset.num_labels), np.float32)])
    names = [split for split in splits for _ in range(len(dataset.splits[split]))]
    labels = dataset.labels[indices]
    columns: dict[str, Any] = {"split": pyarrow.array(names, pyarrow.string()).dictionary_encode(), "index": indices}
    by_column = {f"label_{i}": labels[:, i] for i in range(labels.shape[1])} if labels.ndim == 2 else {"label": labels}
    absent = absent_label(labels)
    columns |= {name: pyarrow.array(values, mask=values == absent) for name, values in by_column.items()}
    columns |= {f"logit_{i}": values[:, i].astype(np.float32) for i in range(dataset.num_labels)}
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Returns labels and logits by split, as they were written; a split without labels has `absent_label` each.

    Raises:
        RunError: If the file is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise RunError(
            f"{path} cannot be read ({str(error).splitlines()[0]}).\nRun the recipe again to make it"
        ) from None
    splits = np.asarray(table["split"].to_pylist(), dtype=object)
    logits = np.stack(_columns(table, "logit_", 0.0), axis=1) if len(table.column_names) else np.empty((0, 0))
    several = _columns(table, "label_", 255)
    labels = np.stack(several, axis=1) if several else table["label"].fill_null(-1).to_numpy()
    return {str(name): (labels[splits == name], logits[splits == name]) for name in dict.fromkeys(splits.tolist())}


def _columns(table: Any, prefix: str, absent: float) -> list[NDArray[Any]]:
    names = sorted(
        (name for name in table.column_names if name.startswith(prefix)), key=lambda n: int(n[len(prefix) :])
    )
    return [table[name].fill_null(absent).to_numpy() for name in names]
