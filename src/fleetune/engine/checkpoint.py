"""Writes tensors and facts so that they are on disk whole or not at all, and reads them back only if they are whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetune.data.writing import (
    PARTIAL,
    make_folder,
    put_in_place,
    removed_on_failure,
    sha256_of,
    sync_folder,
    write_bytes,
)
from fleetune.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

STATE = "state.json"
KINDS = ("last", "best")
QUARANTINE = "quarantine"
_ALIGNMENT = 8
_TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


@dataclass(frozen=True)
class SavedFile:
    """A file of tensors as it was written.

    Attributes:
        path: Where it lies below the folder of all trials, with `/`.
        bytes: Its size.
        sha256: Of its contents.
    """

    path: str
    bytes: int
    sha256: str

    def is_whole(self, root: Path) -> bool:
        """Returns whether the file is there and holds what was written.

        Raises:
            OSError: If it cannot be read: a disk that fails now may give it back later.
        """
        path = root / self.path
        try:
            return path.stat().st_size == self.bytes and sha256_of(path) == self.sha256
        except FileNotFoundError:
            return False


def save_tensors(root: Path, path: str, tensors: Mapping[str, Tensor]) -> SavedFile:
    """Writes `tensors` to the file `path` below `root`, and returns what was written; it is on disk then."""
    place = root / path
    make_folder(place.parent)
    beside = place.with_name(place.name + PARTIAL)
    size, digest = _write_tensors(beside, tensors)
    put_in_place(beside, place)
    return SavedFile(path, size, digest)


def load_tensors(root: Path, file: SavedFile) -> dict[str, Tensor]:
    """Returns the tensors of a file that was found whole."""
    from safetensors.torch import load_file

    return load_file(root / file.path)


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes `tensors` and `facts` to `folder`, for whoever reads a trial that has ended.

    The tensors go into a file named after their content; `state.json`, which names it with its SHA-256, is renamed into
    place last. Until then what was there before is valid.
    """
    make_folder(folder)
    beside = folder / f"state{PARTIAL}"
    _, digest = _write_tensors(beside, tensors)
    name = f"state-{digest[:16]}.safetensors"
    put_in_place(beside, folder / name)
    document = {**facts, "tensors": name, "sha256": digest}
    write_bytes(folder / STATE, json.dumps(document, indent=1).encode())


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Returns the tensors and facts that `save_checkpoint` wrote to `folder`; None where nothing was saved.

    Raises:
        RunError: If the checkpoint is damaged.
    """
    from safetensors.torch import load

    if not (folder / STATE).exists():
        return None
    try:
        facts: dict[str, Any] = json.loads((folder / STATE).read_bytes())
        blob = (folder / str(facts["tensors"])).read_bytes()
        expected = facts["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"checkpoint {folder} is damaged ({error}).\nDelete the folder to train this trial again"
        ) from None
    if hashlib.sha256(blob).hexdigest() != expected:
        raise RunError(f"checkpoint {folder} is damaged (checksum).\nDelete the folder to train this trial again")
    return load(blob), facts


def final_files(trial: Path) -> list[Path]:
    """Returns the files in a trial's folder that are for its readers: each `state.json`, and the tensors it names."""
    found = []
    for kind in KINDS:
        state = trial / kind / STATE
        with suppress(OSError, ValueError, KeyError, TypeError):
            tensors = state.with_name(str(json.loads(state.read_bytes())["tensors"]))
            found += [state, tensors] if tensors.is_file() else [state]
    return found


def quarantine(root: Path, file: SavedFile) -> None:
    """Moves a damaged file to its trial's folder `quarantine/`, if it is there and can be moved."""
    place = root / file.path
    aside = place.parents[1] / QUARANTINE
    with suppress(OSError):
        make_folder(aside)
        place.replace(aside / f"{place.parent.name}-{place.name}")
        sync_folder(aside)


def sweep(root: Path, trial: str, kept: set[str]) -> None:
    """Removes what is left in a trial's `last/` and `best/` of checkpoints that never became valid or are outdated.

    Args:
        root: Folder of all trials.
        trial: Which.
        kept: Paths below `root` that stay; so does what is for readers.
    """
    stay = {path.name for path in final_files(root / trial)}
    for kind in KINDS:
        for path in (root / trial / kind).glob("state*"):
            if path.name not in stay and f"{trial}/{kind}/{path.name}" not in kept:
                path.unlink(missing_ok=True)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Writes a safetensors file one tensor after the other, so that no second copy is in memory; returns size and hash.

    The same tensors give the same bytes.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    digest, size = hashlib.sha256(), 0
    with removed_on_failure(path), path.open("wb") as file:
        for piece in _pieces(ordered):
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def _pieces(ordered: list[tuple[str, Tensor]]) -> Iterator[bytes | memoryview[int]]:
    yield _header(ordered)
    for _, tensor in ordered:
        yield _bytes_of(tensor)


def _header(ordered: list[tuple[str, Tensor]]) -> bytes:
    fields, start = {}, 0
    for name, tensor in ordered:
        end = start + tensor.numel() * tensor.element_size()
        kind = _TYPES[str(tensor.dtype).removeprefix("torch.")]
        fields[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor) -> memoryview[int]:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
