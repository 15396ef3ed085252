"""From the pooled token to the logits, each trial with its own head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def checkpoint_head(
    model: nn.Module, architecture: Architecture, names: Iterable[str], labels: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the head's parameters that a checkpoint has, in the order of `labels`, and what a report must say of it.

    A classifier's last rows stand in the order of its own `id2label`. Where that names the same labels in another
    order, rows are put into ours; where it names others, they are left out, to be drawn anew.

    Args:
        model: The model as loaded.
        architecture: Its family.
        names: Which of its parameters are the head's and came with the checkpoint.
        labels: The labels in the order of the outputs; rows stay as they are where it is empty.
    """
    values = {name: model.get_parameter(name).detach().clone() for name in names}
    last = [name for name in values if name.rpartition(".")[0] == architecture.stages[-1].name]
    config: Any = model.config
    theirs = [str(config.id2label.get(number)).casefold() for number in range(config.num_labels)]
    ours = [label.casefold() for label in labels]
    if not last or not labels or ours == theirs or all(name.startswith("label_") for name in theirs):
        return values, []
    if sorted(ours) != sorted(theirs) or len(set(ours)) < len(ours):
        kept = {name: value for name, value in values.items() if name not in last}
        shown = ", ".join(config.id2label[number] for number in range(min(3, config.num_labels)))
        return kept, [f"The checkpoint's classifier is for other labels ({shown} …): it was drawn anew."]
    rows = [theirs.index(label) for label in ours]
    moved = {name: value[rows] if name in last else value for name, value in values.items()}
    return moved, ["The checkpoint's classifier has its labels in another order: its rows were put into the data's."]


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
