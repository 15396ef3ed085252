"""Writes a bundle whole or not at all."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import fleetune
from fleetune.bundle.contents import (
    ADAPTER_CONFIG,
    MODEL_CONFIG,
    WEIGHTS,
    adapter_config,
    as_stored,
    expected_shapes,
    form_of,
    stored_names,
    stored_shapes,
)
from fleetune.bundle.manifest import (
    MANIFEST,
    BackboneFacts,
    FileFacts,
    Form,
    Manifest,
    MethodFacts,
    TokenizerFacts,
    file_facts,
)
from fleetune.bundle.merging import merge_into
from fleetune.bundle.plain import labelled_config, plain_model
from fleetune.bundle.verification import full_precision_logits, probe_texts, verify_bundle
from fleetune.data.arrays import LabelType
from fleetune.data.cutting import Cutting
from fleetune.data.writing import write_bytes
from fleetune.engine.backbone import Backbone
from fleetune.engine.embedded import PREFIX
from fleetune.engine.quantize import round_weights
from fleetune.engine.silence import quiet
from fleetune.errors import BundleError
from fleetune.methods.base import BackboneShape, Method

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from fleetune.data.tokens import Tokens

DEFAULT_THRESHOLD = 0.5
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class _Contents:
    """What one bundle is to hold; see `save_bundle` for each."""

    backbone: Backbone
    method: Method
    tensors: Mapping[str, Tensor]
    labels: list[str]
    tokenizer: PreTrainedTokenizerBase | None
    max_tokens: int
    form: Form
    problem_type: str

    @property
    def shape(self) -> BackboneShape:
        """Shape of the backbone."""
        return self.backbone.shape

    @property
    def model_name(self) -> str:
        """Name under which the backbone is found again: a folder by its absolute path."""
        name = self.backbone.config.model
        is_folder = not name.startswith(PREFIX) and Path(name).expanduser().is_dir()
        return str(Path(name).expanduser().resolve()) if is_folder else name


def save_bundle(
    folder: Path,
    backbone: Backbone,
    method: Method,
    tensors: Mapping[str, Tensor],
    labels: Sequence[str],
    *,
    multi_label: bool = False,
    pairs: bool = False,
    max_tokens: int = 128,
    long_texts: Cutting | None = None,
    training: Mapping[str, Any] | None = None,
    thresholds: Sequence[float] | None = None,
    positive_threshold: float | None = None,
    temperature: float = 1.0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    label_type: LabelType = "str",
    precision: str | None = None,
    probe: Tokens | None = None,
    merge: bool = False,
    overwrite: bool = False,
) -> float | None:
    """Saves a classifier in `folder`; returns the largest difference of a logit after reloading, None without `probe`.

    The folder is there whole and proven, or as it was before. Tensors are stored in fp32.

    Args:
        folder: The bundle's folder; it must not exist or be empty, or be a bundle if `overwrite`.
        backbone: The model that it was trained on, in any precision.
        method: How it was trained.
        tensors: As `TrialParameters.state` gives them.
        labels: Names in the order of the outputs.
        multi_label: Whether a text may have several labels.
        pairs: Whether a text is a pair.
        max_tokens: Longest sequence, special tokens included.
        long_texts: What became of longer texts; if absent they were cut.
        training: Summary of the training, for `fleetune.json`.
        thresholds: One a label if `multi_label`, for calibrated probabilities; 0.5 each if absent.
        positive_threshold: Of two labels, the calibrated probability from which the second is given.
        temperature: What logits are divided by before they become probabilities.
        tokenizer: Saved along; where absent, the backbone's own is to be used.
        label_type: What the labels are in Python.
        precision: Precision of the training; the backbone's if absent.
        probe: Texts whose logits are compared with those of the reloaded bundle; at most 64 of them.
        merge: Whether to write a complete model with the deltas worked into its weights; those of a quantised
            backbone as they were rounded, in full.
        overwrite: Whether a bundle in `folder` may be replaced.

    Raises:
        BundleError: If the folder is taken, or tensors and labels do not fit the backbone.
        MethodError: If the method cannot be merged.
        ExportMismatchError: If the reloaded bundle gives other logits.
    """
    folder = Path(folder)
    _check_target(folder, overwrite)
    own, stored = as_stored(method, tensors)
    form: Form = "merged" if merge else form_of(own, backbone.shape)
    problem = "multi_label_classification" if multi_label else "single_label_classification"
    contents = _Contents(backbone, own, stored, list(labels), tokenizer, max_tokens, form, problem)
    _check_tensors(contents)
    _check_labels(contents)
    if multi_label and thresholds is None:
        thresholds = [DEFAULT_THRESHOLD] * len(contents.labels)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_model(beside, contents)
        tokenizer_facts = _write_tokenizer(beside, contents)
        manifest = Manifest(
            fleetune_version=fleetune.__version__,
            form=form,
            labels=contents.labels,
            label_type=label_type,
            multi_label=multi_label,
            thresholds=None if thresholds is None else [float(value) for value in thresholds],
            positive_threshold=positive_threshold,
            temperature=temperature,
            pairs=pairs,
            max_tokens=max_tokens,
            long_texts=long_texts or Cutting(),
            backbone=_backbone_facts(contents, precision),
            tokenizer=tokenizer_facts,
            head=_saved_head(contents),
            method=_method_facts(method, own),
            training=_jsonable(dict(training or {})),
            files=_all_files(beside),
        )
        write_bytes(beside / MANIFEST, manifest.to_bytes())
        difference = None if probe is None else _prove(beside, backbone, method, tensors, probe)
        _sync(beside)
        # safetensors and tempfile keep files to their owner; a bundle is there to be handed on.
        beside.chmod(0o755)
        for file in beside.iterdir():
            file.chmod(0o644)
        _put_in_place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return difference


def _check_target(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} exists and is no bundle, so it is not replaced.\nGive another folder")
    if not overwrite:
        raise BundleError(f"{folder} holds a bundle already.\nGive another folder, or delete it first")


def _check_tensors(contents: _Contents) -> None:
    shapes = expected_shapes(contents.method, contents.shape)
    odd = sorted(contents.tensors.keys() ^ shapes.keys())
    if odd:
        raise BundleError(f"{len(odd)} tensors do not belong to {contents.method.kind} here, or lack: {odd[0]}")
    for name, shape in shapes.items():
        tensor = contents.tensors[name]
        if tuple(tensor.shape) != shape:
            raise BundleError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        if not torch.isfinite(tensor.float()).all():
            raise BundleError(f"{name} holds values that are not finite; this trial diverged.\nLower learning_rate")


def _check_labels(contents: _Contents) -> None:
    model_config: Any = contents.backbone.model.config
    if len(contents.labels) != model_config.num_labels:
        raise BundleError(f"{len(contents.labels)} labels were given for {model_config.num_labels} outputs")
    if len(set(contents.labels)) != len(contents.labels):
        raise BundleError("a label is named twice")


def _write_model(folder: Path, contents: _Contents) -> None:
    from safetensors.torch import save_file

    config = labelled_config(contents.backbone, contents.labels, contents.problem_type, contents.tokenizer)
    if contents.form == "merged":
        model = plain_model(contents.backbone.folder, config)
        round_weights(model, contents.backbone.architecture.base, contents.backbone.config.quantize)
        merge_into(model, contents.method, contents.shape, contents.tensors)
        with quiet():
            # Under the names of the model's own modules, which loading holds the file to.
            model.save_pretrained(folder, max_shard_size="1000GB", save_original_format=False)
        return
    names = stored_names(contents.method, contents.shape, contents.form)
    shapes = stored_shapes(contents.method, contents.shape, contents.form)
    stored = {
        names[name]: tensor.detach().to("cpu", torch.float32).reshape(shapes[name]).contiguous()
        for name, tensor in contents.tensors.items()
    }
    save_file(stored, folder / WEIGHTS[contents.form], metadata={"format": "pt"})
    config.save_pretrained(folder)
    (folder / "config.json").rename(folder / MODEL_CONFIG)
    if contents.form == "adapter":
        revision = contents.backbone.config.revision
        fields = adapter_config(contents.method, contents.shape, contents.model_name, revision)
        write_bytes(folder / ADAPTER_CONFIG, json.dumps(fields, indent=2).encode())


def _write_tokenizer(folder: Path, contents: _Contents) -> TokenizerFacts | None:
    if contents.tokenizer is None:
        return None
    tokenizer: Any = copy.deepcopy(contents.tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # What the last call left behind would otherwise be taken for the model's own.
        backend.no_truncation()
        backend.no_padding()
    tokenizer.model_max_length = contents.max_tokens
    tokenizer.save_pretrained(folder)
    file = folder / TOKENIZER_FILE
    return TokenizerFacts(
        tokenizer_class=type(tokenizer).__name__,
        sha256=file_facts(file).sha256 if file.exists() else None,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
    )


def _backbone_facts(contents: _Contents, precision: str | None) -> BackboneFacts:
    backbone = contents.backbone
    return BackboneFacts.model_validate(
        {
            "model": contents.model_name,
            "revision": backbone.config.revision,
            "hash": backbone.model_hash,
            "model_type": backbone.shape.model_type,
            "layout": backbone.layout,
            "precision": precision or backbone.precision,
            "quantize": backbone.config.quantize,
            "resident": backbone.config.resident,
        }
    )


def _saved_head(contents: _Contents) -> list[str]:
    """Returns the names of the head's parameters; in a complete model, only those that classification always adds."""
    head = list(contents.shape.head)
    if contents.form != "merged":
        return head
    new = contents.backbone.architecture.new
    return [name for name in head if name.rpartition(".")[0] in new]


def _jsonable(value: Any) -> Any:
    """Returns `value` as JSON can hold it: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _all_files(folder: Path) -> dict[str, FileFacts]:
    odd = [path.name for path in folder.iterdir() if not path.is_file()]
    if odd:
        raise BundleError(f"the tokenizer saves a folder ({odd[0]}), which a bundle cannot hold")
    return {path.name: file_facts(path) for path in sorted(folder.iterdir())}


def _method_facts(trained: Method, stored: Method) -> MethodFacts:
    trained_as = None if stored is trained else {"kind": trained.kind, **trained.settings}
    return MethodFacts(kind=stored.kind, settings=stored.settings, source=stored.source, trained_as=trained_as)


def _prove(folder: Path, backbone: Backbone, method: Method, tensors: Mapping[str, Tensor], probe: Tokens) -> float:
    texts = probe_texts(probe)
    expected = full_precision_logits(backbone, method, tensors, probe, texts)
    return verify_bundle(folder, backbone, probe, expected, texts=texts)


def _sync(folder: Path) -> None:
    """Waits until the files are on the disk, so that the rename cannot come before them."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _put_in_place(beside: Path, folder: Path) -> None:
    """Renames `beside` to `folder`; a bundle that was there goes only when the new one stands."""
    if not folder.exists():
        beside.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.rename(old)
    try:
        beside.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
