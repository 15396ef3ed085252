"""What a fleet reports while it trains, in the order in which it happens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetune.data.dataset import SplitName


@dataclass(frozen=True)
class Stepped:
    """One optimizer step of one trial."""

    trial: str
    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    texts: int
    tokens: int


@dataclass(frozen=True)
class Evaluated:
    """One evaluation on validation; `best` says whether it is the best so far by the trial's metric.

    `texts` were read for it in `seconds`, the trial's share of its fleet's time.
    """

    trial: str
    step: int
    epoch: float
    metrics: dict[str, float]
    best: bool
    texts: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Finished:
    """A trial's end: logits `(texts, num_labels)` of its best checkpoint for each evaluated split.

    `parameters` is how many values a baseline fitted, which is known only now. `evaluated_texts` were read for the
    predictions in `evaluation_seconds`, the trial's share of its fleet's time; those of its evaluations before are not
    among them. `trained_tokens` are those of all its steps.
    """

    trial: str
    steps: int
    best_step: int
    stopped_early: bool
    seconds: float
    predictions: dict[SplitName, NDArray[np.float32]]
    parameters: int | None = None
    evaluated_texts: int = 0
    evaluation_seconds: float = 0.0
    trained_tokens: int = 0


@dataclass(frozen=True)
class Failed:
    """A trial that cannot go on, and why; its neighbours do."""

    trial: str
    step: int
    reason: str


Event = Stepped | Evaluated | Finished | Failed
