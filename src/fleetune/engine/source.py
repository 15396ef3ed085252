"""Finds the folder of a backbone: a path, an embedded model, or a snapshot from the hub."""

from __future__ import annotations

import shlex
from pathlib import Path

from fleetune.engine.config import BackboneConfig
from fleetune.engine.embedded import PREFIX, embedded_folder
from fleetune.engine.weights import check_weights
from fleetune.errors import BackboneError

WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.codes", "*.bpe", "*.vocab", "*.tiktoken"]
"""Files taken from the hub: data by their suffix, so no pickled weights, no code, whatever their names begin with."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CONVERSION = (
    "import sys, pathlib, torch, safetensors.torch as s; d = pathlib.Path(sys.argv[1]); "
    "s.save_file({k: v.contiguous().clone() for f in sorted(d.glob('pytorch_model*.bin')) "
    "for k, v in torch.load(f, map_location='cpu', weights_only=True).items()}, "
    "d / 'model.safetensors', {'format': 'pt'})"
)
"""What a user types; torch reads plain tensors alone, and whatever else lies in the pickle ends it."""


def find_folder(config: BackboneConfig) -> Path:
    """Returns the local folder of a backbone, downloading a hub model into the hub's cache if need be.

    Raises:
        BackboneError: If it is not there or cannot be had.
    """
    if config.model.startswith(PREFIX):
        return embedded_folder(config.model)
    try:
        folder = Path(config.model).expanduser()
        is_folder = folder.is_dir()
    except (OSError, ValueError, RuntimeError):
        raise BackboneError(f"backbone {config.model[:80]!r} is no name of a folder or of a model") from None
    if is_folder:
        return _with_weights(folder)
    if folder.is_absolute() or config.model.startswith((".", "~")) or config.model.count("/") > 1:
        raise BackboneError(f"backbone folder {config.model} does not exist")
    return _from_hub(config)


def _from_hub(config: BackboneConfig) -> Path:
    folder = _download(config)
    # Pickles are not even downloaded, so their names are not there to be seen.
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        copy = config.model.rpartition("/")[2]
        raise BackboneError(
            f"'{config.model}' has no safetensors weights on the hub, and pickles are never loaded. If you trust them, "
            f"convert them once and give the folder:\nhf download {shlex.quote(config.model)} --local-dir "
            f"{shlex.quote(copy)} && {conversion(shlex.quote(copy))}"
        )
    return _with_weights(folder)


def _with_weights(folder: Path) -> Path:
    check_weights(folder)
    if not (folder / "config.json").is_file():
        raise BackboneError(f"{folder} has no config.json; a Hugging Face model folder was expected")
    if any(folder.glob("*.safetensors")):
        return folder
    if any(file for pattern in PICKLES for file in folder.glob(pattern)):
        raise BackboneError(
            f"{folder} holds pickled weights only, and pickles are never loaded. If you trust them, convert them:\n"
            f"{conversion(shlex.quote(str(folder)))}"
        )
    raise BackboneError(f"{folder} holds no weights (*.safetensors)")


def conversion(folder: str) -> str:
    """Returns the command that writes `model.safetensors` beside the pickled weights in `folder`."""
    return f'python -c "{CONVERSION}" {folder}'


def _download(config: BackboneConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = config.model if config.revision is None else f"{config.model} at {config.revision}"
    try:
        return Path(snapshot_download(config.model, revision=config.revision, allow_patterns=WANTED))
    except RevisionNotFoundError:
        raise BackboneError(f"{config.model} has no revision '{config.revision}' on the hub") from None
    except RepositoryNotFoundError:
        raise BackboneError(
            f"'{config.model}' is no folder here and no model on the hub (or a private one).\n"
            "Check the name; for a private or gated model type: hf auth login"
        ) from None
    except HFValidationError:
        raise BackboneError(
            f"backbone {config.model[:80]!r} is no folder here and no name of a model on the hub.\n"
            'Type model = "FOLDER", or "user/name" as the hub has it'
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(
            f"{name} is not in the local cache and the hub cannot be reached ({reason[:160]}).\n"
            "Give a local folder, or download it on a machine with a network: hf download " + config.model
        ) from None
