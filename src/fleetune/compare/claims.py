"""Sentences that may be printed: each follows from a test or a count, and names the numbers it follows from.

There is no way here from two means to a sentence: a difference is stated where its test is significant, and what was
not shown is stated as that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.compare.budget import Budget, budgets, unequal
from fleetune.compare.learning import loss_at_chance, under_trained
from fleetune.compare.pair import PairTest
from fleetune.compare.row import Row
from fleetune.compare.titles import metric_title
from fleetune.compare.verdict import listed


@dataclass(frozen=True)
class Claim:
    """One sentence with its evidence.

    Attributes:
        text: The sentence.
        evidence: Key of the section of the page that has its numbers, such as `tests`, `budget` or `configurations`.
        numbers: The numbers in it by name.
        data: Name of the data it is about.
    """

    text: str
    evidence: str
    numbers: dict[str, Any] = field(default_factory=dict)
    data: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return {"text": self.text, "evidence": self.evidence, "numbers": self.numbers, "data": self.data}


def claims_on(rows: Sequence[Row], tests: Sequence[PairTest], split: str) -> list[Claim]:
    """Returns what may be said of rows on the same data, and of the tests among them."""
    data = rows[0].configuration.first.data if rows else ""
    return [
        *(_difference(test, split, rows) for test in tests if test.is_significant),
        *_not_shown(tests, split, data),
        *_twins(rows, data),
        *_without_learning(rows, data),
        *_under_trained(rows, data),
        *_failures(rows, data),
        *_budgets(rows, data),
    ]


def _difference(test: PairTest, split: str, rows: Sequence[Row]) -> Claim:
    better, worse = (test.a, test.b) if test.favours(test.a) else (test.b, test.a)
    low, high = _towards(test)
    numbers = {"difference": abs(test.difference), "low": low, "high": high, "p_adjusted": test.p_adjusted,
               "seeds": test.seeds}  # fmt: skip
    text = (
        f"{better} is better than {worse}: {metric_title(test.metric)} on {split} differs by "
        f"{abs(test.difference):.3f} (95 % interval {low:.3f} to {high:.3f}; {_p(test.p_adjusted)} after Holm's "
        f"correction; {test.seeds} seeds)."
    )
    text += "".join(_reservations(row) for row in rows if row.name in (better, worse))
    return Claim(text, "tests", numbers, test.data)


def _reservations(row: Row) -> str:
    """Returns what of the row's seeds the mean is not of, or should not be of; nothing where all is well."""
    failed, silent, trials = len(row.configuration.failed), len(row.degenerate), len(row.configuration.trials)
    text = f" {failed} of {trials} seeds of {row.name} failed and are not in its mean." if failed else ""
    if silent and not row.is_baseline:
        text += f" {silent} of {trials} seeds of {row.name} learned nothing and are in its mean."
    return text


def _p(value: float | None) -> str:
    return "p < 0.001" if value is not None and value < 0.001 else f"p = {value:.3f}"


def _towards(test: PairTest) -> tuple[float, float]:
    """Returns the interval of the difference, counted in the direction in which it lies."""
    low, high = test.interval or (test.difference, test.difference)
    return (low, high) if test.difference > 0 else (-high, -low)


def _not_shown(tests: Sequence[PairTest], split: str, data: str) -> Iterator[Claim]:
    open_tests = [test for test in tests if not test.is_significant and test.p is not None]
    if not open_tests:
        return
    first = open_tests[0]
    others = [test.b for test in open_tests if test.a == first.a]
    if len(others) == len(open_tests):
        what = f"between {first.a} and {listed(others)}"
    else:
        pairs = "pair" if len(open_tests) == 1 else "pairs"
        what = f"in {len(open_tests)} of {len(tests)} {pairs}"
    seeds = max(test.seeds for test in open_tests)
    text = f"No difference is demonstrated {what} on {split}"
    ends = [abs(end) for test in open_tests for end in test.simultaneous or ()]
    room = max(ends) if all(test.simultaneous for test in open_tests) else None
    if room is not None:
        text += f"; intervals that hold for all together leave room for up to {room:.3f}"
    text += "."
    if seeds < first.seeds_needed:
        text += (
            f" With {seeds} {'seed' if seeds == 1 else 'seeds'} none could be: significance among "
            f"{first.corrected_for} {'comparison' if first.corrected_for == 1 else 'comparisons'} takes "
            f"{first.seeds_needed} seeds."
        )
    yield Claim(text, "tests", {"room": room, "seeds": seeds, "seeds_needed": first.seeds_needed}, data)


def _twins(rows: Sequence[Row], data: str) -> Iterator[Claim]:
    """Yields rows whose every output on some split is the same: a copied row, or a setting without effect."""
    judged = [row for row in rows if row.scores and not row.is_baseline]
    outputs = {row.name: _outputs(row) for row in judged}
    for one, other in combinations(judged, 2):
        splits = _same_splits(outputs[one.name], outputs[other.name])
        if splits:
            text = (
                f"{one.name} and {other.name} gave the same outputs for every text of {listed(splits)} with every "
                "seed: what differs between them had no effect, or one result was copied. They are one result there, "
                "not two."
            )
            yield Claim(text, "configurations", {"splits": splits}, data)


def _outputs(row: Row) -> dict[int, dict[str, bytes]]:
    """Returns a hash of the logits by seed and split, for each trial is looked at once, however many pairs it is in."""
    return {
        trial.seed: {
            split: _hash(trial.predictions[split][1]) for split in trial.predictions if len(trial.labels(split))
        }
        for trial in row.configuration.done
        if trial.seed in row.scores
    }


def _hash(logits: NDArray[np.float32]) -> bytes:
    # 0.0 and -0.0 are equal, and every nan is like every other.
    plain = np.where(np.isnan(logits), np.float32(np.nan), logits + np.float32(0.0))
    return hashlib.sha256(f"{plain.shape}".encode() + np.ascontiguousarray(plain).tobytes()).digest()


def _same_splits(one: dict[int, dict[str, bytes]], other: dict[int, dict[str, bytes]]) -> list[str]:
    if one.keys() != other.keys() or not one:
        return []
    first = next(iter(one.values()))
    return [
        split
        for split in first
        if all(own.get(split) is not None and own[split] == other[seed].get(split) for seed, own in one.items())
    ]


def _without_learning(rows: Sequence[Row], data: str) -> Iterator[Claim]:
    counted = [row for row in rows if row.degenerate and not row.is_baseline]
    if counted:
        trials = sum(len(row.degenerate) for row in counted)
        plural = "1 trial" if trials == 1 else f"{trials} trials"
        text = (
            f"{plural} learned nothing ({listed([row.name for row in counted])}): their scores say that the training "
            "failed there, and nothing against the method. Try more epochs or another learning_rate."
        )
        yield Claim(text, "configurations", {"trials": trials}, data)


def _failures(rows: Sequence[Row], data: str) -> Iterator[Claim]:
    counted = [row for row in rows if row.configuration.failed]
    if counted:
        trials = sum(len(row.configuration.failed) for row in counted)
        plural = "1 trial" if trials == 1 else f"{trials} trials"
        text = f"{plural} failed ({listed([row.name for row in counted])}); means are over the seeds that finished."
        yield Claim(text, "configurations", {"trials": trials}, data)


def _under_trained(rows: Sequence[Row], data: str) -> Iterator[Claim]:
    still: list[str] = []
    for row in rows:
        trials = row.configuration.done
        at_chance = [trial for trial in trials if loss_at_chance(trial)]
        if 2 * len(at_chance) > len(trials):
            reason = under_trained(at_chance[0]) or ""
            seeds = f"{len(at_chance)} of {len(trials)} seeds" if len(trials) > 1 else "its one seed"
            text = f"{row.name} cannot be judged by these scores. {reason} So it was with {seeds}."
            yield Claim(text, "training", {"trials": len(at_chance)}, data)
        elif 2 * sum(under_trained(trial) is not None for trial in trials) > len(trials):
            still.append(row.name)
    if still:
        text = f"Still improving when training ended: {listed(still)}. With more epochs the order may be another."
        yield Claim(text, "training", {"configurations": len(still)}, data)


def _budgets(rows: Sequence[Row], data: str) -> Iterator[Claim]:
    found = budgets(rows)
    sentence = unequal(found)
    if sentence is not None:
        yield Claim(sentence, "budget", {_entry(one, found): one.settings for one in found}, data)
    for one in found:
        for edge in one.edges:
            yield Claim(f"{_entry(one, found)}: {edge}.", "budget", {"settings": one.settings}, data)


def _entry(one: Budget, found: Sequence[Budget]) -> str:
    several = len({other.backbone for other in found}) > 1
    return f"{one.entry} on {one.backbone}" if several else one.entry
