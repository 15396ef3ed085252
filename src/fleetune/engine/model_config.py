"""Reads a model's `config.json` so that nothing in it brings in code, or weights from another file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetune.engine.silence import quiet
from fleetune.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

OWN_CODE = "auto_map"
FOREIGN = (
    OWN_CODE,
    "custom_pipelines",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "kernel_config",
    "transformers_weights",
    "use_kernels",
)
"""Keys by which a configuration names Python code, kernels of the hub, or the file of its weights."""
NAMED_BY_FILES = (OWN_CODE, "custom_pipelines", "kernel_config", "transformers_weights", "use_kernels")


def read_model_config(folder: Path, num_labels: int | None = None) -> PreTrainedConfig:
    """Returns the configuration in a model folder, without what it says of code to run and files to read.

    Args:
        folder: The folder with `config.json`.
        num_labels: Number of the classifier's outputs; the configuration's own if absent.

    Raises:
        BackboneError: If it is not there, not readable, or of a family that only its own code would know.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fields = config_fields(folder)
    if OWN_CODE in fields and fields.get("model_type") not in CONFIG_MAPPING:
        raise BackboneError(
            f"{folder}/config.json asks for Python code of its own ({OWN_CODE}), which is never run, and transformers "
            f"has no family {fields.get('model_type')!r}.\nTake a model of a family that transformers has"
        )
    changes = {} if num_labels is None else {"num_labels": num_labels}
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, attn_implementation="eager", **changes)
    except Exception as error:  # noqa: BLE001 - each family checks its fields in its own way
        raise BackboneError(f"{folder}/config.json cannot be read: {_first_line(error)}") from None
    for key in NAMED_BY_FILES:
        vars(config).pop(key, None)
    return config  # type: ignore[no-any-return]


def config_fields(folder: Path) -> dict[str, Any]:
    """Returns `config.json` of a model folder as it stands there.

    Raises:
        BackboneError: If it is not there, or no JSON object.
    """
    file = folder / "config.json"
    try:
        fields = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(f"{file} cannot be read: {_first_line(error)}") from None
    if not isinstance(fields, dict):
        raise BackboneError(f"{file} cannot be read: it holds no table")
    return fields


def own_code_note(folder: Path) -> list[str]:
    """Returns what a report must say of a model that brings code of its own."""
    if OWN_CODE not in config_fields(folder):
        return []
    return [f"Its config.json names Python code of its own ({OWN_CODE}). It was not run: transformers' own class was."]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
