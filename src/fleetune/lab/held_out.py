"""The texts of validation and test in a run's folder, in the order of the trials' predictions."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fleetune.compare.held_out import HeldOutTexts
from fleetune.data.dataset import Dataset, SplitName, hash_texts
from fleetune.engine.checkpoint import write_whole
from fleetune.errors import RunError

if TYPE_CHECKING:
    from fleetune.data.tokens import Tokens

HELD_OUT: tuple[SplitName, ...] = ("validation", "test")
BETWEEN_PAIR = " ⟷ "
METADATA = b"fleetune"


def write_held_out(path: Path, dataset: Dataset, tokens: Tokens) -> None:
    """Writes one row a text of validation and test, whole or not at all.

    Columns are `split`, `index`, `text`, `text_pair` for pairs, `place` (`file:line`), `tokens` before cutting, and
    `slice_<i>` for each of the user's columns, whose names are in the schema's metadata.

    Args:
        path: The file.
        dataset: The texts.
        tokens: The same as tokens.
    """
    import pyarrow
    import pyarrow.parquet

    rows = np.concatenate([dataset.splits[split] for split in HELD_OUT])
    names = [split for split in HELD_OUT for _ in range(len(dataset.splits[split]))]
    chosen = rows.tolist()
    columns: dict[str, Any] = {
        "split": pyarrow.array(names, pyarrow.string()).dictionary_encode(),
        "index": rows,
        "text": pyarrow.array([dataset.texts[row] for row in chosen], pyarrow.string()),
    }
    if dataset.pairs is not None:
        columns["text_pair"] = pyarrow.array([dataset.pairs[row] for row in chosen], pyarrow.string())
    columns["place"] = pyarrow.array([dataset.place(row) for row in chosen], pyarrow.string())
    columns["tokens"] = np.asarray(tokens.full_lengths)[rows].astype(np.int64)
    for number, values in enumerate(dataset.slices.values()):
        column = pyarrow.array([values[row] for row in chosen], pyarrow.string())
        columns[f"slice_{number}"] = column.dictionary_encode()
    facts = {"slices": list(dataset.slices), "content": _content(dataset)}
    table = pyarrow.table(columns).replace_schema_metadata({METADATA: json.dumps(facts).encode()})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())


def holds(path: Path, dataset: Dataset) -> bool:
    """Returns whether the file is there, whole, and of these texts and slices."""
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
        return bool(_facts(schema).get("content") == _content(dataset))
    except (pyarrow.ArrowException, OSError, ValueError):
        return False


def read_held_out(path: Path) -> dict[str, HeldOutTexts]:
    """Returns the texts by split.

    Raises:
        RunError: If the file is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        slices = list(_facts(table.schema).get("slices", []))
        values = {name: table[name].to_pylist() for name in table.column_names}
        splits = np.asarray(values["split"], dtype=object)
        return {str(name): _of_split(values, splits == name, slices) for name in dict.fromkeys(splits.tolist())}
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise RunError(
            f"{path} cannot be read ({str(error).splitlines()[0]}).\nDelete it and run the recipe again to make it"
        ) from None


class KeptTexts(Mapping[str, Mapping[str, HeldOutTexts]]):
    """The held-out texts of each data set by split, read when they are asked for.

    Args:
        files: File of each data set; one that is not there is not among them.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = {name: path for name, path in files.items() if path.is_file()}
        self._read: dict[str, Mapping[str, HeldOutTexts]] = {}

    def __getitem__(self, name: str) -> Mapping[str, HeldOutTexts]:
        if name not in self._read:
            self._read[name] = read_held_out(self._files[name])
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _of_split(values: Mapping[str, list[Any]], rows: Any, slices: list[str]) -> HeldOutTexts:
    chosen = np.flatnonzero(rows).tolist()
    texts = [values["text"][row] for row in chosen]
    if "text_pair" in values:
        seconds = (values["text_pair"][row] for row in chosen)
        texts = [f"{first}{BETWEEN_PAIR}{second}" for first, second in zip(texts, seconds, strict=True)]
    return HeldOutTexts(
        texts,
        [values["place"][row] for row in chosen],
        np.asarray([values["tokens"][row] for row in chosen], dtype=np.int64),
        {name: [values[f"slice_{number}"][row] for row in chosen] for number, name in enumerate(slices)},
    )


def _facts(schema: Any) -> dict[str, Any]:
    return dict(json.loads((schema.metadata or {}).get(METADATA, b"{}")))


def _content(dataset: Dataset) -> str:
    """Returns a hash of all that the file has but the tokens, which a backbone's tokenizer makes."""
    digest = hashlib.sha256(dataset.content_hash().encode())
    hash_texts(digest, dataset.sources)
    digest.update(np.ascontiguousarray(dataset.files).tobytes())
    digest.update(np.ascontiguousarray(dataset.lines).tobytes())
    for name, values in dataset.slices.items():
        hash_texts(digest, [name, *values])
    return digest.hexdigest()
