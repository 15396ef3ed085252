"""The texts of validation and test in a run's folder, in the order of the trials' predictions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fleetune.compare.held_out import HeldOutTexts
from fleetune.data.dataset import Dataset, SplitName, hash_texts
from fleetune.data.writing import make_folder, runs, write_row_groups
from fleetune.errors import RunError
from fleetune.lab.predictions import rows_by_split

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

    Raises:
        FileNotFoundError: If more is missing than the data's folder.
    """
    make_folder(path.parent, above=0)
    write_row_groups(path, _schema(dataset), _groups(dataset, tokens))


def _schema(dataset: Dataset) -> Any:
    import pyarrow

    text, number = pyarrow.string(), pyarrow.int64()
    words = pyarrow.dictionary(pyarrow.int32(), text)
    facts = {"slices": list(dataset.slices), "content": _content(dataset)}
    return pyarrow.schema(
        [
            ("split", words),
            ("index", number),
            ("text", text),
            *([] if dataset.pairs is None else [("text_pair", text)]),
            ("place", text),
            ("tokens", number),
            *((f"slice_{place}", words) for place in range(len(dataset.slices))),
        ],
        metadata={METADATA: json.dumps(facts).encode()},
    )


def _groups(dataset: Dataset, tokens: Tokens) -> Iterator[list[Any]]:
    """Yields the columns of some rows of one split at a time."""
    import pyarrow

    def strings(values: list[str]) -> Any:
        return pyarrow.array([values[row] for row in chosen], pyarrow.string())

    for split in HELD_OUT:
        for rows in runs(dataset.splits[split]):
            chosen = rows.tolist()
            yield [
                pyarrow.DictionaryArray.from_arrays(np.zeros(len(rows), dtype=np.int32), [split]),
                pyarrow.array(rows),
                strings(dataset.texts),
                *([] if dataset.pairs is None else [strings(dataset.pairs)]),
                pyarrow.array([dataset.place(row) for row in chosen], pyarrow.string()),
                pyarrow.array(tokens.full_lengths[rows].astype(np.int64)),
                *(strings(values).dictionary_encode() for values in dataset.slices.values()),
            ]


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
        table = pyarrow.parquet.read_table(path, memory_map=True, read_dictionary=["split"])
        slices = list(_facts(table.schema).get("slices", []))
        parts = rows_by_split(table["split"])
        return {
            name: _of_split(table[rows] if isinstance(rows, slice) else table.take(rows), slices)
            for name, rows in parts
        }
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} cannot be read ({str(error).splitlines()[0]}).\nDelete it and run the recipe again to make it"
        ) from None


class KeptTexts(Mapping[str, Mapping[str, HeldOutTexts]]):
    """The held-out texts of each data set by split, read when they are asked for.

    Args:
        files: File of each data set; one that is not there is not among them.
        refuse: Is called with a file before it is read, and raises where it must not be used.
    """

    def __init__(self, files: Mapping[str, Path], refuse: Callable[[Path], None] = lambda _: None) -> None:
        self._refuse = refuse
        self._files = {name: path for name, path in files.items() if path.is_file()}
        self._read: dict[str, Mapping[str, HeldOutTexts]] = {}

    def __getitem__(self, name: str) -> Mapping[str, HeldOutTexts]:
        if name not in self._read:
            self._refuse(self._files[name])
            self._read[name] = read_held_out(self._files[name])
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _of_split(rows: Any, slices: list[str]) -> HeldOutTexts:
    texts = rows["text"].to_pylist()
    if "text_pair" in rows.column_names:
        seconds = rows["text_pair"].to_pylist()
        texts = [f"{first}{BETWEEN_PAIR}{second}" for first, second in zip(texts, seconds, strict=True)]
    return HeldOutTexts(
        texts,
        rows["place"].to_pylist(),
        np.asarray(rows["tokens"].to_numpy(), dtype=np.int64),
        {name: rows[f"slice_{number}"].to_pylist() for number, name in enumerate(slices)},
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
