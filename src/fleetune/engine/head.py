"""From the pooled token to the logits, each trial with its own head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.activations import get_activation

from fleetune.engine.architecture import Architecture, Stage, dropout_rate
from fleetune.engine.dropout import ForwardState
from fleetune.engine.layout import Pack
from fleetune.engine.site import SiteModule, with_parameters

if TYPE_CHECKING:
    from torch import Tensor


def pool(hidden: Tensor, pack: Pack, architecture: Architecture, config: Any) -> Tensor:
    """Returns each text's vector `(texts, width)` from the last hidden states of a pack.

    The last token of a text is found by its true length, never by looking for padding.
    """
    if architecture.pool == "config" and config.classifier_pooling == "mean":
        return _mean(hidden, pack)
    if pack.layout == "packed" and hidden.shape[1] == len(pack.lengths):
        return hidden[0]
    offset = pack.lengths - 1 if architecture.pool == "last" else torch.zeros_like(pack.lengths)
    if pack.layout == "packed":
        return hidden[0].index_select(0, pack.starts + offset)
    return hidden[torch.arange(len(offset), device=hidden.device), offset]


def _mean(hidden: Tensor, pack: Pack) -> Tensor:
    """Returns the mean over each text's own tokens; virtual ones do not speak for it."""
    lengths = pack.lengths if pack.virtual_counts is None else pack.lengths - pack.virtual_counts
    own = None if pack.virtual is None else (pack.virtual < 0).unsqueeze(-1)
    if pack.attention_mask is not None:
        real = pack.attention_mask.unsqueeze(-1)
        return (hidden * (real if own is None else real * own)).sum(dim=1) / lengths.unsqueeze(-1)
    texts = torch.repeat_interleave(torch.arange(len(pack.lengths), device=hidden.device), pack.lengths)
    counted = hidden[0, : len(texts)] if own is None else (hidden * own)[0, : len(texts)]
    total = hidden.new_zeros(len(pack.lengths), hidden.shape[-1]).index_add(0, texts, counted)
    return total / lengths.unsqueeze(-1)


def head_logits(
    model: nn.Module,
    architecture: Architecture,
    pooled: Tensor,
    trained: Mapping[str, Tensor],
    slot: int,
    state: ForwardState,
) -> Tensor:
    """Returns one trial's logits `(texts, num_labels)` in the type of its head; those of windows are pooled.

    Args:
        model: The classification model whose modules the stages name.
        architecture: Its family.
        pooled: `(texts, width)` of this trial's texts, or `(sequences, width)` where some are read in windows.
        trained: The trial's head parameters by their name in the model.
        slot: The trial's slot.
        state: The forward pass under way.
    """
    x = pooled.to(next(iter(trained.values())).dtype)
    for number, stage in enumerate(architecture.stages):
        if stage.kind == "dropout":
            x = state.drop(x, _head_rate(stage, model.config, slot, state), slot, f"head.{number}")
        elif stage.kind == "activation":
            x = get_activation(getattr(model.config, stage.name, stage.name))(x)
        else:
            x = _module(model, stage.name, x, trained, slot)
    windows = None if state.pack is None else state.pack.segment_of(slot).windows
    return x if windows is None else windows.pooled(x)


def _head_rate(stage: Stage, config: Any, slot: int, state: ForwardState) -> float:
    stream = state.streams.get(slot)
    if stream is None:
        return 0.0
    return stream.head_rate if stream.head_rate is not None else dropout_rate(config, stage.rates)


def _module(model: nn.Module, path: str, x: Tensor, trained: Mapping[str, Tensor], slot: int) -> Tensor:
    module = model.get_submodule(path)
    if isinstance(module, SiteModule):
        return module.of_trial(slot, x)
    prefix = path + "."
    own = {name.removeprefix(prefix): tensor for name, tensor in trained.items() if name.startswith(prefix)}
    return with_parameters(module, own)(x)  # type: ignore[no-any-return]
