"""The optimizers that a recipe can name: how each is made, and which tensors it steps."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fleetune.engine.config import OptimizerName, TrainingConfig
from fleetune.engine.quantize import import_bitsandbytes
from fleetune.errors import MissingExtraError
from fleetune.runtime import device

if TYPE_CHECKING:
    from torch import Tensor

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Rule:
    """One optimizer.

    Attributes:
        make: Returns it, given groups of tensors with their weight decay.
        element_wise: Whether each value is stepped by itself. Then it works on a trial's flat buffers, else on its
            tensors one by one.
        state_copies: Memory of its state, in copies of what is trained.
    """

    make: Callable[[Groups, TrainingConfig], torch.optim.Optimizer]
    element_wise: bool
    state_copies: float


_MADE_ANEW = ("qmap1", "qmap2", "RMS")
"""Tables of codes that never change, and what Adafactor computes at each step before it is used."""


def rule_for(training: TrainingConfig) -> Rule:
    """Returns the rule for a trial's optimizer on this machine."""
    paged = training.optimizer == "paged_adamw_32bit"
    return _RULES["adamw" if paged and not _can_page() else training.optimizer]


def refuse_without_package(training: TrainingConfig) -> None:
    """Does nothing where the package that steps is there, or is not needed.

    Raises:
        MissingExtraError: If bitsandbytes is needed and not installed.
    """
    needed = training.optimizer == "adamw_8bit" or (training.optimizer == "paged_adamw_32bit" and _can_page())
    if needed and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "qlora", f'optimizer = "{training.optimizer}"')


def optimizer_notes(trainings: Iterable[TrainingConfig]) -> tuple[str, ...]:
    """Returns what a report must say of the trials' optimizers: where one runs otherwise than its name says."""
    if any(training.optimizer == "paged_adamw_32bit" for training in trainings) and not _can_page():
        return ("paged_adamw_32bit runs unpaged, as adamw does: without a GPU there is nothing to page out of.",)
    return ()


def _can_page() -> bool:
    return device().type == "cuda"


def _adamw(groups: Groups, training: TrainingConfig) -> torch.optim.Optimizer:
    """Returns AdamW (Loshchilov & Hutter, 2017, arXiv:1711.05101, Algorithm 2)."""
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, eps=training.adam_epsilon)


def _paged_adamw(groups: Groups, training: TrainingConfig) -> torch.optim.Optimizer:
    """Returns AdamW whose moments give way to main memory where the GPU's is full (Dettmers et al., 2023)."""
    return _of_bitsandbytes("PagedAdamW32bit", groups, training)


def _adamw_8bit(groups: Groups, training: TrainingConfig) -> torch.optim.Optimizer:
    """Returns AdamW with 8-bit moments (Dettmers et al., 2021, arXiv:2110.02861); small tensors' stay in full."""
    return _of_bitsandbytes("AdamW8bit", groups, training)


def _of_bitsandbytes(name: str, groups: Groups, training: TrainingConfig) -> torch.optim.Optimizer:
    refuse_without_package(training)
    import_bitsandbytes()
    import bitsandbytes.optim

    made = getattr(bitsandbytes.optim, name)
    optimizer: torch.optim.Optimizer = made(
        groups, lr=training.learning_rate, betas=training.betas, eps=training.adam_epsilon
    )
    return optimizer


def _adafactor(groups: Groups, training: TrainingConfig) -> torch.optim.Optimizer:
    """Returns Adafactor (Shazeer & Stern, 2018, arXiv:1804.04235), its steps as long as the learning rate says."""
    from transformers.optimization import Adafactor

    return Adafactor(groups, lr=training.learning_rate, scale_parameter=False, relative_step=False)


def _sgd(groups: Groups, training: TrainingConfig) -> torch.optim.Optimizer:
    """Returns stochastic gradient descent; weight decay is an L2 penalty there, as torch has it."""
    return torch.optim.SGD(groups, lr=training.learning_rate, momentum=training.momentum)


_RULES: dict[OptimizerName, Rule] = {
    "adamw": Rule(_adamw, element_wise=True, state_copies=2.0),
    "paged_adamw_32bit": Rule(_paged_adamw, element_wise=True, state_copies=2.0),
    "adamw_8bit": Rule(_adamw_8bit, element_wise=False, state_copies=0.6),
    "adafactor": Rule(_adafactor, element_wise=False, state_copies=0.2),
    "sgd": Rule(_sgd, element_wise=True, state_copies=1.0),
}


def saved_state(optimizer: torch.optim.Optimizer, tensor: Tensor) -> dict[str, Tensor]:
    """Returns what the optimizer keeps for one tensor, not a copy; whole numbers as tensors of whole numbers."""
    kept = {name: value for name, value in optimizer.state.get(tensor, {}).items() if name not in _MADE_ANEW}
    tensors = {name: value.detach() for name, value in kept.items() if isinstance(value, torch.Tensor)}
    return tensors | {name: torch.tensor(value) for name, value in kept.items() if isinstance(value, int)}


def load_state(optimizer: torch.optim.Optimizer, tensor: Tensor, saved: Mapping[str, Tensor]) -> None:
    """Gives the optimizer what `saved_state` returned for a tensor; nothing where that was empty."""
    if not saved:
        return
    state = optimizer.state[tensor]
    if hasattr(optimizer, "init_state"):
        # bitsandbytes: it makes the memory, which a GPU may have to be able to page, and the tables of codes.
        optimizer.init_state(*_place_of(optimizer, tensor))
    for name, value in saved.items():
        if value.dtype == torch.int64:
            state[name] = int(value)
        elif name in state:
            state[name].copy_(value)
        else:
            state[name] = value.clone() if name == "step" else value.to(tensor.device, copy=True)
    if isinstance(state.get("step"), int):
        state.setdefault("RMS", 0.0)


def _place_of(optimizer: torch.optim.Optimizer, tensor: Tensor) -> tuple[dict[str, Any], Tensor, int, int]:
    for group_number, group in enumerate(optimizer.param_groups):
        for number, own in enumerate(group["params"]):
            if own is tensor:
                return group, tensor, group_number, number
    raise ValueError("the optimizer does not step this tensor")
