"""Texts as token ids: made once for a tokenizer, then opened from a memory-mapped cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.data.dataset import Dataset, hash_texts
from fleetune.errors import DataError

FORMAT = 1
TEXTS_AT_ONCE = 2_000
MANIFEST = "manifest.json"
ARRAYS = ("input_ids", "offsets", "full_lengths", "type_ids")


@dataclass(frozen=True)
class Tokens:
    """Token ids of all texts of a data set, end to end.

    Attributes:
        input_ids: `(tokens,)` int32, special tokens included, cut to `max_tokens` a text.
        type_ids: `(tokens,)` uint8 segment of each token, None where the tokenizer gives none.
        offsets: `(texts + 1,)` int64; text i has `input_ids[offsets[i] : offsets[i + 1]]`.
        full_lengths: `(texts,)` int32 lengths before cutting.
        folder: Where the cache lies.
    """

    input_ids: NDArray[np.int32]
    type_ids: NDArray[np.uint8] | None
    offsets: NDArray[np.int64]
    full_lengths: NDArray[np.int32]
    folder: Path

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """`(texts,)` lengths after cutting."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1


def tokenize(dataset: Dataset, tokenizer: Any, max_tokens: int, cache: Path, model_id: str) -> Tokens:
    """Returns the tokens of every text of `dataset`, from the cache where they have been made before.

    Args:
        dataset: Texts, or pairs of texts.
        tokenizer: A Hugging Face tokenizer; its own call decides on special tokens and segments.
        max_tokens: Length at which texts are cut, special tokens included; of a pair the longer text is cut.
        cache: Folder of the caches; each one's name is a hash of all that determines it.
        model_id: Name or hash of the model the tokenizer belongs to.

    Raises:
        DataError: If a text gives no tokens, `max_tokens` leaves no room, or the cache cannot be written.
    """
    folder = cache / _key(dataset, tokenizer, max_tokens, model_id)
    tokens = open_tokens(folder)
    if tokens is not None and len(tokens) == len(dataset):
        return tokens
    arrays = _encode(dataset, tokenizer, max_tokens)
    try:
        _write(arrays, folder)
    except OSError as error:
        raise DataError(f"the tokens cannot be written to {folder}: {error.strerror or error}.") from None
    tokens = open_tokens(folder)
    if tokens is None:
        raise DataError(f"the tokens just written to {folder} cannot be read back; check the disk.")
    return tokens


def tokenize_in_memory(dataset: Dataset, tokenizer: Any, max_tokens: int) -> Tokens:
    """Returns the tokens of every text of `dataset`, as `tokenize` makes them, and keeps nothing on disk.

    Raises:
        DataError: If a text gives no tokens, or `max_tokens` leaves no room.
    """
    arrays = _encode(dataset, tokenizer, max_tokens)
    return Tokens(arrays["input_ids"], arrays.get("type_ids"), arrays["offsets"], arrays["full_lengths"], Path())


def _key(dataset: Dataset, tokenizer: Any, max_tokens: int, model_id: str) -> str:
    digest = hashlib.sha256(f"{FORMAT}\n{model_id}\n{max_tokens}\n".encode())
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


def _encode(dataset: Dataset, tokenizer: Any, max_tokens: int) -> dict[str, NDArray[Any]]:
    input_ids, type_ids, lengths, full_lengths = [], [], [], []
    for start in range(0, len(dataset), TEXTS_AT_ONCE):
        texts = dataset.texts[start : start + TEXTS_AT_ONCE]
        pairs = None if dataset.pairs is None else dataset.pairs[start : start + TEXTS_AT_ONCE]
        ids, types = _call(tokenizer, texts, pairs, None)
        full = np.array([len(row) for row in ids], dtype=np.int32)
        _cut(tokenizer, texts, pairs, max_tokens, ids, types, np.flatnonzero(full > max_tokens).tolist())
        lengths.append(np.array([len(row) for row in ids], dtype=np.int64))
        if not lengths[-1].all():
            empty = start + int(np.flatnonzero(lengths[-1] == 0)[0])
            raise DataError(f"the text at {dataset.place(empty)} gives no tokens with this backbone's tokenizer.")
        input_ids.append(_flat(ids, np.int32))
        full_lengths.append(full)
        if types is not None:
            type_ids.append(_flat(types, np.uint8))
    arrays: dict[str, NDArray[Any]] = {
        "input_ids": np.concatenate([*input_ids, np.empty(0, dtype=np.int32)]),
        "offsets": np.concatenate([[0], np.cumsum(np.concatenate([*lengths, np.empty(0, dtype=np.int64)]))]).astype(
            np.int64
        ),
        "full_lengths": np.concatenate([*full_lengths, np.empty(0, dtype=np.int32)]),
    }
    if type_ids:
        arrays["type_ids"] = np.concatenate(type_ids)
    return arrays


def _call(
    tokenizer: Any, texts: list[str], pairs: list[str] | None, max_tokens: int | None
) -> tuple[list[list[int]], list[list[int]] | None]:
    """Returns token ids and segments of a batch of texts, cut to `max_tokens` if that is a number."""
    truncation = (
        {"truncation": False} if max_tokens is None else {"truncation": "longest_first", "max_length": max_tokens}
    )
    encoded = tokenizer(texts, pairs, padding=False, return_attention_mask=False, verbose=False, **truncation)
    types = encoded.get("token_type_ids")
    return list(encoded["input_ids"]), None if types is None else list(types)


def _cut(
    tokenizer: Any,
    texts: list[str],
    pairs: list[str] | None,
    max_tokens: int,
    ids: list[list[int]],
    types: list[list[int]] | None,
    rows: list[int],
) -> None:
    """Replaces the token ids and segments of `rows` by cut ones."""
    if not rows:
        return
    try:
        cut = _call(tokenizer, [texts[row] for row in rows], pairs and [pairs[row] for row in rows], max_tokens)
    except Exception as error:  # noqa: BLE001 - the tokenizers library raises bare Exceptions
        raise DataError(f"max_tokens = {max_tokens} leaves no room for text beside special tokens: {error}") from None
    for place, row in enumerate(rows):
        ids[row] = cut[0][place]
        if types is not None and cut[1] is not None:
            types[row] = cut[1][place]


def _flat(rows: list[list[int]], dtype: type) -> NDArray[Any]:
    return np.fromiter((item for row in rows for item in row), dtype=dtype, count=sum(map(len, rows)))


def open_tokens(folder: Path) -> Tokens | None:
    """Returns the cache in `folder`; None where there is none, or a damaged one."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return None
        arrays = {}
        for name, checksum in manifest["sha256"].items():
            path = folder / f"{name}.npy"
            if _checksum(path) != checksum:
                return None
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        return Tokens(arrays["input_ids"], arrays.get("type_ids"), arrays["offsets"], arrays["full_lengths"], folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(arrays: dict[str, NDArray[Any]], folder: Path) -> None:
    """Writes the arrays and their checksums beside `folder` and puts them in its place in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name in ARRAYS:
            if name in arrays:
                np.save(temporary / f"{name}.npy", arrays[name], allow_pickle=False)
        checksums = {name: _checksum(temporary / f"{name}.npy") for name in arrays}
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


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
