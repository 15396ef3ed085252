"""Writes a trial's state whole or not at all, and reads it back only if it is whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetune.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

STATE = "state.json"


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes `tensors` and `facts` to `folder`.

    The tensors go into a file named after the step; `state.json`, which names it with its SHA-256, is renamed into
    place last. Until then the checkpoint before is the valid one.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    blob = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    digest = hashlib.sha256(blob).hexdigest()
    name = f"state-{digest[:16]}.safetensors"
    write_whole(folder / name, blob)
    document = {**facts, "tensors": name, "sha256": digest}
    write_whole(folder / STATE, json.dumps(document, indent=1).encode())
    for old in folder.glob("state-*.safetensors*"):
        if old.name != name:
            old.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Returns the tensors and facts of `folder`; None where nothing was saved.

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


def write_whole(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that it is there whole, or as it was before, whatever happens."""
    beside = path.with_name(path.name + ".partial")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
