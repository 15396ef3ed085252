"""The tensors that one trial trains, in flat buffers so that optimizer and clipping see few large tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import TYPE_CHECKING

import torch

from fleetune.runtime import random_stream

if TYPE_CHECKING:
    from torch import Tensor

SEPARATOR = "::"
"""Between a site's name and a parameter's name in `TrialParameters.tensors`."""


@dataclass(frozen=True)
class ParameterPlan:
    """One tensor to be made: `initial` gives its start, `decay` whether weight decay acts on it."""

    shape: tuple[int, ...]
    initial: Callable[[], Tensor]
    decay: bool


@dataclass(frozen=True)
class Leaves:
    """Leaves of one computation: views of a trial's values, with gradients of their own.

    Attributes:
        tensors: Every trained tensor by name.
        gradients: The flat gradients that theirs are views of, `decayed` and `undecayed`.
    """

    tensors: dict[str, Tensor]
    gradients: tuple[Tensor, ...]

    def at(self, site: str) -> dict[str, Tensor]:
        """Returns the tensors at one site, by their name there."""
        prefix = site + SEPARATOR
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    @property
    def head(self) -> dict[str, Tensor]:
        """The head's tensors, by their name in the Hugging Face model."""
        return {name: tensor for name, tensor in self.tensors.items() if SEPARATOR not in name}


class TrialParameters:
    """One trial's trained tensors and their gradients.

    Every tensor is a leaf that shares memory with one of two flat buffers, `decayed` and `undecayed`, and so are
    the gradients.

    Args:
        plans: What to make, by name.
        dtype: fp32, or float64 where everything is.
        device: Where they live.
    """

    def __init__(self, plans: Mapping[str, ParameterPlan], dtype: torch.dtype, device: torch.device) -> None:
        self._shapes = [
            {name: plan.shape for name, plan in plans.items() if plan.decay is decay} for decay in (True, False)
        ]
        sizes = [sum(prod(shape) for shape in shapes.values()) for shapes in self._shapes]
        self.buffers = tuple(torch.nn.Parameter(torch.zeros(size, dtype=dtype, device=device)) for size in sizes)
        self._leaves = [self._make_leaves()]
        for buffer, gradient in zip(self.buffers, self._leaves[0].gradients, strict=True):
            buffer.grad = gradient
        with torch.no_grad():
            for name, plan in plans.items():
                self.tensors[name].copy_(plan.initial())

    def _make_leaves(self) -> Leaves:
        tensors: dict[str, Tensor] = {}
        gradients = tuple(torch.zeros_like(buffer.data) for buffer in self.buffers)
        for shapes, buffer, gradient in zip(self._shapes, self.buffers, gradients, strict=True):
            sizes = [prod(shape) for shape in shapes.values()]
            views = zip(shapes.items(), buffer.data.split(sizes), gradient.split(sizes), strict=True)
            for (name, shape), values, own in views:
                tensors[name] = values.view(shape).detach().requires_grad_()
                tensors[name].grad = own.view(shape)
        return Leaves(tensors, gradients)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every trained tensor by name."""
        return self._leaves[0].tensors

    def leaves(self, number: int = 0) -> Leaves:
        """Returns leaves for the part `number` of a batch, so that parts can run at the same time; 0 are `tensors`."""
        while len(self._leaves) <= number:
            self._leaves.append(self._make_leaves())
        return self._leaves[number]

    def copy_gradients(self) -> tuple[Tensor, ...]:
        """Returns a copy of the flat gradients."""
        return tuple(gradient.clone() for gradient in self._leaves[0].gradients)

    def restore_gradients(self, gradients: tuple[Tensor, ...] | None) -> None:
        """Sets the flat gradients to a copy of them, or to zero, and clears those of every part."""
        for leaves in self._leaves:
            for gradient in leaves.gradients:
                gradient.zero_()
        for own, kept in zip(self._leaves[0].gradients, gradients or (), strict=False):
            own.copy_(kept)

    def gather_gradients(self) -> None:
        """Adds the gradients of every part to those of `tensors`, in their order, and clears them."""
        for extra in self._leaves[1:]:
            for total, gradient in zip(self._leaves[0].gradients, extra.gradients, strict=True):
                total.add_(gradient)
                gradient.zero_()

    @property
    def head(self) -> dict[str, Tensor]:
        """The head's tensors, by their name in the Hugging Face model."""
        return self._leaves[0].head

    def gradients(self) -> dict[str, Tensor]:
        """Returns the flat gradients themselves, `decayed` and `undecayed`."""
        pairs = zip(("decayed", "undecayed"), self.buffers, strict=True)
        return {name: buffer.grad for name, buffer in pairs if buffer.grad is not None}

    def gradient_norm(self) -> Tensor:
        """Returns the Euclidean norm of all gradients."""
        norms = [torch.linalg.vector_norm(gradient) for gradient in self.gradients().values()]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    def scale_gradients(self, factor: float | Tensor) -> None:
        """Multiplies all gradients by `factor`."""
        for gradient in self.gradients().values():
            gradient.mul_(factor)

    def zero_gradients(self) -> None:
        """Sets all gradients to zero, in place."""
        for gradient in self.gradients().values():
            gradient.zero_()

    def state(self) -> dict[str, Tensor]:
        """Returns a copy of every tensor."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the values of `state`.

        Raises:
            ValueError: If names or shapes differ.
        """
        if state.keys() != self.tensors.keys():
            odd = sorted(state.keys() ^ self.tensors.keys())
            raise ValueError(f"parameters differ from the trial's: {', '.join(odd[:3])}")
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                if state[name].shape != tensor.shape:
                    raise ValueError(f"{name} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}")
                tensor.copy_(state[name])


def kaiming_uniform(shape: tuple[int, ...], seed: int, place: str) -> Tensor:
    """Returns uniform values within ± 1 / sqrt(fan_in), as `nn.Linear` starts (He et al., 2015, with a = sqrt(5))."""
    values = random_stream("initial", seed, place).uniform(-1.0, 1.0, shape) / sqrt(shape[-1])
    return torch.from_numpy(values)


def normal(shape: tuple[int, ...], deviation: float, seed: int, place: str) -> Tensor:
    """Returns normal values of the given standard deviation."""
    return torch.from_numpy(random_stream("initial", seed, place).normal(0.0, deviation, shape))
