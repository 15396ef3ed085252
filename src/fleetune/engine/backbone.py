"""Loads a pretrained model, freezes it, and makes it ready for a fleet."""

from __future__ import annotations

# length: loading a model, preparing it and running it know the same parts of it
import copy
import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fleetune.engine.architecture import Architecture, architecture_of, position_limit
from fleetune.engine.attention import register_attention
from fleetune.engine.checkpointing import allow_checkpointing
from fleetune.engine.config import BackboneConfig
from fleetune.engine.dropout import FleetDropout, ForwardState, Stream
from fleetune.engine.encoder import speed_up_encoder
from fleetune.engine.head import checkpoint_head, head_logits, pool
from fleetune.engine.installed import Installation, install_trial, layout_with, remove_trial
from fleetune.engine.layout import Layout, Pack
from fleetune.engine.model_config import own_code_note, read_model_config
from fleetune.engine.parity import IMPLEMENTATIONS, choose_layout
from fleetune.engine.prefix import PREFIXES
from fleetune.engine.quantize import (
    finish_loading,
    loading_options,
    refuse_quantized_checkpoint,
    set_type,
    settle,
)
from fleetune.engine.relative import set_attention, take_over_attention
from fleetune.engine.shape import shape_of
from fleetune.engine.site import Delta, SiteModule
from fleetune.engine.source import find_folder
from fleetune.engine.tokenizer import load_tokenizer as load_tokenizer
from fleetune.engine.virtual import with_prefixes, with_virtual_tokens
from fleetune.engine.weights import check_weights, hash_model
from fleetune.errors import BackboneError
from fleetune.memory import available_bytes
from fleetune.methods.base import SHARED, BackboneShape, Method, Site
from fleetune.runtime import device, pick_precision, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

LOAD_IN_FULL_BELOW = 1_500_000_000
"""Models with fewer parameters are loaded in fp32 and probed there before they are rounded."""
LOADING_ERRORS = (OSError, ValueError, RuntimeError, ArithmeticError, TypeError, LookupError, AttributeError)
"""What the classes of transformers raise where a configuration makes no sense, or a file is damaged."""


@dataclass
class Backbone:
    """A frozen pretrained model under the trials of a fleet.

    Attributes:
        config: What the recipe says of it.
        model: The Hugging Face classification model; its own head is never used.
        architecture: Its family.
        shape: Its sites and the head.
        layout: `packed`, or `padded` where the parity probe failed or the recipe says so.
        layout_reason: Why, in a sentence.
        precision: `bf16`, `fp32` or `float64`, of the frozen weights and their products.
        folder: Where it was loaded from.
        model_hash: SHA-256 of its configuration and weights.
        head_from_checkpoint: Values of head parameters that the checkpoint has.
        notes: What a report must say of it.
    """

    config: BackboneConfig
    model: nn.Module
    architecture: Architecture
    shape: BackboneShape
    layout: Layout
    layout_reason: str
    precision: str
    folder: Path
    model_hash: str
    head_from_checkpoint: dict[str, Tensor]
    notes: list[str]
    state: ForwardState = field(default_factory=ForwardState)
    _modules: dict[str, SiteModule] = field(default_factory=dict)
    _attentions: dict[str, dict[int, Delta]] = field(default_factory=dict)
    _virtual: dict[int, int] = field(default_factory=dict)
    _prefixes: dict[int, int] = field(default_factory=dict)
    _installation: Installation | None = None
    _layouts: dict[str, tuple[Layout, str]] = field(default_factory=dict)

    @property
    def master_dtype(self) -> torch.dtype:
        """Type of trained tensors, loss and optimizer state."""
        return torch.float64 if self.precision == "float64" else torch.float32

    @property
    def pack_multiple(self) -> int:
        """What the tokens of a pack are filled up to a multiple of.

        On a processor each new number of rows in a bf16 product has code generated for it, which takes as long as
        the product; so there are to be few numbers.
        """
        return 32 if self.precision == "bf16" and device().type == "cpu" else 1

    @property
    def max_positions(self) -> int | None:
        """Longest text in tokens that the backbone takes, None where it has no bound."""
        limit = position_limit(self.model.config)
        return None if limit is None else limit - self._first_position

    @property
    def _first_position(self) -> int:
        config: Any = self.model.config
        return int(config.pad_token_id) + 1 if self.architecture.first_position_after_padding else 0

    @property
    def most_virtual_tokens(self) -> int:
        """How many tokens a method that is attached puts into each text, at most."""
        return max(self._virtual.values(), default=0)

    def attach(self, slot: int, method: Method, parameters: dict[str, dict[str, Tensor]]) -> None:
        """Puts one trial's deltas on the backbone; `parameters` are its tensors by site, the shared ones too.

        Raises:
            ValueError: If one of the trials cannot share the modules with another.
        """
        if self._installation is not None or (method.installs and (self._modules or self._prefixes)):
            raise ValueError(f"a trial of {method.kind} cannot be put beside another: one of them changes the modules")
        if method.installs:
            self._installation = install_trial(self, method, parameters)
            return
        shared = parameters.get(SHARED, {})
        for site in method.sites(self.shape):
            own = shared | parameters.get(site.name, {})
            if site.kind == "attention":
                self._attach_prefix(
                    slot, Delta(method, site, own, self.model.get_submodule(site.name), self.state, slot)
                )
            else:
                self._site_module(site).attach(slot, method, own)
        if method.virtual_tokens:
            self._virtual[slot] = method.virtual_tokens
        if method.prefix_tokens:
            self._prefixes[slot] = method.prefix_tokens

    def _attach_prefix(self, slot: int, delta: Delta) -> None:
        deltas = self._attentions.setdefault(delta.site.name, {})
        deltas[slot] = delta
        object.__setattr__(delta.module, PREFIXES, deltas)

    def detach(self, slot: int) -> None:
        """Takes one trial's deltas off."""
        if self._installation is not None:
            remove_trial(self, self._installation)
            self._installation = None
        for name, module in list(self._modules.items()):
            module.detach(slot)
            if not module.deltas:
                _replace(self.model, name, module.frozen)
                del self._modules[name]
        for deltas in self._attentions.values():
            deltas.pop(slot, None)
        self._virtual.pop(slot, None)
        self._prefixes.pop(slot, None)

    def layout_for(self, method: Method) -> tuple[Layout, str]:
        """Returns the layout in which a trial of `method` trains, and why.

        Raises:
            MethodError: If there is none, or the method does not fit.
        """
        if not method.installs:
            return self.layout, self.layout_reason
        key = json.dumps([method.kind, method.settings], sort_keys=True)
        if key not in self._layouts:
            self._layouts[key] = layout_with(self, method)
        return self._layouts[key]

    def use_layout(self, layout: Layout) -> None:
        """Makes the model ready for packs of `layout`."""
        set_attention(self.model, self.architecture, IMPLEMENTATIONS[layout])
        self.model.get_submodule(self.architecture.base).train()

    @property
    def serves_lanes(self) -> bool:
        """Whether lanes can compute on it at the same time; not with modules that hold one trial's tensors."""
        return self._installation is None

    def _site_module(self, site: Site) -> SiteModule:
        if site.name not in self._modules:
            dim = 2 if site.name.endswith(self.architecture.heads_first or ("\0",)) else 1
            module = SiteModule(self.model.get_submodule(site.name), site, self.state, dim)
            _replace(self.model, site.name, module)
            self._modules[site.name] = module
        return self._modules[site.name]

    def frozen_module(self, name: str) -> nn.Module:
        """Returns the module at path `name` as the checkpoint has it, whatever deltas are around it."""
        return self._modules[name].frozen if name in self._modules else self.model.get_submodule(name)

    def logits(
        self,
        pack: Pack,
        heads: dict[int, dict[str, Tensor]],
        streams: dict[int, Stream],
        checkpointing: bool = False,
    ) -> dict[int, Tensor]:
        """Returns each slot's logits `(texts, num_labels)` for its texts in `pack`.

        Args:
            pack: The input.
            heads: Each slot's head parameters.
            streams: Each slot's dropout stream; empty in evaluation.
            checkpointing: Whether layers keep their input alone for the backward pass.
        """
        pack = self._with_learned_tokens(pack)
        self.state.begin(pack, streams, checkpointing)
        try:
            with self._installation.running(streams) if self._installation else nullcontext():
                return self._logits(pack, heads)
        finally:
            self.state.end()

    def _with_learned_tokens(self, pack: Pack) -> Pack:
        """Returns the pack with the virtual tokens and shifted positions that its trials' methods ask for."""
        # The first token of an encoder's text speaks for it, and stays the first.
        after = 0 if self.architecture.pool == "last" else 1
        pack = with_virtual_tokens(pack, self._virtual, after, self.pack_multiple) if self._virtual else pack
        return with_prefixes(pack, self._prefixes) if self._prefixes else pack

    def _logits(self, pack: Pack, heads: dict[int, dict[str, Tensor]]) -> dict[int, Tensor]:
        pooled = pool(self._hidden(pack), pack, self.architecture, self.model.config)
        return {
            segment.slot: head_logits(
                self.model,
                self.architecture,
                pooled[segment.texts.start : segment.texts.stop],
                heads[segment.slot],
                segment.slot,
                self.state,
            )
            for segment in pack.segments
        }

    def _hidden(self, pack: Pack) -> Tensor:
        base = self.model.get_submodule(self.architecture.base)
        return run_base(base, pack, self._first_position, self.architecture)


def run_base(base: nn.Module, pack: Pack, first_position: int, architecture: Architecture) -> Tensor:
    """Returns the last hidden states `(1, tokens, width)` or `(texts, longest, width)` of the backbone itself."""
    extra: dict[str, Any] = {}
    if pack.type_ids is not None:
        extra["token_type_ids"] = pack.type_ids
    if architecture.pool == "last":
        extra["use_cache"] = False
    output = without_pooler(base)(
        input_ids=pack.input_ids,
        attention_mask=pack.attention_mask,
        position_ids=pack.positions + first_position + pack.shift,
        **extra,
    )
    return output[0]  # type: ignore[no-any-return]


def without_pooler(base: nn.Module) -> nn.Module:
    """Returns a module that computes as `base` but does not pool.

    It would take a pack for one text: the pooler is a stage of the head here. Lanes share `base`, so it stays as it is.
    """
    replica = copy.copy(base)
    replica.__dict__["_modules"] = {name: None if name == "pooler" else own for name, own in base._modules.items()}
    return replica


def load_backbone(
    config: BackboneConfig, num_labels: int, precision: str = "auto", labels: Sequence[str] = ()
) -> Backbone:
    """Returns the frozen backbone that `config` names, ready for deltas.

    Args:
        config: Folder, hub name or embedded name, revision and layout.
        num_labels: Number of the classifier's outputs.
        precision: `auto`, `bf16`, `fp32` or `float64`.
        labels: Their names, in the order of which a checkpoint's own classifier is put; as it stands if absent.

    Raises:
        BackboneError: If it cannot be found, read or used.
    """
    folder = find_folder(config)
    precision = pick_precision(precision)
    available = available_bytes()
    model, missing = _load_model(folder, config, num_labels, precision)
    model_config: Any = model.config
    architecture = architecture_of(model_config.model_type)
    head = _head_names(model, architecture, missing)
    shape = shape_of(model, architecture, head)
    own_head = [name for name in head if name not in missing]
    from_checkpoint, head_notes = checkpoint_head(model, architecture, own_head, labels)
    model.requires_grad_(False)
    state = ForwardState()
    _prepare_modules(model, architecture, state)
    if architecture.encoder is not None:
        speed_up_encoder(model.get_submodule(architecture.base), architecture.encoder, state)
    if architecture.relative is not None:
        take_over_attention(model.get_submodule(architecture.base), architecture.relative, state)
    allow_checkpointing(model.get_submodule(architecture.base), state)
    register_attention()
    layout, reason = choose_layout(config.layout, model, architecture, state)
    set_attention(model, architecture, IMPLEMENTATIONS[layout])
    _round(model.get_submodule(architecture.base), torch_dtype(precision))
    stored = settle(model, shape, config, precision, available)
    model.to(device())
    # Attention modules hand their dropout rate on only in training mode; all else is the same in both.
    model.get_submodule(architecture.base).train()
    return Backbone(
        config=config,
        model=model,
        architecture=architecture,
        shape=shape,
        layout=layout,
        layout_reason=reason,
        precision=precision,
        folder=folder,
        model_hash=hash_model(folder),
        head_from_checkpoint=from_checkpoint,
        notes=[*_notes(architecture, missing, reason), *own_code_note(folder), *head_notes, *stored],
        state=state,
    )


def _load_model(folder: Path, backbone: BackboneConfig, num_labels: int, precision: str) -> tuple[nn.Module, set[str]]:
    """Returns the classification model and the names of the parameters that the checkpoint lacks."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    check_weights(folder)
    config = read_model_config(folder, num_labels)
    architecture = architecture_of(config.model_type)
    refuse_quantized_checkpoint(config, folder)
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    # What is quantised is rounded from the checkpoint's own values, whatever the precision.
    small = stored < 4 * LOAD_IN_FULL_BELOW or backbone.quantize != "none"
    dtype = torch.float64 if precision == "float64" else torch.float32 if small else torch_dtype(precision)
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **loading_options(backbone, architecture.base),
        )
    except LOADING_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(f"{folder} cannot be loaded: {reason}") from None
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
    for path in architecture_of(config.model_type).spare:
        _replace(model, path, None)
    finish_loading(model, dtype)
    mismatched = {item[0] if isinstance(item, tuple) else item for item in info.get("mismatched_keys", ())}
    return model, set(info["missing_keys"]) | mismatched


def _head_names(model: nn.Module, architecture: Architecture, missing: set[str]) -> list[str]:
    """Returns the head's parameters: what stands between backbone and logits and is new, or lacks in the checkpoint.

    Raises:
        BackboneError: If a part of the backbone itself is missing: the checkpoint is broken.
    """
    stages = [stage.name for stage in architecture.stages if stage.kind == "module"]
    head = [
        f"{stage}.{name}"
        for stage in stages
        for name, _ in model.get_submodule(stage).named_parameters()
        if stage in architecture.new or f"{stage}.{name}" in missing
    ]
    unused = (f"{architecture.base}.pooler", *architecture.spare)
    broken = [name for name in sorted(missing) if name not in head and not name.startswith(unused)]
    if broken:
        raise BackboneError(
            f"the checkpoint lacks {len(broken)} parameters of the backbone, such as {broken[0]}.\n"
            "It is incomplete, or for another architecture than its config.json says"
        )
    return head


def _prepare_modules(model: nn.Module, architecture: Architecture, state: ForwardState) -> None:
    """Gives every attention module the state, and every dropout of the backbone its own stream."""
    base = model.get_submodule(architecture.base)
    for name, module in list(base.named_modules()):
        path = f"{architecture.base}.{name}"
        if isinstance(module, nn.Dropout):
            _replace(model, path, FleetDropout(module.p, path, state))
        else:
            object.__setattr__(module, "fleetune_state", state)
            object.__setattr__(module, "fleetune_place", f"{path}.attention_weights")


def _replace(model: nn.Module, path: str, module: nn.Module | None) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _round(base: nn.Module, dtype: torch.dtype) -> None:
    # Buffers keep their type: rotary frequencies in bf16 would move every position. So does the pooler, which works
    # on one token a text, with the heads, in their type.
    for name, parameter in base.named_parameters():
        if parameter.is_floating_point() and not name.startswith("pooler."):
            parameter.data = parameter.data.to(dtype)
    set_type(base, dtype)


def _notes(architecture: Architecture, missing: Iterable[str], reason: str) -> list[str]:
    notes = [f"Layout: {reason}."]
    expected = set(architecture.new)
    extra = sorted({name.rpartition(".")[0] for name in missing} - expected - {f"{architecture.base}.pooler"})
    known = {stage.name for stage in architecture.stages}
    trained = [name for name in extra if name in known]
    if trained:
        notes.append(f"The checkpoint lacks {', '.join(trained)}: trained and saved with the head.")
    return notes
