"""What follows from the turns of one workload: medians, rates, ratios, and whether targets are met."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from benchmarks.contenders import Turn
from benchmarks.workloads import GIB, Target


@dataclass(frozen=True)
class Facts:
    """A workload as it was run.

    Attributes:
        name: The workload's name.
        title: What it is.
        trials: Number of trials.
        texts: Training texts of each.
        tokens: Real tokens of these.
        evaluated: Validation texts.
        operations: Floating-point operations of the plain computation without padding, of all trials.
        products_per_second: Floating-point operations a second that this machine's matrix products reach.
        targets: What is to be reached on this device.
    """

    name: str
    title: str
    trials: int
    texts: int
    tokens: int
    evaluated: int
    operations: float
    products_per_second: float
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A measure and what is asked of it: `value` is None where it was not measured, `target` where nothing is asked."""

    measure: str
    value: float | None
    target: Target | None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none, or nothing was measured."""
        if self.value is None or self.target is None:
            return None
        return self.value <= self.target.bound if self.target.at_most else self.value >= self.target.bound


@dataclass
class Result:
    """One workload's turns, by contender."""

    facts: Facts
    turns: dict[str, list[Turn]] = field(default_factory=dict)

    def add(self, contender: str, turn: Turn) -> None:
        """Takes note of a turn."""
        self.turns.setdefault(contender, []).append(turn)

    @property
    def contenders(self) -> list[str]:
        """Who was measured, sorted."""
        return sorted(self.turns)

    def seconds(self, contender: str) -> float:
        """Returns the median over the rounds."""
        return median(turn.seconds for turn in self.turns[contender])

    def extremes(self, contender: str) -> tuple[float, float]:
        """Returns the shortest and the longest turn, in seconds."""
        seconds = [turn.seconds for turn in self.turns[contender]]
        return min(seconds), max(seconds)

    def texts_per_second(self, contender: str) -> float:
        """Returns training texts of all its trials over its seconds, evaluation's time included."""
        return self._trials(contender) * self.facts.texts / self.seconds(contender)

    def tokens_per_second(self, contender: str) -> float:
        """Returns real training tokens of all its trials over its seconds, evaluation's time included."""
        return self._trials(contender) * self.facts.tokens / self.seconds(contender)

    def utilisation(self, contender: str) -> float:
        """Returns the share of the matrix products' peak that the plain, padding-free computation would take."""
        operations = self.facts.operations * self._trials(contender) / self.facts.trials
        return operations / (self.seconds(contender) * self.facts.products_per_second)

    def peak_bytes(self, contender: str) -> float:
        """Returns the median over the rounds."""
        return median(turn.peak_bytes for turn in self.turns[contender])

    def first_step_seconds(self, contender: str) -> float:
        """Returns that of the first round: later ones find compiled and cached what it had to make."""
        return self.turns[contender][0].first_step_seconds

    def loss(self, contender: str) -> float:
        """Returns the median over the rounds."""
        return median(turn.loss for turn in self.turns[contender])

    def _trials(self, contender: str) -> int:
        return 1 if contender == "C1" else self.facts.trials

    def measure(self, name: str) -> float | None:
        """Returns the value of a measure such as `A/C` or `utilisation of C`; None if a contender was left out."""
        if name.startswith("GiB"):
            return self._memory(name)
        if name.startswith("utilisation of "):
            contender = name.removeprefix("utilisation of ")
            return self.utilisation(contender) if contender in self.turns else None
        slow, _, fast = name.partition("/")
        if slow not in self.turns or fast not in self.turns:
            return None
        return self.seconds(slow) / self.seconds(fast)

    def _memory(self, name: str) -> float | None:
        if not {"C", "C1"} <= self.turns.keys():
            return None
        one = self.peak_bytes("C1")
        further = (self.peak_bytes("C") - one) / (self.facts.trials - 1)
        return {"GiB of one trial": one, "GiB of each further trial": further}[name] / GIB

    def verdicts(self) -> list[Verdict]:
        """Returns each ratio that was measured and each measure that has a target, in a fixed order."""
        targets = {target.measure: target for target in self.facts.targets}
        measured = [f"{name}/C" for name in "ABD" if self.measure(f"{name}/C") is not None]
        names = [*measured, *(name for name in targets if name not in measured)]
        return [Verdict(name, self.measure(name), targets.get(name)) for name in sorted(names)]

    def to_json(self) -> dict[str, Any]:
        """Returns everything that was measured, and what follows from it."""
        return {
            **asdict(self.facts),
            "turns": {name: [asdict(turn) for turn in turns] for name, turns in sorted(self.turns.items())},
            "contenders": {
                name: {
                    "seconds": self.seconds(name),
                    "texts_per_second": self.texts_per_second(name),
                    "tokens_per_second": self.tokens_per_second(name),
                    "utilisation": self.utilisation(name),
                    "peak_bytes": self.peak_bytes(name),
                    "first_step_seconds": self.first_step_seconds(name),
                    "log_loss": self.loss(name),
                }
                for name in self.contenders
            },
            "measures": [
                {"measure": verdict.measure, "value": verdict.value, "met": verdict.met} for verdict in self.verdicts()
            ],
        }
