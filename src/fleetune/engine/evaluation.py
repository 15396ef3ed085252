"""Logits of many texts, for several trials in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fleetune.data.tokens import Tokens
from fleetune.engine.backbone import Backbone
from fleetune.engine.lanes import lanes
from fleetune.engine.layout import pack_sequences
from fleetune.engine.logits import KeptLogits
from fleetune.engine.parameters import SEPARATOR
from fleetune.engine.windows import Windows
from fleetune.methods.base import Method
from fleetune.runtime import device

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.engine.trial import Trial

SLOT_APART = -1
"""Slot of tensors that belong to no fleet."""
PASSES_AT_ONCE = 512
"""Whose logits wait in memory to be put where they are kept."""


class EvaluationStoppedError(Exception):
    """An evaluation was left because the fleet is to stop; nothing of it is kept."""


Pass = tuple[list[int], NDArray[np.int64]]
"""Slots, and the sequences that run for each of them."""


def predict_logits(
    backbone: Backbone, trials: Sequence[Trial], tokens: Tokens, texts: NDArray[np.int64]
) -> dict[int, NDArray[np.float32]]:
    """Returns each trial's logits `(texts, num_labels)` by slot, in the order of `texts`.

    Texts run in order of length, so that a pass holds texts of about one length; one pass holds a batch of texts
    for as many trials as fit.
    """
    kept = keep_logits(backbone, trials, tokens, texts, None)
    return {slot: logits.array() for slot, logits in kept.items()}


def keep_logits(
    backbone: Backbone,
    trials: Sequence[Trial],
    tokens: Tokens,
    texts: NDArray[np.int64],
    folder: Path | None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[int, KeptLogits]:
    """Returns what `predict_logits` does, but logits of many texts are put into files in `folder` as they come.

    Raises:
        EvaluationStoppedError: If `is_stopped`, which is asked before each pass.
    """
    heads = {trial.slot: trial.parameters.head for trial in trials}
    return _logits_by_slot(backbone, heads, tokens, texts, folder, is_stopped)


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
        return _logits_by_slot(backbone, {SLOT_APART: head}, tokens, chosen, None)[SLOT_APART].array()
    finally:
        backbone.detach(SLOT_APART)


def _logits_by_slot(
    backbone: Backbone,
    heads: Mapping[int, Mapping[str, Tensor]],
    tokens: Tokens,
    texts: NDArray[np.int64],
    folder: Path | None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[int, KeptLogits]:
    """Returns the logits `(texts, num_labels)` of each slot, given its head; its deltas are attached already.

    Windows of long texts run one by one, like texts, and are pooled at the end: no text makes a pass large.
    """
    sequences, counts = tokens.sequences_of(texts), tokens.sequence_counts[texts]
    results: dict[int, KeptLogits] = {}
    passes = _passes(backbone, list(heads), tokens.sequence_lengths[sequences])

    def predict(item: Pass) -> dict[int, NDArray[np.float32]]:
        if is_stopped():
            raise EvaluationStoppedError
        slots, rows = item
        with torch.inference_mode():
            batches = [(slot, sequences[rows]) for slot in slots]
            pack = pack_sequences(tokens, batches, backbone.layout, multiple=backbone.pack_multiple)
            logits = backbone.logits(pack, {slot: dict(heads[slot]) for slot in slots}, {})
            return {slot: values.float().cpu().numpy() for slot, values in logits.items()}

    for part in _in_rounds(passes):
        for (_, rows), logits in zip(part, lanes().map(predict, part, backbone.serves_lanes), strict=True):
            for slot, values in logits.items():
                if slot not in results:
                    results[slot] = KeptLogits(len(sequences), values.shape[1], folder)
                results[slot].put(rows, values)
    if len(sequences) == len(texts):
        return results
    windows = Windows(torch.from_numpy(counts), tokens.pool)
    return {slot: _pooled(results.pop(slot), windows, folder) for slot in list(results)}


def _passes(backbone: Backbone, slots: list[int], lengths: NDArray[np.int64]) -> list[Pass]:
    """Returns which sequences run together, those of about one length, for which slots."""
    order = np.argsort(lengths, kind="stable")
    with_virtual = lengths + backbone.most_virtual_tokens
    groups = _groups(backbone, slots)
    limits = {tokens_in_one_pass() // len(group) for group in groups}
    batches = {limit: list(_batches(order, with_virtual, limit)) for limit in limits}
    return [(group, rows) for group in groups for rows in batches[tokens_in_one_pass() // len(group)]]


def _in_rounds(passes: list[Pass]) -> Iterator[list[Pass]]:
    """Yields runs of passes, even in number: a pass alone would be computed by all lanes' cores, and otherwise."""
    rounds = -(-len(passes) // PASSES_AT_ONCE)
    for number in range(rounds):
        yield passes[len(passes) * number // rounds : len(passes) * (number + 1) // rounds]


def _pooled(logits: KeptLogits, windows: Windows, folder: Path | None) -> KeptLogits:
    values = windows.pooled(torch.from_numpy(np.array(logits.array()))).numpy()
    pooled = KeptLogits(len(values), values.shape[1], folder)
    pooled.put(np.arange(len(values)), values)
    return pooled


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
