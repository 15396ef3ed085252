"""Reads a bundle back, and refuses one that is damaged or does not fit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fleetune.bundle.contents import (
    ADAPTER_CONFIG,
    MODEL_CONFIG,
    WEIGHTS,
    expected_shapes,
    form_of,
    stored_names,
    stored_shapes,
)
from fleetune.bundle.manifest import MANIFEST, Manifest, damaged, file_facts, read_manifest
from fleetune.engine.architecture import Architecture, architecture_of
from fleetune.engine.backbone import Backbone, load_backbone, load_tokenizer
from fleetune.engine.config import BackboneConfig
from fleetune.engine.shape import shape_of
from fleetune.errors import BackboneError, BundleError, MethodError, RecipeError
from fleetune.methods import get
from fleetune.methods.base import BackboneShape, Method

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

MAX_CONFIG_BYTES = 64 << 20
MAX_TOKENIZER_BYTES = 512 << 20
MAX_HEADER_BYTES = 16 << 20
MAX_LAYERS = 1_000
LAYER_COUNTS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
TOLERATED_SUFFIX = ".md"
"""The model card may lie beside a bundle's own files, and hidden files may; nothing else."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read whole.

    Attributes:
        folder: Where it lies.
        manifest: What it says of itself.
        method: How its tensors act on the backbone; for a merged bundle the head alone is left of it.
        shape: The backbone's shape.
        tensors: As `TrialParameters.state` gives them.
    """

    folder: Path
    manifest: Manifest
    method: Method
    shape: BackboneShape
    tensors: dict[str, Tensor]

    def open_backbone(self, precision: str = "auto", model: str | None = None) -> Backbone:
        """Returns the backbone that the bundle belongs to, without the bundle's deltas.

        Args:
            precision: `auto`, `bf16`, `fp32` or `float64`.
            model: Folder or name, where it is not found under the name that it had.

        Raises:
            BackboneError: If it cannot be found or read.
            BundleError: If it is not the one that the bundle was trained on.
        """
        facts = self.manifest.backbone
        config = self.backbone_config(model)
        try:
            backbone = load_backbone(config, len(self.manifest.labels), precision)
        except BackboneError as error:
            first = str(error).splitlines()[0]
            raise BackboneError(
                f"bundle {self.folder} needs its backbone: {first}.\nPut it there, or give backbone = FOLDER"
            ) from None
        if self.manifest.form != "merged" and backbone.model_hash != facts.hash:
            raise BundleError(
                f"bundle {self.folder} was trained on another backbone than {config.model} is now: SHA-256 "
                f"{facts.hash[:12]}…, here {backbone.model_hash[:12]}….\nGive the one it was: backbone = FOLDER"
            )
        if backbone.shape.head != self.shape.head:
            raise BundleError(f"bundle {self.folder} has another head than {config.model} takes.\nExport it again")
        return backbone

    def open_tokenizer(self, model: str | None = None) -> PreTrainedTokenizerBase:
        """Returns the bundle's own tokenizer; the backbone's where it has none."""
        if self.manifest.tokenizer is None:
            return load_tokenizer(self.backbone_config(model))
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise damaged(self.folder, f"the tokenizer: {str(error).splitlines()[0]}") from None
        return tokenizer

    def backbone_config(self, model: str | None = None) -> BackboneConfig:
        """Returns where the backbone is found; a merged bundle is its own."""
        facts = self.manifest.backbone
        layout = "padded" if facts.layout == "padded" else "auto"
        if self.manifest.form == "merged":
            return BackboneConfig.model_validate({"model": str(self.folder.resolve()), "layout": layout})
        fields = {"layout": layout, "quantize": facts.quantize, "resident": facts.resident}
        if model is not None:
            return BackboneConfig.model_validate({"model": model, **fields})
        return BackboneConfig.model_validate({"model": facts.model, "revision": facts.revision, **fields})


def load_bundle(folder: Path) -> Bundle:
    """Returns the bundle in `folder`; its backbone is neither needed nor read.

    Raises:
        BundleError: If it is no bundle, is damaged, or its parts do not fit each other.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    _check_files(folder, manifest)
    method = _method(folder, manifest)
    shape = _shape(folder, manifest)
    if manifest.form == "merged":
        method = get("head")()
    elif _form(folder, method, shape) != manifest.form:
        raise damaged(folder, f"{method.kind} is not stored as {manifest.form}")
    if manifest.form == "adapter":
        _check_adapter_config(folder, method, shape)
    return Bundle(folder, manifest, method, shape, _read_tensors(folder, manifest, method, shape))


def _form(folder: Path, method: Method, shape: BackboneShape) -> str:
    """Returns the form that `method` is stored in on such a backbone."""
    try:
        return form_of(method, shape)
    except MethodError as error:
        raise damaged(folder, str(error).splitlines()[0]) from None


def _check_files(folder: Path, manifest: Manifest) -> None:
    needed = {WEIGHTS[manifest.form], "config.json" if manifest.form == "merged" else MODEL_CONFIG}
    needed |= {ADAPTER_CONFIG} if manifest.form == "adapter" else set()
    for name in sorted(needed - manifest.files.keys()):
        raise damaged(folder, f"{MANIFEST} does not list {name}")
    for name, facts in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise damaged(folder, f"{name} is missing")
        limit = _limit(name)
        if limit is not None and facts.bytes > limit:
            raise damaged(folder, f"{name} has {facts.bytes:,} bytes; at most {limit:,} are read")
        if path.stat().st_size != facts.bytes or file_facts(path).sha256 != facts.sha256:
            raise damaged(folder, f"{name} does not match its checksum")
    for path in sorted(folder.iterdir()):
        known = path.name in manifest.files or path.name == MANIFEST
        if not known and not path.name.startswith(".") and path.suffix != TOLERATED_SUFFIX:
            raise BundleError(f"bundle {folder} holds {path.name}, which is not a part of it.\nMove it elsewhere")


def _limit(name: str) -> int | None:
    """Returns the largest size in bytes of a file; None for tensors, whose size the shapes bound."""
    if name in WEIGHTS.values():
        return None
    return MAX_CONFIG_BYTES if name in (ADAPTER_CONFIG, MODEL_CONFIG, "config.json") else MAX_TOKENIZER_BYTES


def _method(folder: Path, manifest: Manifest) -> Method:
    try:
        return get(manifest.method.kind)(**manifest.method.settings)
    except (RecipeError, TypeError) as error:
        raise damaged(folder, str(error).splitlines()[0]) from None


def _shape(folder: Path, manifest: Manifest) -> BackboneShape:
    """Returns the backbone's shape from the bundle's own copy of its configuration; no weights are made."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    name = "config.json" if manifest.form == "merged" else MODEL_CONFIG
    try:
        fields = json.loads((folder / name).read_bytes())
        architecture = architecture_of(str(fields["model_type"]))
        if "auto_map" in fields or any(int(fields.get(key) or 0) > MAX_LAYERS for key in LAYER_COUNTS):
            raise ValueError("it asks for foreign code, or for too many layers")
        config = AutoConfig.from_pretrained(folder / name, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RuntimeError,
        BackboneError,
    ) as error:
        raise damaged(folder, f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None
    names = [config.id2label.get(index) for index in range(config.num_labels)]
    if names != manifest.labels:
        raise damaged(
            folder, f"{name} has {config.num_labels} labels that are not the {len(manifest.labels)} of {MANIFEST}"
        )
    _check_head(folder, manifest, model, architecture)
    return shape_of(model, architecture, manifest.head)


def _check_head(folder: Path, manifest: Manifest, model: torch.nn.Module, architecture: Architecture) -> None:
    """Raises BundleError unless the head holds what every checkpoint lacks, and only modules that classify."""
    stages = [stage.name for stage in architecture.stages if stage.kind == "module"]
    allowed = {f"{stage}.{name}" for stage in stages for name, _ in model.get_submodule(stage).named_parameters()}
    always = {name for name in allowed if name.rpartition(".")[0] in architecture.new}
    odd = sorted((always - set(manifest.head)) | (set(manifest.head) - allowed))
    if odd:
        raise damaged(folder, f"{odd[0]} is wrongly in the head, or lacks there")


def _check_adapter_config(folder: Path, method: Method, shape: BackboneShape) -> None:
    """Raises BundleError if PEFT would load something else than Fleetune."""
    try:
        fields = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    except ValueError:
        raise damaged(folder, f"{ADAPTER_CONFIG} is not readable as JSON") from None
    for key, value in (method.to_peft(method.sites(shape)) or {}).items():
        if key not in fields and method.installs:
            continue  # of a later PEFT, which gives it the same default there as here
        if fields.get(key) != value:
            raise damaged(folder, f"{ADAPTER_CONFIG}: {key} is not what {MANIFEST} says")


def _read_tensors(folder: Path, manifest: Manifest, method: Method, shape: BackboneShape) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS[manifest.form]
    names = stored_names(method, shape, manifest.form)
    shapes = stored_shapes(method, shape, manifest.form)
    try:
        with safe_open(path, framework="pt") as file:
            present = set(file.keys())
            if manifest.form == "merged":
                _check_complete(folder, file, present)
            else:
                _check_names(folder, present, set(names.values()))
                size = 4 * sum(prod(shape) for shape in shapes.values()) + MAX_HEADER_BYTES
                if path.stat().st_size > size:
                    raise damaged(folder, f"{path.name} is larger than its tensors")
            own_shapes = expected_shapes(method, shape)
            return {
                own: _read_tensor(folder, file, name, shapes[own]).reshape(own_shapes[own])
                for own, name in names.items()
            }
    except SafetensorError as error:
        raise damaged(folder, f"{path.name}: {error}") from None


def _check_names(folder: Path, present: set[str], wanted: set[str]) -> None:
    if missing := sorted(wanted - present):
        raise damaged(folder, f"{len(missing)} tensors are missing, such as {missing[0]}")
    if extra := sorted(present - wanted):
        raise damaged(folder, f"{len(extra)} tensors belong to nothing, such as {extra[0]}")


def _check_complete(folder: Path, file: Any, present: set[str]) -> None:
    for name in sorted(present):
        if not torch.isfinite(file.get_tensor(name)).all():
            raise damaged(folder, f"{name} holds values that are not finite")


def _read_tensor(folder: Path, file: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    view = file.get_slice(name)
    if view.get_dtype() != "F32" or tuple(view.get_shape()) != shape:
        raise damaged(folder, f"{name} is {view.get_dtype()} {tuple(view.get_shape())}, expected F32 {shape}")
    tensor: Tensor = file.get_tensor(name)
    if not torch.isfinite(tensor).all():
        raise damaged(folder, f"{name} holds values that are not finite")
    return tensor
