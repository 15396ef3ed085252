"""Texts as token ids: made once for a tokenizer, then opened from a memory-mapped cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.data.cutting import Cutting, WindowPool
from fleetune.data.dataset import Dataset, hash_texts
from fleetune.data.growing import GrowingArray
from fleetune.data.sequences import NO_SEQUENCES, find_frame, lengths_of, make_sequences
from fleetune.data.writing import PARTIAL, make_folder, sha256_of
from fleetune.errors import DataError, StorageError

FORMAT = 1
TEXTS_AT_ONCE = 2_000
MANIFEST = "manifest.json"
ARRAYS = ("input_ids", "offsets", "full_lengths", "type_ids", "text_offsets", "cut", "pool")
STREAMED = ("input_ids", "type_ids")
"""Those with a value a token, which are written as they are made."""
SUMMED = ("offsets", "text_offsets")
HEAD = Cutting()


@dataclass(frozen=True)
class Tokens:
    """Token ids of all texts of a data set, end to end.

    A text is one sequence for the backbone, or several where it is read in windows: its tokens are then those of all
    its windows, special tokens and overlaps included.

    Attributes:
        input_ids: `(tokens,)` int32, special tokens included, at most `max_tokens` a sequence.
        type_ids: `(tokens,)` uint8 segment of each token, None where the tokenizer gives none.
        offsets: `(sequences + 1,)` int64; sequence i has `input_ids[offsets[i] : offsets[i + 1]]`.
        full_lengths: `(texts,)` int32 lengths before cutting.
        folder: Where the cache lies.
        text_offsets: `(texts + 1,)` int64; text i has the sequences `text_offsets[i]` to `text_offsets[i + 1]`. None
            where each text is one sequence.
        cut: `(texts,)` whether windows leave out a part of a text; None where texts are not read in windows.
        pool: How the logits of a text's windows become the text's.
    """

    input_ids: NDArray[np.int32]
    type_ids: NDArray[np.uint8] | None
    offsets: NDArray[np.int64]
    full_lengths: NDArray[np.int32]
    folder: Path
    text_offsets: NDArray[np.int64] | None = None
    cut: NDArray[np.bool_] | None = None
    pool: WindowPool = "mean"

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """`(texts,)` tokens that the backbone reads of each text, in all its windows."""
        return np.diff(self.offsets if self.text_offsets is None else self.offsets[self.text_offsets])

    @cached_property
    def sequence_lengths(self) -> NDArray[np.int64]:
        """`(sequences,)` tokens of each sequence."""
        return np.diff(self.offsets)

    @cached_property
    def longest_sequences(self) -> NDArray[np.int64]:
        """`(texts,)` tokens of each text's longest sequence."""
        if self.text_offsets is None or not len(self):
            return self.sequence_lengths
        return np.maximum.reduceat(self.sequence_lengths, self.text_offsets[:-1])

    @cached_property
    def sequence_counts(self) -> NDArray[np.int64]:
        """`(texts,)` sequences of each text: its windows, or 1."""
        return np.ones(len(self), dtype=np.int64) if self.text_offsets is None else np.diff(self.text_offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of all the arrays."""
        arrays = self.input_ids, self.type_ids, self.offsets, self.full_lengths, self.text_offsets, self.cut
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """`(texts,)` whether the backbone is not shown all of a text."""
        return self.lengths < self.full_lengths if self.cut is None else self.cut

    def sequences_of(self, texts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the sequences of some texts, those of one text side by side."""
        if self.text_offsets is None:
            return texts
        counts = self.sequence_counts[texts]
        first = np.repeat(self.text_offsets[texts] - (np.cumsum(counts) - counts), counts)
        sequences: NDArray[np.int64] = first + np.arange(len(first))
        return sequences

    def __len__(self) -> int:
        return len(self.full_lengths)


def tokenize(
    dataset: Dataset, tokenizer: Any, max_tokens: int, cache: Path, model_id: str, cutting: Cutting = HEAD
) -> Tokens:
    """Returns the tokens of every text of `dataset`, from the cache where they have been made before.

    Args:
        dataset: Texts, or pairs of texts.
        tokenizer: A Hugging Face tokenizer; its own call decides on special tokens and segments.
        max_tokens: Longest sequence, special tokens included.
        cache: Folder of the caches; each one's name is a hash of all that determines it.
        model_id: Name or hash of the model the tokenizer belongs to.
        cutting: What becomes of longer texts; by default they are cut, of a pair the longer text.

    Raises:
        DataError: If a text gives no tokens, or `max_tokens` leaves no room.
        StorageError: If the cache cannot be written, or the folder that it is to lie in is gone.
        RecipeError: If windows would leave tokens out, or texts are pairs and would be read in windows.
    """
    folder = cache / _key(dataset, tokenizer, max_tokens, model_id, cutting)
    tokens = open_tokens(folder)
    if tokens is not None and len(tokens) == len(dataset):
        return tokens
    try:
        _write(_encode(dataset, tokenizer, max_tokens, cutting), folder)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not cache.parent.exists():
            raise StorageError(
                f"{cache} is gone: it was deleted or moved meanwhile.\n"
                "Put it back, or type the same command again: what was saved is whole"
            ) from None
        raise StorageError(
            f"the tokens cannot be written to {folder}: {error.strerror or error}.\n"
            "Free some space there, or let it be written, then type the same command again"
        ) from None
    tokens = open_tokens(folder)
    if tokens is None:
        raise DataError(f"the tokens just written to {folder} cannot be read back; check the disk.")
    return tokens


def tokenize_in_memory(dataset: Dataset, tokenizer: Any, max_tokens: int, cutting: Cutting = HEAD) -> Tokens:
    """Returns the tokens of every text of `dataset`, as `tokenize` makes them, and keeps nothing on disk.

    Raises:
        DataError: If a text gives no tokens, or `max_tokens` leaves no room.
        RecipeError: If windows would leave tokens out, or texts are pairs and would be read in windows.
    """
    parts = list(_encode(dataset, tokenizer, max_tokens, cutting))
    streamed = {name: np.concatenate([part[name] for part in parts]) for name in STREAMED if name in parts[0]}
    return _tokens(streamed | _whole(parts), Path())


def _tokens(arrays: dict[str, NDArray[Any]], folder: Path) -> Tokens:
    pool: Any = str(arrays["pool"][0]) if "pool" in arrays else "mean"
    return Tokens(
        arrays["input_ids"],
        arrays.get("type_ids"),
        arrays["offsets"],
        arrays["full_lengths"],
        folder,
        arrays.get("text_offsets"),
        arrays.get("cut"),
        pool,
    )


def _key(dataset: Dataset, tokenizer: Any, max_tokens: int, model_id: str, cutting: Cutting) -> str:
    digest = hashlib.sha256(f"{FORMAT}\n{model_id}\n{max_tokens}\n".encode())
    digest.update("".join(f"{setting}\n" for setting in cutting.identity).encode())
    digest.update(json.dumps(_identity(tokenizer), sort_keys=True, default=str).encode())
    hash_texts(digest, dataset.texts)
    hash_texts(digest, dataset.pairs or [])
    return digest.hexdigest()[:32]


def _identity(tokenizer: Any) -> dict[str, Any]:
    """Returns all that decides which tokens a text becomes."""
    identity = {
        "type": type(tokenizer).__name__,
        "inputs": list(getattr(tokenizer, "model_input_names", [])),
        "truncation_side": getattr(tokenizer, "truncation_side", "right"),
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {**identity, "vocabulary": tokenizer.get_vocab(), "settings": getattr(tokenizer, "init_kwargs", {})}
    serialised = json.loads(backend.to_str())
    # Truncation and padding are left over from the last call and decide nothing.
    return {
        **identity,
        "backend": {name: serialised[name] for name in serialised if name not in ("truncation", "padding")},
    }


def _encode(dataset: Dataset, tokenizer: Any, max_tokens: int, cutting: Cutting) -> Iterator[dict[str, NDArray[Any]]]:
    """Yields the arrays of some texts at a time, with sizes in the place of offsets; one part at least."""
    frame = None
    if cutting.long_texts != "head":
        frame = find_frame(tokenizer, dataset.pairs is not None)
        cutting.check(frame, max_tokens)
    for start in range(0, max(1, len(dataset)), TEXTS_AT_ONCE):
        texts = dataset.texts[start : start + TEXTS_AT_ONCE]
        pairs = None if dataset.pairs is None else dataset.pairs[start : start + TEXTS_AT_ONCE]
        made = make_sequences(tokenizer, texts, pairs, max_tokens, cutting, frame) if texts else NO_SEQUENCES
        if not made.full_lengths.all():
            empty = start + int(np.flatnonzero(made.full_lengths == 0)[0])
            raise DataError(f"the text at {dataset.place(empty)} gives no tokens with this backbone's tokenizer.")
        part: dict[str, NDArray[Any]] = {
            "input_ids": _flat(made.ids, np.int32),
            "offsets": lengths_of(made.ids),
            "full_lengths": made.full_lengths.astype(np.int32),
        }
        if made.types is not None:
            part["type_ids"] = _flat(made.types, np.uint8)
        if cutting.long_texts == "windows":
            part |= {"text_offsets": made.counts, "cut": made.cut, "pool": np.array([cutting.window_pool])}
        yield part


def _whole(parts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Returns the arrays with one value a text or sequence, sizes summed up to offsets."""
    whole: dict[str, NDArray[Any]] = {}
    for name in (name for name in ARRAYS if name in parts[0] and name not in STREAMED):
        joined = parts[0][name] if name == "pool" else np.concatenate([part[name] for part in parts])
        whole[name] = np.concatenate([[0], np.cumsum(joined)]).astype(np.int64) if name in SUMMED else joined
    return whole


def _flat(rows: list[list[int]], dtype: type) -> NDArray[Any]:
    try:
        return np.fromiter((item for row in rows for item in row), dtype=dtype, count=sum(map(len, rows)))
    except (OverflowError, TypeError, ValueError):
        raise DataError(
            "the tokenizer gives tokens numbers no model has.\nIts files are damaged; take the model or bundle anew"
        ) from None


def open_tokens(folder: Path) -> Tokens | None:
    """Returns the cache in `folder`; None where there is none, or a damaged one."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return None
        arrays = {}
        for name, checksum in manifest["sha256"].items():
            path = folder / f"{name}.npy"
            if sha256_of(path) != checksum:
                return None
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        return _tokens(arrays, folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def content_hash(tokens: Tokens) -> str:
    """Returns a SHA-256 of cached tokens: the same where the same texts become the same tokens."""
    manifest = json.loads((tokens.folder / MANIFEST).read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(manifest["sha256"], sort_keys=True).encode()).hexdigest()


def _write(parts: Iterable[Mapping[str, NDArray[Any]]], folder: Path) -> None:
    """Writes the arrays and their checksums beside `folder` and puts them in its place in one step.

    Token ids go to the disk as they come: those of all texts are never in memory together.
    """
    make_folder(folder.parent, above=0)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=PARTIAL, dir=folder.parent))
    try:
        names = _write_arrays(parts, temporary)
        checksums = {name: sha256_of(temporary / f"{name}.npy") for name in names}
        manifest = json.dumps({"format": FORMAT, "sha256": checksums}, indent=2)
        (temporary / MANIFEST).write_text(manifest, encoding="utf-8")
        temporary.chmod(0o755)
        if folder.exists() and open_tokens(folder) is None:
            shutil.rmtree(folder)
        try:
            temporary.rename(folder)
        except OSError:
            # Another process was faster: what it wrote is the same.
            if open_tokens(folder) is None:
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_arrays(parts: Iterable[Mapping[str, NDArray[Any]]], folder: Path) -> list[str]:
    """Writes an `.npy` file for each array into `folder`; returns the arrays' names."""
    rest = []
    with ExitStack() as stack:
        growing: dict[str, GrowingArray] = {}
        for part in parts:
            for name in (name for name in STREAMED if name in part):
                if name not in growing:
                    growing[name] = stack.enter_context(GrowingArray(folder / f"{name}.npy", part[name].dtype))
                growing[name].append(part[name])
            rest.append({name: values for name, values in part.items() if name not in STREAMED})
    whole = _whole(rest)
    for name, values in whole.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)
    return [name for name in ARRAYS if name in growing or name in whole]
