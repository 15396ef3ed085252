"""Which files of a model folder hold its weights: safetensors that lie in it, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from pathlib import Path

from fleetune.errors import BackboneError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
MAX_INDEX_BYTES = 64 << 20
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")


def check_weights(folder: Path) -> None:
    """Raises BackboneError where transformers would read weights that are no safetensors of the folder itself."""
    if os.path.lexists(folder / ADAPTER):
        # Transformers would put the adapter over the weights without a word.
        raise BackboneError(
            f"{folder} holds an adapter ({ADAPTER}), which would change the backbone unseen.\n"
            "Give the base model, or merge the adapter first: merge_and_unload() and save_pretrained(FOLDER) in PEFT"
        )
    shards(folder)


def shards(folder: Path) -> set[str] | None:
    """Returns the files that the folder's index names; None where transformers reads no index.

    Raises:
        BackboneError: If the index cannot be read, or names what is no safetensors file in the folder.
    """
    path = folder / INDEX
    if (folder / WHOLE).is_file() or not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError(f"it has more than {MAX_INDEX_BYTES:,} bytes")
        names = list(json.loads(path.read_bytes())["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(f"{path} cannot be read: {reason[:160]}.\nDownload the model again") from None
    for name in names:
        if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
            raise BackboneError(
                f"{path} names {str(name)[:80]!r}, and weights are read from *.safetensors in the folder alone.\n"
                f"Put them into one file: {WHOLE}"
            )
    for name in sorted(set(names)):
        if not (folder / name).is_file():
            raise BackboneError(
                f"{path} names {name[:80]}, which is not there.\n"
                f"Download the model again, or copy the file to {shlex.quote(str(folder))}"
            )
    return set(names)


def hash_model(folder: Path) -> str:
    """Returns the SHA-256 over configuration and weights of a model folder."""
    weights = list(folder.glob("*.safetensors"))
    files = [folder / "config.json", *weights]
    named = shards(folder)
    if named is not None and named != {file.name for file in weights}:
        # An index that names all of them decides nothing; this one decides which are read.
        files.append(folder / INDEX)
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
