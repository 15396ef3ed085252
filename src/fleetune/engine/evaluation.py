"""Logits of many texts, for several trials in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fleetune.data.tokens import Tokens
from fleetune.engine.backbone import Backbone
from fleetune.engine.layout import pack_texts

if TYPE_CHECKING:
    from fleetune.engine.trial import Trial

TOKENS_IN_ONE_PASS = 8192
"""Real tokens of one forward pass, all trials together."""


def predict_logits(
    backbone: Backbone, trials: Sequence[Trial], tokens: Tokens, texts: NDArray[np.int64]
) -> dict[int, NDArray[np.float32]]:
    """Returns each trial's logits `(texts, num_labels)` by slot, in the order of `texts`.

    Texts run in order of length, so that a pass holds texts of about one length; one pass holds a batch of texts
    for as many trials as fit.
    """
    lengths = tokens.lengths[texts]
    order = np.argsort(lengths, kind="stable")
    results: dict[int, NDArray[np.float32]] = {}
    with torch.inference_mode():
        for group in _groups(backbone, trials):
            for rows in _batches(order, lengths, TOKENS_IN_ONE_PASS // len(group)):
                pack = pack_texts(tokens, [(trial.slot, texts[rows]) for trial in group], backbone.layout)
                logits = backbone.logits(pack, {trial.slot: trial.parameters.head for trial in group}, {})
                for slot, values in logits.items():
                    if slot not in results:
                        results[slot] = np.empty((len(texts), values.shape[1]), dtype=np.float32)
                    results[slot][rows] = values.float().cpu().numpy()
    return results


def _groups(backbone: Backbone, trials: Sequence[Trial]) -> Iterator[Sequence[Trial]]:
    size = len(trials) if backbone.layout == "packed" else 1
    for start in range(0, len(trials), max(1, size)):
        yield trials[start : start + size]


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
