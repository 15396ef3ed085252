"""Who is chosen, what is tested, who is tied, and what is recommended; written from the documented definitions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from tests.recomputed.inference import TINY, Pair, Row, Variance, difference_of, holm, seeds_needed, tested
from tests.recomputed.scores import LOWER_IS_BETTER

NEAR = ("chosen", "tied", "ahead")


@dataclass(frozen=True)
class Choice:
    """The chosen row; whether validation chose it, and whether the scores that judge it did."""

    row: Row
    by_validation: bool
    on_scored: bool


@dataclass(frozen=True)
class Outcome:
    """What may be said of rows on one data set.

    `adjusted` has the corrected p-values of the whole run by the identity of the test, `corrected_for` their number.
    """

    rows: list[Row]
    choice: Choice | None
    standing: dict[str, str]
    tests: list[Pair]
    adjusted: Mapping[int, float]
    corrected_for: int
    winner: str | None
    recommended: str | None
    tied: list[Row]

    @property
    def chosen(self) -> Row | None:
        return self.choice.row if self.choice else None

    @property
    def needed(self) -> int:
        return seeds_needed(self.corrected_for)

    def is_shown(self, test: Pair) -> bool:
        return self.adjusted.get(id(test), 1.0) < 0.05


def outcomes(by_data: Mapping[str, list[Row]], cost: str, all_pairs: bool) -> dict[str, Outcome]:
    """Returns what may be said on each data set; all that is tested in the run shares one correction."""
    choices = {name: chosen_of(rows) for name, rows in by_data.items()}
    asked = {name: _asked(rows, choices[name], all_pairs) for name, rows in by_data.items()}
    pairs = sum(map(len, asked.values()))
    tests = {name: [tested(a, b, pairs) for a, b in members] for name, members in asked.items()}
    known = {id(test): test.p for members in tests.values() for test in members if test.p is not None}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    return {
        name: _outcome(rows, choices[name], tests[name], adjusted, cost, all_pairs) for name, rows in by_data.items()
    }


def chosen_of(rows: Sequence[Row]) -> Choice | None:
    """Returns the trained row of the best mean on validation that learned there, the first of equals.

    Rows of two seeds or more go before others. The scores that are compared choose where no row was validated.
    """
    trained = [row for row in rows if not row.is_baseline and row.scores]
    validated = [row for row in trained if math.isfinite(row.validation)]
    if validated:
        known = {row.name: row.validation for row in validated if not row.unlearned}
    else:
        known = {row.name: row.mean for row in trained if math.isfinite(row.mean) and not row.degenerate}
    usable = [row for row in trained if row.name in known]
    usable = [row for row in usable if len(row.scores) >= 2] or usable
    if not usable:
        return None
    best = min(usable, key=lambda row: _loss(row, known[row.name]))
    return Choice(best, bool(validated), not validated or best.split == "validation")


def _loss(row: Row, score: float) -> float:
    return score if row.metric in LOWER_IS_BETTER else -score


def _asked(rows: Sequence[Row], choice: Choice | None, all_pairs: bool) -> list[tuple[Row, Row]]:
    if choice is None or not choice.row.is_judged:
        return []
    rivals = [row for row in rows if row.is_judged and row is not choice.row]
    between = [(a, b) for a, b in combinations(rivals, 2) if not (a.is_baseline and b.is_baseline)]
    return [(choice.row, row) for row in rivals] + (between if all_pairs or choice.on_scored else [])


def _outcome(
    rows: list[Row],
    choice: Choice | None,
    tests: Sequence[Pair],
    adjusted: Mapping[int, float],
    cost: str,
    all_pairs: bool,
) -> Outcome:
    own = [test for test in tests if choice is not None and choice.row in (test.a, test.b)]
    standing = _standings(rows, choice, own, adjusted)
    winner, recommended, tied = _verdict(rows, choice, standing, own, adjusted, cost)
    shown = list(tests) if all_pairs else own
    return Outcome(rows, choice, standing, shown, adjusted, len(adjusted), winner, recommended, tied)


def _standings(
    rows: Sequence[Row], choice: Choice | None, own: Sequence[Pair], adjusted: Mapping[int, float]
) -> dict[str, str]:
    """Returns where each row stands against the chosen one: by its own test, else by intervals for all rows at once.

    The spread over seeds is pooled over rows that learned with every seed.
    """
    if choice is None:
        return {row.name: "not comparable" for row in rows}
    usable = [row for row in rows if math.isfinite(row.mean) and not row.degenerate]
    degrees = sum(len(row.scores) - 1 for row in usable)
    squares = sum(statistics.variance(row.scores.values()) * (len(row.scores) - 1) for row in usable if row.spread)
    pairs = max(math.comb(len(rows), 2) if choice.on_scored else len(rows) - 1, 1)
    found = {}
    for row in rows:
        significant = [test for test in own if row in (test.a, test.b) and adjusted.get(id(test), 1.0) < 0.05]
        if row is choice.row:
            found[row.name] = "chosen" if math.isfinite(row.mean) else "not comparable"
        elif significant:
            found[row.name] = "behind" if _is_better(choice.row, significant[0]) else "ahead"
        else:
            found[row.name] = _standing(row, choice.row, squares / degrees if degrees else None, degrees, 0.05 / pairs)
    return found


def _is_better(row: Row, test: Pair) -> bool:
    """Returns whether the difference of a test is to the good of one of its two rows."""
    gain = test.difference if test.a is row else -test.difference
    return _loss(row, gain) < 0


def _standing(row: Row, chosen: Row, spread: float | None, degrees: int, tail: float) -> str:
    found = difference_of(chosen, row) if math.isfinite(row.mean) else None
    if found is None:
        return "not comparable"
    if spread is None:
        return "tied"
    of_seeds = spread * (1 / len(chosen.scores) + (0.0 if row.is_baseline else 1 / len(row.scores)))
    known = Variance(of_seeds, degrees, found[1].texts, found[1].texts_degrees)
    difference = chosen.mean - row.mean
    if _reaches_zero(known.ends(difference, tail)):
        own, others = list(row.scores.values()), list(chosen.scores.values())
        below = min(own) > max(others) if row.metric in LOWER_IS_BETTER else max(own) < min(others)
        of_texts = Variance(0.0, 0, known.texts, known.texts_degrees).ends(difference, tail)
        return "outpaced" if below and not _reaches_zero(of_texts) else "tied"
    return "behind" if _loss(row, difference) < 0 else "ahead"


def _reaches_zero(ends: tuple[float, float]) -> bool:
    return ends[0] <= TINY and ends[1] >= -TINY


def _verdict(
    rows: Sequence[Row],
    choice: Choice | None,
    standing: Mapping[str, str],
    own: Sequence[Pair],
    adjusted: Mapping[int, float],
    cost: str,
) -> tuple[str | None, str | None, list[Row]]:
    """Returns the winner, the recommended (the cheapest of the tied), and the tied, if it can be told."""
    if choice is None or not choice.row.is_judged or len(choice.row.scores) < 2:
        return None, None, []
    if any(row.is_baseline and standing[row.name] == "ahead" for row in rows):
        return None, None, []
    chosen, trained = choice.row, [row for row in rows if not row.is_baseline]
    near = [row for row in trained if standing[row.name] in NEAR and not row.degenerate and len(row.scores) > 1]
    tied = near if chosen in near else [chosen, *near]
    sound = [row for row in tied if not row.failed] or tied
    least = min(row.cost(cost) for row in sound)
    cheapest = [row for row in sound if row.cost(cost) == least]
    recommended = chosen if chosen in cheapest else min(cheapest, key=_by_validation)
    beaten = {id(test.b) for test in own if adjusted.get(id(test), 1.0) < 0.05 and _is_better(chosen, test)}
    in_question = {id(row) for row in trained if row is not chosen and (row.is_judged or row.is_waiting)}
    won = bool(in_question) and beaten == in_question | {id(test.b) for test in own}
    return (chosen.name if won else None), recommended.name, tied


def _by_validation(row: Row) -> float:
    return _loss(row, row.validation) if math.isfinite(row.validation) else math.inf
