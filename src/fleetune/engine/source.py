"""Finds the folder of a backbone: a path, an embedded model, or a snapshot from the hub."""

from __future__ import annotations

from pathlib import Path

from fleetune.engine.config import BackboneConfig
from fleetune.engine.embedded import PREFIX, embedded_folder
from fleetune.errors import BackboneError

WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "tokenizer*"]
"""Files taken from the hub: no pickled weights, no code."""


def find_folder(config: BackboneConfig) -> Path:
    """Returns the local folder of a backbone, downloading a hub model into the hub's cache if need be.

    Raises:
        BackboneError: If it is not there or cannot be had.
    """
    if config.model.startswith(PREFIX):
        return embedded_folder(config.model)
    folder = Path(config.model).expanduser()
    if folder.is_dir():
        return _with_weights(folder)
    if folder.is_absolute() or config.model.startswith((".", "~")) or config.model.count("/") > 1:
        raise BackboneError(f"backbone folder {config.model} does not exist")
    return _with_weights(_download(config))


def _with_weights(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise BackboneError(f"{folder} has no config.json; a Hugging Face model folder was expected")
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise BackboneError(
                f"{folder} holds pickled weights only, and pickles are never loaded.\n"
                "Convert them once: python -m safetensors.torch, or save_pretrained with transformers"
            )
        raise BackboneError(f"{folder} holds no weights (*.safetensors)")
    return folder


def _download(config: BackboneConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
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
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(
            f"{name} is not in the local cache and the hub cannot be reached ({reason[:160]}).\n"
            "Give a local folder, or download it on a machine with a network: hf download " + config.model
        ) from None
