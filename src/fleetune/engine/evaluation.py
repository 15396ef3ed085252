"""Logits of many texts, for several trials in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fleetune.data.tokens import Tokens
from fleetune.engine.backbone import Backbone
from fleetune.engine.lanes import lanes
from fleetune.engine.layout import pack_sequences
from fleetune.engine.parameters import SEPARATOR
from fleetune.engine.windows import Windows
from fleetune.methods.base import Method
from fleetune.runtime import device

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.engine.trial import Trial

SLOT_APART = -1
"""Slot of tensors that belong to no fleet."""


def predict_logits(
    backbone: Backbone, trials: Sequence[Trial], tokens: Tokens, texts: NDArray[np.int64]
) -> dict[int, NDArray[np.float32]]:
    """Returns each trial's logits `(texts, num_labels)` by slot, in the order of `texts`.

    Texts run in order of length, so that a pass holds texts of about one length; one pass holds a batch of texts
    for as many trials as fit.
    """
    return logits_by_slot(backbone, {trial.slot: trial.parameters.head for trial in trials}, tokens, texts)


def trial_logits(
    backbone: Backbone,
    method: Method,
    tensors: Mapping[str, Tensor],
    tokens: Tokens,
    texts: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Returns the logits `(texts, num_labels)` of one set of trained tensors, as `TrialParameters.state` gives them.

    Args:
        backbone: The frozen model; it is left as it was.
        method: What the tensors belong to.
        tensors: Deltas as `site::name`, and the head by its own names.
        tokens: The texts.
        texts: Which of them; all if absent.
    """
    own = {name: tensor.to(device(), backbone.master_dtype) for name, tensor in tensors.items()}
    by_site: dict[str, dict[str, Tensor]] = {}
    for name, tensor in own.items():
        site, separator, parameter = name.partition(SEPARATOR)
        if separator:
            by_site.setdefault(site, {})[parameter] = tensor
    head = {name: tensor for name, tensor in own.items() if SEPARATOR not in name}
    backbone.attach(SLOT_APART, method, by_site)
    try:
        chosen = np.arange(len(tokens)) if texts is None else texts
        return logits_by_slot(backbone, {SLOT_APART: head}, tokens, chosen)[SLOT_APART]
    finally:
        backbone.detach(SLOT_APART)


def logits_by_slot(
    backbone: Backbone, heads: Mapping[int, Mapping[str, Tensor]], tokens: Tokens, texts: NDArray[np.int64]
) -> dict[int, NDArray[np.float32]]:
    """Returns the logits `(texts, num_labels)` of each slot, given its head; its deltas are attached already.

    Windows of long texts run one by one, like texts, and are pooled at the end: no text makes a pass large.
    """
    sequences, counts = tokens.sequences_of(texts), tokens.sequence_counts[texts]
    lengths = tokens.sequence_lengths[sequences]
    order = np.argsort(lengths, kind="stable")
    with_virtual = lengths + backbone.most_virtual_tokens
    results: dict[int, NDArray[np.float32]] = {}
    passes = [
        (slots, rows)
        for slots in _groups(backbone, list(heads))
        for rows in _batches(order, with_virtual, tokens_in_one_pass() // len(slots))
    ]

    def predict(item: tuple[list[int], NDArray[np.int64]]) -> dict[int, NDArray[np.float32]]:
        slots, rows = item
        with torch.inference_mode():
            batches = [(slot, sequences[rows]) for slot in slots]
            pack = pack_sequences(tokens, batches, backbone.layout, multiple=backbone.pack_multiple)
            logits = backbone.logits(pack, {slot: dict(heads[slot]) for slot in slots}, {})
            return {slot: values.float().cpu().numpy() for slot, values in logits.items()}

    for (_, rows), logits in zip(passes, lanes().map(predict, passes, backbone.serves_lanes), strict=True):
        for slot, values in logits.items():
            if slot not in results:
                results[slot] = np.empty((len(sequences), values.shape[1]), dtype=np.float32)
            results[slot][rows] = values
    if len(sequences) == len(texts):
        return results
    windows = Windows(torch.from_numpy(counts), tokens.pool)
    return {slot: windows.pooled(torch.from_numpy(values)).numpy() for slot, values in results.items()}


def tokens_in_one_pass() -> int:
    """Returns how many real tokens one forward pass holds: on a processor as many as its caches like, on a GPU many."""
    return 1536 if device().type == "cpu" else 16384


def _groups(backbone: Backbone, slots: list[int]) -> list[list[int]]:
    if shares_packs(backbone):
        return [slots] if slots else []
    return [[slot] for slot in slots]


def shares_packs(backbone: Backbone) -> bool:
    """Returns whether trials share a forward pass: on a GPU, whose products are faster the larger they are.

    A core reaches its full rate at a few hundred tokens, and its caches hold no more.
    """
    return backbone.layout == "packed" and device().type != "cpu"


def _batches(order: NDArray[np.int64], lengths: NDArray[np.int64], limit: int) -> Iterator[NDArray[np.int64]]:
    """Yields runs of `order` that hold at most `limit` tokens, and at least one text."""
    start, held = 0, 0
    for position, row in enumerate(order):
        length = int(lengths[row])
        if held + length > limit and position > start:
            yield order[start:position]
            start, held = position, 0
        held += length
    if start < len(order):
        yield order[start:]
