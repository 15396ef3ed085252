"""The model that a bundle's own copy of its configuration describes; no weights are made, and no code is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fleetune.bundle.contents import MODEL_CONFIG
from fleetune.bundle.entries import MAX_CONTAINERS, entries_of, read_table
from fleetune.bundle.manifest import MANIFEST, Manifest, damaged
from fleetune.engine.architecture import Architecture, architecture_of
from fleetune.engine.model_config import FOREIGN
from fleetune.engine.shape import shape_of
from fleetune.engine.silence import quiet
from fleetune.methods.base import BackboneShape

MAX_CONFIG_BYTES = 1 << 20
MAX_LABELLED_BYTES = 64 << 20
MAX_COUNT = 1_000
MULTIPLIED = ("num_hidden_groups", "inner_group_num")
"""Counts of which one is built within the other."""
COUNTING_WORDS = ("layer", "group", "head", "num_")
"""Parts of the names of what a model is built from one by one: layers, heads, experts; each takes its time."""


def config_name(manifest: Manifest) -> str:
    """Returns the name of the file with the model's configuration."""
    return "config.json" if manifest.form == "merged" else MODEL_CONFIG


def config_limit(manifest: Manifest) -> int:
    """Returns the largest size in bytes of the model's configuration, which names each label twice."""
    names = sum(len(label.encode("utf-8", "surrogatepass")) for label in manifest.labels)
    # A byte becomes up to six signs in JSON; beside each name stand its number and spaces.
    return min(MAX_LABELLED_BYTES, MAX_CONFIG_BYTES + 2 * 6 * names + 2 * 40 * len(manifest.labels))


def described_model(folder: Path, manifest: Manifest) -> tuple[torch.nn.Module, Architecture]:
    """Returns the bundle's classification model on the meta device, and its family.

    Raises:
        BundleError: If the configuration is damaged, names code or files, or does not fit the manifest.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    name = config_name(manifest)
    try:
        fields = read_table(folder / name, config_limit(manifest), MAX_CONTAINERS)
        _check_fields(fields, len(manifest.labels))
        architecture = architecture_of(str(fields["model_type"]))
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(folder / name, trust_remote_code=False)
            model = AutoModelForSequenceClassification.from_config(
                config, attn_implementation="eager", trust_remote_code=False
            )
        names = [config.id2label.get(index) for index in range(config.num_labels)]
    except Exception as error:  # noqa: BLE001 - each family's classes check a configuration in their own way
        raise damaged(folder, f"{name}: {_first_line(error)}") from None
    if names != manifest.labels:
        raise damaged(
            folder, f"{name} has {config.num_labels} labels that are not the {len(manifest.labels)} of {MANIFEST}"
        )
    if fields["model_type"] != manifest.backbone.model_type:
        raise damaged(folder, f"{name} is of another family than {MANIFEST} says")
    return model, architecture


def shape_of_bundle(
    folder: Path, manifest: Manifest, model: torch.nn.Module, architecture: Architecture
) -> BackboneShape:
    """Returns the shape of the backbone, with the head that the manifest lists.

    Raises:
        BundleError: If the head lacks what every checkpoint lacks, or has modules that do not classify.
    """
    stages = [stage.name for stage in architecture.stages if stage.kind == "module"]
    allowed = {f"{stage}.{name}" for stage in stages for name, _ in model.get_submodule(stage).named_parameters()}
    always = {name for name in allowed if name.rpartition(".")[0] in architecture.new}
    odd = sorted((always - set(manifest.head)) | (set(manifest.head) - allowed))
    if odd:
        raise damaged(folder, f"{odd[0]} is wrongly in the head, or lacks there")
    return shape_of(model, architecture, manifest.head)


def _check_fields(fields: dict[str, Any], labels: int) -> None:
    """Raises ValueError where a configuration names code or files, or asks for more than any model has."""
    built = 1
    for _, key, value in entries_of(fields):
        if key in FOREIGN and value is not None:
            raise ValueError(f"{key} would bring in code or files from elsewhere")
        is_count = isinstance(value, int) and key is not None and any(word in key for word in COUNTING_WORDS)
        if is_count and value > (labels if key == "num_labels" else MAX_COUNT):
            raise ValueError(f"{key} = {value}, and at most {labels if key == 'num_labels' else MAX_COUNT} is taken")
        if key in MULTIPLIED and isinstance(value, int):
            built *= max(value, 1)
    if built > MAX_COUNT:
        raise ValueError(f"{' times '.join(MULTIPLIED)} is {built}, and at most {MAX_COUNT} is taken")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
