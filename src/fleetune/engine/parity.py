"""Checks on a real model that a layout gives what the plain model gives, and chooses by that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from fleetune.data.tokens import Tokens
from fleetune.engine.architecture import Architecture
from fleetune.engine.attention import PACKED, PADDED
from fleetune.engine.dropout import ForwardState
from fleetune.engine.layout import Layout, Pack, pack_texts
from fleetune.engine.relative import set_attention
from fleetune.errors import BackboneError
from fleetune.runtime import random_stream

if TYPE_CHECKING:
    from torch import Tensor

LENGTHS = (2, 5, 17, 33)
"""Tokens of the probe's texts: shorter and longer than an attention bucket, none a multiple of another."""
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference allowed, relative to the largest value. In a float64 model Hugging Face still computes rotary
positions, root-mean-square norms and eager softmax in fp32."""

IMPLEMENTATIONS: dict[Layout, str] = {"packed": PACKED, "padded": PADDED}
"""The attention function of each layout, by its name in transformers."""


def _random_tokens(vocabulary: int, padding: int | None) -> Tokens:
    """Returns texts of random ids, never the padding id."""
    lengths = np.array(LENGTHS, dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    first = 0 if padding is None else padding + 1
    ids = random_stream("parity").integers(first, vocabulary, int(offsets[-1]), dtype=np.int32)
    return Tokens(ids, None, offsets, lengths, Path())


def choose_layout(wanted: str, model: nn.Module, architecture: Architecture, state: ForwardState) -> tuple[Layout, str]:
    """Returns the layout for a model, and why; `wanted` is what the recipe asks for, or `auto`.

    Raises:
        BackboneError: If the layout asked for changes the model's output, or none does not.
    """
    reason = "the recipe asks for it"
    if wanted != "padded":
        difference, tolerance = probe_parity(model, architecture, state, "packed")
        if difference <= tolerance:
            return "packed", f"equal to the padded model within {difference:.1e} of the largest value"
        if wanted == "packed":
            raise BackboneError(
                f'layout = "packed" changes this model\'s output by {difference:.1e} of the largest value; '
                f'at most {tolerance:.0e} is allowed.\nLeave layout out, or set it to "padded"'
            )
        reason = f"the packed layout differs by {difference:.1e} of the largest value from the padded model"
    difference, tolerance = probe_parity(model, architecture, state, "padded")
    if difference <= tolerance:
        return "padded", reason
    import transformers

    raise BackboneError(
        f"this model computes otherwise here than in transformers {transformers.__version__}, by {difference:.1e} of "
        f"the largest value; at most {tolerance:.0e} is allowed.\nPlease report it with the model's config.json"
    )


def probe_parity(
    model: nn.Module, architecture: Architecture, state: ForwardState, layout: Layout
) -> tuple[float, float]:
    """Returns how far a layout is from the plain model, and how far it may be; both relative.

    The plain model is the Hugging Face one with its own eager attention, which is given one text at a time and finds
    positions and masks by itself.
    """
    hub_model: Any = model
    config = hub_model.config.get_text_config()
    tokens = _random_tokens(config.vocab_size, config.pad_token_id)
    everything = np.arange(len(LENGTHS))
    base = model.get_submodule(architecture.base).eval()
    pack = pack_texts(tokens, [(0, everything)], layout)
    model.to(pack.input_ids.device)
    with torch.no_grad():
        set_attention(model, architecture, "eager")
        single = [pack_texts(tokens, [(0, everything[text : text + 1])], "padded") for text in everything]
        expected = torch.cat([_plain(base, text, architecture) for text in single])
        set_attention(model, architecture, IMPLEMENTATIONS[layout])
        try:
            got = _ours(base, pack, architecture, config, state)
        except (RuntimeError, TypeError, ValueError):
            return float("inf"), 0.0
    if got.shape != expected.shape:
        expected = expected[pack.starts]
    difference = float((got - expected).abs().max() / expected.abs().max())
    return difference, TOLERANCE[expected.dtype]


def _plain(base: nn.Module, text: Pack, architecture: Architecture) -> Tensor:
    from fleetune.engine.backbone import without_pooler

    extra = {"use_cache": False} if architecture.pool == "last" else {}
    hidden: Tensor = without_pooler(base)(input_ids=text.input_ids, attention_mask=text.attention_mask, **extra)[0]
    return hidden[0]


def _ours(base: nn.Module, pack: Pack, architecture: Architecture, config: Any, state: ForwardState) -> Tensor:
    """Returns the hidden states of the texts' own tokens, `(tokens, width)`."""
    from fleetune.engine.backbone import run_base

    first = int(config.pad_token_id) + 1 if architecture.first_position_after_padding else 0
    state.begin(pack, {})
    try:
        hidden = run_base(base, pack, first, architecture)
    finally:
        state.end()
    return hidden[0] if pack.attention_mask is None else hidden[pack.attention_mask.bool()]
