"""Checks on a real model that texts laid end to end give what padded texts give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleetune.engine.architecture import Architecture
from fleetune.engine.dropout import ForwardState
from fleetune.engine.layout import Pack, pack_texts
from fleetune.runtime import random_stream

if TYPE_CHECKING:
    from torch import Tensor

LENGTHS = (2, 5, 17, 33)
"""Tokens of the probe's texts: shorter and longer than an attention bucket, none a multiple of another."""
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference allowed, relative to the largest value. In a float64 model Hugging Face still computes rotary
positions, root-mean-square norms and eager softmax in fp32."""


class _RandomTokens:
    """Stands in for tokenised texts: random ids, never the padding id."""

    type_ids: NDArray[np.uint8] | None = None

    def __init__(self, vocabulary: int, padding: int | None) -> None:
        self.lengths = np.array(LENGTHS, dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        first = 0 if padding is None else padding + 1
        self.input_ids = random_stream("parity").integers(first, vocabulary, int(self.offsets[-1]), dtype=np.int32)


def probe_parity(model: nn.Module, architecture: Architecture, state: ForwardState) -> tuple[float, float]:
    """Returns how far the packed layout is from the padded model, and how far it may be; both relative.

    The padded model is the plain Hugging Face one with its own eager attention, given one text at a time.
    """
    hub_model: Any = model
    config = hub_model.config
    tokens: Any = _RandomTokens(config.vocab_size, config.pad_token_id)
    everything = np.arange(len(LENGTHS))
    base = model.get_submodule(architecture.base).eval()
    single = _single(tokens)
    packed = pack_texts(tokens, [(0, everything)], "packed")
    model.to(packed.input_ids.device)
    with torch.no_grad():
        hub_model.set_attn_implementation("eager")
        expected = torch.cat([_run(base, pack, architecture, config, state)[0] for pack in single])
        hub_model.set_attn_implementation("fleetune_packed")
        try:
            got = _run(base, packed, architecture, config, state)[0]
        except (RuntimeError, TypeError, ValueError):
            return float("inf"), 0.0
    if got.shape != expected.shape:
        expected = expected[packed.starts]
    difference = float((got - expected).abs().max() / expected.abs().max())
    return difference, TOLERANCE[expected.dtype]


def probe_padding(model: nn.Module, architecture: Architecture, state: ForwardState) -> tuple[float, float]:
    """Returns how far padded texts in a batch are from single ones, and how far they may be; both relative."""
    hub_model: Any = model
    config = hub_model.config
    tokens: Any = _RandomTokens(config.vocab_size, config.pad_token_id)
    base = model.get_submodule(architecture.base).eval()
    batch = pack_texts(tokens, [(0, np.arange(len(LENGTHS)))], "padded")
    with torch.no_grad():
        hub_model.set_attn_implementation("eager")
        expected = torch.cat([_run(base, pack, architecture, config, state)[0] for pack in _single(tokens)])
        hub_model.set_attn_implementation("fleetune_padded")
        assert batch.attention_mask is not None
        got = _run(base, batch, architecture, config, state)[batch.attention_mask.bool()]
    return float((got - expected).abs().max() / expected.abs().max()), TOLERANCE[expected.dtype]


def _single(tokens: Any) -> list[Pack]:
    return [pack_texts(tokens, [(0, np.arange(text, text + 1))], "padded") for text in range(len(LENGTHS))]


def _run(base: nn.Module, pack: Pack, architecture: Architecture, config: Any, state: ForwardState) -> Tensor:
    from fleetune.engine.backbone import run_base

    first = int(config.pad_token_id) + 1 if architecture.first_position_after_padding else 0
    state.begin(pack, {})
    try:
        return run_base(base, pack, first, architecture)
    finally:
        state.end()
