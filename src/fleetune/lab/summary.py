"""What one call of a run trained, how fast, and how much of the machine it used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetune.data.dataset import SplitName
from fleetune.engine.events import Evaluated, Event, Finished, Stepped
from fleetune.engine.operations import forward_operations, matrix_product_rate, training_operations
from fleetune.methods.base import BackboneShape, Method


@dataclass(frozen=True)
class RunSummary:
    """How a run ended.

    Attributes:
        folder: The run's folder.
        done: Trials that this call finished.
        failed: Trials that failed in this call.
        skipped: Trials that were done before.
        seconds: Time this call took.
        texts_per_second: Training throughput of this call, evaluations included; None where nothing was trained.
        tokens_per_second: The same in real tokens.
        utilisation: Operations of the plain computation over what the machine's matrix products could have done.
        peak_bytes: Highest memory of the process.
    """

    folder: Path
    done: int
    failed: int
    skipped: int
    seconds: float
    texts_per_second: float | None
    tokens_per_second: float | None
    utilisation: float | None
    peak_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Returns what `fleetune run --json` prints."""
        return {
            "run": str(self.folder),
            "trials": {"done": self.done, "failed": self.failed, "skipped": self.skipped},
            "seconds": round(self.seconds, 2),
            "texts_per_second": self.texts_per_second,
            "tokens_per_second": self.tokens_per_second,
            "utilisation": self.utilisation,
            "peak_bytes": self.peak_bytes,
        }


@dataclass
class Tally:
    """What this call has trained so far.

    Attributes:
        texts: Texts in training steps.
        tokens: Their real tokens.
        seconds: Time in fleets.
        operations: Floating-point operations of the plain computation, evaluations included.
        possible: Floating-point operations of the machine's matrix products in that time.
    """

    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0
    operations: float = 0.0
    possible: float = 0.0

    def count(self, event: Event, shape: BackboneShape, method: Method, tokens_of: Mapping[SplitName, int]) -> None:
        """Adds what `event` took; `tokens_of` has the tokens of each split."""
        match event:
            case Stepped():
                self.texts += event.texts
                self.tokens += event.tokens
                self.operations += event.tokens * training_operations(shape, method)
            case Evaluated():
                self.operations += tokens_of["validation"] * forward_operations(shape)
            case Finished():
                evaluated = sum(tokens_of[split] for split in event.predictions)
                self.operations += evaluated * forward_operations(shape)

    def count_time(self, seconds: float, precision: str) -> None:
        """Adds the time of a fleet that computed in `precision`."""
        self.seconds += seconds
        self.possible += seconds * matrix_product_rate(precision)

    @property
    def texts_per_second(self) -> float | None:
        """Training throughput; None where nothing was trained."""
        return self.texts / self.seconds if self.texts else None

    @property
    def tokens_per_second(self) -> float | None:
        """Training throughput in real tokens; None where nothing was trained."""
        return self.tokens / self.seconds if self.tokens else None

    @property
    def utilisation(self) -> float | None:
        """Share of the machine's matrix-product peak; None where nothing was trained."""
        return self.operations / self.possible if self.possible else None
