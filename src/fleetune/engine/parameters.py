"""The tensors of one trial; those it trains lie in flat buffers, so that optimizer and clipping see few large ones."""

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
    """One tensor to be made.

    Attributes:
        shape: Its shape.
        initial: Gives its start.
        decay: Whether weight decay acts on it.
        rate: Factor of the learning rate.
        trained: Whether the optimizer changes it.
    """

    shape: tuple[int, ...]
    initial: Callable[[], Tensor]
    decay: bool
    rate: float = 1.0
    trained: bool = True


@dataclass(frozen=True)
class ParameterGroup:
    """Trained tensors that the optimizer treats alike.

    Attributes:
        decay: Whether weight decay acts on them.
        rate: Factor of the learning rate.
        shapes: Their shapes by name, in the order in which they lie in the buffer.
        buffer: Their values, flat; `buffer.grad` are their gradients.
    """

    decay: bool
    rate: float
    shapes: Mapping[str, tuple[int, ...]]
    buffer: torch.nn.Parameter


@dataclass(frozen=True)
class Leaves:
    """Leaves of one computation: views of a trial's values, with gradients of their own.

    Attributes:
        tensors: Every tensor of the trial by name.
        gradients: The flat gradients that those of the trained ones are views of, one a group.
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
    """One trial's tensors and their gradients.

    Every trained tensor is a leaf that shares memory with the flat buffer of its group, and its gradient with the
    buffer's gradient.

    Args:
        plans: What to make, by name.
        dtype: fp32, or float64 where everything is.
        device: Where they live.
    """

    def __init__(self, plans: Mapping[str, ParameterPlan], dtype: torch.dtype, device: torch.device) -> None:
        self.groups = _groups(plans, dtype, device)
        self._kept = {
            name: torch.zeros(plan.shape, dtype=dtype, device=device)
            for name, plan in plans.items()
            if not plan.trained
        }
        self._leaves = [self._make_leaves()]
        for group, gradient in zip(self.groups, self._leaves[0].gradients, strict=True):
            group.buffer.grad = gradient
        with torch.no_grad():
            for name, plan in plans.items():
                self.tensors[name].copy_(plan.initial())

    def _make_leaves(self) -> Leaves:
        tensors: dict[str, Tensor] = {}
        gradients = tuple(torch.zeros_like(group.buffer.data) for group in self.groups)
        for group, gradient in zip(self.groups, gradients, strict=True):
            sizes = [prod(shape) for shape in group.shapes.values()]
            views = zip(group.shapes.items(), group.buffer.data.split(sizes), gradient.split(sizes), strict=True)
            for (name, shape), values, own in views:
                tensors[name] = values.view(shape).detach().requires_grad_()
                tensors[name].grad = own.view(shape)
        return Leaves(tensors | self._kept, gradients)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return self._leaves[0].tensors

    @property
    def by_site(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor but the head's, by site and name."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            site, separator, parameter = name.rpartition(SEPARATOR)
            if separator:
                found.setdefault(site, {})[parameter] = tensor
        return found

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
        for number in range(len(self._leaves)):
            self.restore_part(number, gradients)

    def restore_part(self, number: int, gradients: tuple[Tensor, ...] | None) -> None:
        """Sets the gradients of part `number` of a batch to what they were before: `gradients` for 0, else zero."""
        for place, gradient in enumerate(self._leaves[number].gradients):
            if number == 0 and gradients is not None:
                gradient.copy_(gradients[place])
            else:
                gradient.zero_()

    def gather_gradients(self, parts: int) -> None:
        """Adds the gradients of the `parts` that a batch had to those of `tensors`, in their order, and clears them.

        Those of further parts, from another batch, are zero; but adding zero makes a negative zero a positive one.
        """
        for extra in self._leaves[1:parts]:
            for total, gradient in zip(self._leaves[0].gradients, extra.gradients, strict=True):
                total.add_(gradient)
                gradient.zero_()

    @property
    def head(self) -> dict[str, Tensor]:
        """The head's tensors, by their name in the Hugging Face model."""
        return self._leaves[0].head

    @property
    def are_finite(self) -> bool:
        """Whether no value of any tensor is infinite or NaN."""
        return all(bool(tensor.isfinite().all()) for tensor in self.tensors.values())

    def gradients(self) -> dict[str, Tensor]:
        """Returns the flat gradients themselves, by the number of their group."""
        return {str(number): gradient for number, gradient in enumerate(self._leaves[0].gradients)}

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


def _groups(plans: Mapping[str, ParameterPlan], dtype: torch.dtype, device: torch.device) -> tuple[ParameterGroup, ...]:
    """Returns the trained tensors by decay and rate, in the order in which each kind first appears."""
    shapes: dict[tuple[bool, float], dict[str, tuple[int, ...]]] = {}
    for name, plan in plans.items():
        if plan.trained:
            shapes.setdefault((plan.decay, plan.rate), {})[name] = plan.shape
    return tuple(
        ParameterGroup(decay, rate, own, torch.nn.Parameter(torch.zeros(_size(own), dtype=dtype, device=device)))
        for (decay, rate), own in shapes.items()
    )


def _size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(prod(shape) for shape in shapes.values())


def kaiming_uniform(shape: tuple[int, ...], seed: int, place: str) -> Tensor:
    """Returns uniform values within ± 1 / sqrt(fan_in), as `nn.Linear` starts (He et al., 2015, with a = sqrt(5))."""
    values = random_stream("initial", seed, place).uniform(-1.0, 1.0, shape) / sqrt(shape[-1])
    return torch.from_numpy(values)


def normal(shape: tuple[int, ...], deviation: float, seed: int, place: str) -> Tensor:
    """Returns normal values of the given standard deviation."""
    return torch.from_numpy(random_stream("initial", seed, place).normal(0.0, deviation, shape))
