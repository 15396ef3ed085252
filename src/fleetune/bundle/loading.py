"""Reads a bundle back, and refuses one that is damaged or does not fit."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fleetune.bundle.configuration import MAX_CONFIG_BYTES, config_limit, config_name, described_model, shape_of_bundle
from fleetune.bundle.contents import (
    ADAPTER_CONFIG,
    MODEL_CONFIG,
    WEIGHTS,
    adapter_config,
    expected_shapes,
    form_of,
    stored_names,
    stored_shapes,
)
from fleetune.bundle.entries import MAX_CONTAINERS, read_table
from fleetune.bundle.manifest import MANIFEST, FileFacts, Manifest, damaged, file_facts, read_manifest
from fleetune.bundle.settings import settings_fault
from fleetune.engine.backbone import Backbone, load_backbone, load_tokenizer
from fleetune.engine.config import BackboneConfig
from fleetune.engine.model_config import FOREIGN
from fleetune.engine.tokenizer_files import CONFIG as TOKENIZER_CONFIG
from fleetune.engine.tokenizer_files import MAX_BYTES as MAX_TOKENIZER_BYTES
from fleetune.engine.tokenizer_files import MAX_CONFIG_BYTES as MAX_TOKENIZER_CONFIG_BYTES
from fleetune.engine.tokenizer_files import read_tokenizer
from fleetune.errors import BackboneError, BundleError, MethodError, UserError
from fleetune.methods import get
from fleetune.methods.base import BackboneShape, Method

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

MAX_HEADER_BYTES = 16 << 20
MERGED_TYPES = ("F32", "F16", "BF16")
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
        try:
            return read_tokenizer(self.folder)
        except (OSError, ValueError) as error:
            raise damaged(self.folder, f"the tokenizer: {str(error)[:300]}") from None

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
    _check_tokenizer(folder, manifest)
    method = _method(folder, manifest)
    model, architecture = described_model(folder, manifest)
    shape = shape_of_bundle(folder, manifest, model, architecture)
    if manifest.form == "merged":
        _check_complete(folder, model)
        method = get("head")()
    elif _form(folder, method, shape) != manifest.form:
        raise damaged(folder, f"{method.kind} is not stored as {manifest.form}")
    if manifest.form == "adapter":
        _check_adapter_config(folder, manifest, method, shape)
    return Bundle(folder, manifest, method, shape, _read_tensors(folder, manifest, method, shape))


def _form(folder: Path, method: Method, shape: BackboneShape) -> str:
    """Returns the form that `method` is stored in on such a backbone."""
    try:
        return form_of(method, shape)
    except MethodError as error:
        raise damaged(folder, str(error).splitlines()[0]) from None


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Raises BundleError unless the folder holds the listed files, whole and each of its own, and no others."""
    needed = {WEIGHTS[manifest.form], config_name(manifest)}
    needed |= {ADAPTER_CONFIG} if manifest.form == "adapter" else set()
    for name in sorted(needed - manifest.files.keys()):
        raise damaged(folder, f"{MANIFEST} does not list {name}")
    configurations = {"config.json", MODEL_CONFIG, ADAPTER_CONFIG}
    for name in sorted(manifest.files.keys() - needed):
        if name in configurations or name.endswith(".safetensors"):
            raise damaged(folder, f"{name} is no part of a bundle of the form {manifest.form}")
    for name, facts in manifest.files.items():
        _check_file(folder, name, facts, manifest)
    for path in sorted(folder.iterdir()):
        known = path.name in manifest.files or path.name == MANIFEST
        if not known and not path.name.startswith(".") and path.suffix != TOLERATED_SUFFIX:
            raise BundleError(f"bundle {folder} holds {path.name}, which is not a part of it.\nMove it elsewhere")


def _check_file(folder: Path, name: str, facts: FileFacts, manifest: Manifest) -> None:
    path = folder / name
    if path.is_symlink():
        raise BundleError(
            f"bundle {folder} holds {name} as a symbolic link, and nothing outside the folder is read.\n"
            f"Copy the files themselves: cp -rL {shlex.quote(str(folder))} COPY"
        )
    if not path.is_file():
        raise damaged(folder, f"{name} is missing")
    limit = _limit(name, manifest)
    if limit is not None and facts.bytes > limit:
        raise damaged(folder, f"{name} has {facts.bytes:,} bytes; at most {limit:,} are read")
    if path.stat().st_size != facts.bytes or file_facts(path).sha256 != facts.sha256:
        raise damaged(folder, f"{name} does not match its checksum")


def _limit(name: str, manifest: Manifest) -> int | None:
    """Returns the largest size in bytes of a file; None for tensors, whose size the shapes bound."""
    if name == WEIGHTS[manifest.form]:
        return None
    own = {config_name(manifest): config_limit(manifest), ADAPTER_CONFIG: MAX_CONFIG_BYTES}
    return own.get(name, MAX_TOKENIZER_CONFIG_BYTES if name == TOKENIZER_CONFIG else MAX_TOKENIZER_BYTES)


def _check_tokenizer(folder: Path, manifest: Manifest) -> None:
    """Raises BundleError where the tokenizer's configuration names code, or files by their path."""
    if TOKENIZER_CONFIG not in manifest.files:
        return
    try:
        fields = read_table(folder / TOKENIZER_CONFIG, MAX_TOKENIZER_CONFIG_BYTES, MAX_CONTAINERS)
    except (OSError, ValueError) as error:
        raise damaged(folder, f"{TOKENIZER_CONFIG}: {error}") from None
    for key, value in fields.items():
        if value is not None and (key in FOREIGN or key.endswith(("_file", "_files"))):
            raise damaged(folder, f"{TOKENIZER_CONFIG}: {key} would bring in code or files from elsewhere")


def _method(folder: Path, manifest: Manifest) -> Method:
    """Returns the method that the manifest names, if its settings are of a size that a file of tensors can have."""
    if fault := settings_fault(manifest.method.settings):
        raise damaged(folder, fault)
    try:
        return get(manifest.method.kind)(**manifest.method.settings)
    except (UserError, TypeError, ValueError) as error:
        raise damaged(folder, str(error).splitlines()[0]) from None


def _check_adapter_config(folder: Path, manifest: Manifest, method: Method, shape: BackboneShape) -> None:
    """Raises BundleError if PEFT would load something else than Fleetune."""
    try:
        fields = read_table(folder / ADAPTER_CONFIG, MAX_CONFIG_BYTES, MAX_CONTAINERS)
    except (OSError, ValueError) as error:
        raise damaged(folder, f"{ADAPTER_CONFIG}: {error}") from None
    expected = adapter_config(method, shape, manifest.backbone.model, manifest.backbone.revision)
    expected = json.loads(json.dumps(expected))
    for key, value in expected.items():
        if key not in fields and method.installs:
            continue  # of a later PEFT, which gives it the same default there as here
        if fields.get(key) != value:
            raise damaged(folder, f"{ADAPTER_CONFIG}: {key} is not what {MANIFEST} says")
    for key in sorted(fields.keys() - expected.keys()):
        raise damaged(folder, f"{ADAPTER_CONFIG}: {key[:80]} is none of what {method.kind} has")


def _read_tensors(folder: Path, manifest: Manifest, method: Method, shape: BackboneShape) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS[manifest.form]
    names = stored_names(method, shape, manifest.form)
    shapes = stored_shapes(method, shape, manifest.form)
    try:
        with safe_open(path, framework="pt") as file:
            if manifest.form != "merged":
                _check_names(folder, set(file.keys()), set(names.values()))
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


def _check_complete(folder: Path, model: torch.nn.Module) -> None:
    """Raises BundleError unless the file holds every tensor of `model`, each in its shape and finite, and no more."""
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS["merged"]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            _check_names(folder, set(file.keys()), set(shapes))
            for name, shape in shapes.items():
                view = file.get_slice(name)
                if view.get_dtype() not in MERGED_TYPES or tuple(view.get_shape()) != shape:
                    raise damaged(folder, f"{name} is {view.get_dtype()} {tuple(view.get_shape())}, expected {shape}")
                if not torch.isfinite(file.get_tensor(name)).all():
                    raise damaged(folder, f"{name} holds values that are not finite")
    except SafetensorError as error:
        raise damaged(folder, f"{path.name}: {error}") from None


def _read_tensor(folder: Path, file: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    view = file.get_slice(name)
    if view.get_dtype() != "F32" or tuple(view.get_shape()) != shape:
        raise damaged(folder, f"{name} is {view.get_dtype()} {tuple(view.get_shape())}, expected F32 {shape}")
    tensor: Tensor = file.get_tensor(name)
    if not torch.isfinite(tensor).all():
        raise damaged(folder, f"{name} holds values that are not finite")
    return tensor
