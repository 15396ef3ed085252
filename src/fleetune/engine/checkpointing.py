"""Gradient checkpointing: a layer keeps its input alone, and is computed again in the backward pass.

After Chen et al., 2016 (arXiv:1604.06174). The numbers stay the same: dropout masks are functions of trial, step and
place, so the second computation is put back to where the first one stood.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fleetune.engine.dropout import ForwardState

INSIDE_ANOTHER = re.compile(r"(^|\.)\d+\.")
"""In the path of what lies inside an entry of a list, and so inside a layer."""


def allow_checkpointing(base: nn.Module, state: ForwardState) -> None:
    """Makes the layers of `base` keep nothing but their input wherever `state.checkpointing` is set."""
    for layer in _layers(base):
        layer.forward = _checkpointed(layer.forward, state)


def _layers(base: nn.Module) -> Iterator[nn.Module]:
    for name, module in base.named_modules():
        parent = base.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, nn.ModuleList) and not INSIDE_ANOTHER.search(name):
            yield module


def _checkpointed(forward: Callable[..., Any], state: ForwardState) -> Callable[..., Any]:
    def layer(*args: Any, **kwargs: Any) -> Any:
        if not (state.checkpointing and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        passage = state.passage()

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            # The backward pass may run in a thread of its own, and runs when the forward pass has ended.
            return nullcontext(), state.resumed(passage)

        # What PEFT's own modules draw from torch's generator must be drawn again as it was.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=True, context_fn=contexts, **kwargs)

    return layer
