"""Logits of many texts, for several trials in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fleetune.data.tokens import Tokens
from fleetune.engine.backbone import Backbone
from fleetune.engine.layout import pack_texts
from fleetune.engine.parameters import SEPARATOR
from fleetune.methods.base import Method
from fleetune.runtime import device

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.engine.trial import Trial

TOKENS_IN_ONE_PASS = 8192
"""Real tokens of one forward pass, all trials together."""
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
    """Returns the logits `(texts, num_labels)` of each slot, given its head; its deltas are attached already."""
    lengths = tokens.lengths[texts]
    order = np.argsort(lengths, kind="stable")
    results: dict[int, NDArray[np.float32]] = {}
    with torch.inference_mode():
        for slots in _groups(backbone, list(heads)):
            for rows in _batches(order, lengths, TOKENS_IN_ONE_PASS // len(slots)):
                pack = pack_texts(tokens, [(slot, texts[rows]) for slot in slots], backbone.layout)
                logits = backbone.logits(pack, {slot: dict(heads[slot]) for slot in slots}, {})
                for slot, values in logits.items():
                    if slot not in results:
                        results[slot] = np.empty((len(texts), values.shape[1]), dtype=np.float32)
                    results[slot][rows] = values.float().cpu().numpy()
    return results


def _groups(backbone: Backbone, slots: list[int]) -> Iterator[list[int]]:
    size = len(slots) if backbone.layout == "packed" else 1
    for start in range(0, len(slots), max(1, size)):
        yield slots[start : start + size]


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
