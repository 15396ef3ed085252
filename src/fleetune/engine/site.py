"""A frozen module with the deltas of several trials around it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from fleetune.engine.dropout import ForwardState
from fleetune.engine.quantize import frozen_parameter
from fleetune.methods.base import Method, Site

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Delta:
    """What one trial adds at one site: a method with that trial's tensors."""

    method: Method
    site: Site
    parameters: Mapping[str, Tensor]
    module: nn.Module
    state: ForwardState
    slot: int

    def transform_input(self, x: Tensor) -> Tensor:
        """Returns the input that the frozen module is to see."""
        return self.method.transform_input(x, self._in_type_of(x), self.site) if self.method.changes_input else x

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """Returns the trial's output for its segment."""
        return self.method.forward(x, output, self._in_type_of(output), self.site, self)

    def _in_type_of(self, x: Tensor) -> dict[str, Tensor]:
        # Token ids go into an embedding: there the type is the frozen weight's.
        kind = x.dtype if x.is_floating_point() else next(self.module.parameters()).dtype
        return {name: parameter.to(kind) for name, parameter in self.parameters.items()}

    def frozen(self, name: str) -> Tensor:
        """Returns the site's frozen parameter `name`."""
        return frozen_parameter(self.module, name)

    def dropout(self, x: Tensor, rate: float) -> Tensor:
        """Returns `x` with dropout from the trial's own stream."""
        return self.state.drop(x, rate, self.slot, self.site.name)

    def virtual(self) -> Tensor:
        """Returns which virtual token stands at each place of the trial's segment; -1 for a text's own token."""
        assert self.state.pack is not None
        return self.state.pack.virtual_of(self.slot)

    def prefix(self) -> tuple[Tensor, Tensor]:
        """Returns the keys and values `(prefix_tokens, heads, head_width)` before those of each text."""
        return self.method.prefix(self.parameters, self.site)

    def replaced(self, x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Returns the frozen module's output for `x` with some of its parameters replaced."""
        return with_parameters(self.module, parameters)(x)  # type: ignore[no-any-return]


def with_parameters(module: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """Returns a module that computes as `module` does, with some of its parameters replaced; `module` stays as it is.

    Lanes use one frozen module at the same time, so it cannot lend its parameters even for a moment.
    """
    replica = copy.copy(module)
    kept = {name: own for name, own in module._parameters.items() if name not in parameters}
    replica.__dict__ |= {"_parameters": kept, **parameters}
    return replica


class SiteModule(nn.Module):
    """Takes the place of one frozen module: one product for all trials, then each trial's delta on its segment.

    Args:
        frozen: The module as the checkpoint has it.
        site: What it is.
        state: The forward pass under way.
        dim: Which dimension of a pack's input its tokens are.
    """

    def __init__(self, frozen: nn.Module, site: Site, state: ForwardState, dim: int = 1) -> None:
        super().__init__()
        self.frozen = frozen
        self.site = site
        self.state = state
        self.dim = dim
        self.deltas: dict[int, Delta] = {}

    def attach(self, slot: int, method: Method, parameters: Mapping[str, Tensor]) -> None:
        """Adds the delta of the trial in `slot`."""
        self.deltas[slot] = Delta(method, self.site, parameters, self.frozen, self.state, slot)

    def detach(self, slot: int) -> None:
        """Removes the delta of the trial in `slot`, if it has one."""
        self.deltas.pop(slot, None)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output for `x` `(1, tokens, …)` or `(texts, longest, …)`, each segment by its own trial."""
        pack = self.state.pack
        if pack is None or not self.deltas:
            return self.frozen(x)  # type: ignore[no-any-return]
        if len(pack.segments) == 1:
            return self.of_trial(pack.segments[0].slot, x)
        deltas = [self.deltas.get(segment.slot) for segment in pack.segments]
        if not any(deltas):
            return self.frozen(x)  # type: ignore[no-any-return]
        dim = self.dim
        pieces = list(x.split(pack.sizes_of(x.shape[dim]), dim=dim))
        if all(delta is not None and delta.method.replaces_output for delta in deltas):
            return torch.cat([delta.forward(p, p) for delta, p in zip(deltas, pieces, strict=True) if delta], dim=dim)
        if any(delta is not None and delta.method.changes_input for delta in deltas):
            pieces = [delta.transform_input(p) if delta else p for delta, p in zip(deltas, pieces, strict=True)]
            x = torch.cat(pieces, dim=dim)
        outputs = self.frozen(x).split([piece.shape[dim] for piece in pieces], dim=dim)
        rows = zip(deltas, pieces, outputs, strict=True)
        return torch.cat([delta.forward(piece, out) if delta else out for delta, piece, out in rows], dim=dim)

    def of_trial(self, slot: int, x: Tensor) -> Tensor:
        """Returns the output for `x` that belongs to one trial whole."""
        delta = self.deltas.get(slot)
        if delta is None:
            return self.frozen(x)  # type: ignore[no-any-return]
        if delta.method.replaces_output:
            return delta.forward(x, x)
        x = delta.transform_input(x)
        return delta.forward(x, self.frozen(x))
