"""Who is chosen, what is tested, who is tied, and what is recommended; written from the documented definitions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from tests.recomputed.inference import TINY, Pair, Row, Variance, difference_of, holm, seeds_needed, tested
from tests.recomputed.scores import LOWER_IS_BETTER

NEAR = ("chosen", "tied")


@dataclass(frozen=True)
class Choice:
    """The chosen row; whether validation chose it, and whether the scores that judge it did."""

    row: Row
    by_validation: bool
    on_scored: bool


@dataclass(frozen=True)
class Outcome:
    """What may be said of rows on one data set.

    `adjusted` has the corrected p-values of the whole run by the identity of the test, `corrected_for` is the number of
    pairs that could be asked about; `own` are the tests of the chosen row.
    """

    rows: list[Row]
    choice: Choice | None
    standing: dict[str, str]
    tests: list[Pair]
    own: list[Pair]
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
    """Returns what may be said on each data set; all pairs of the run share one correction, shown or not."""
    choices = {name: chosen_of(rows) for name, rows in by_data.items()}
    possible = {name: _pairs(rows, choices[name]) for name, rows in by_data.items()}
    among = sum(map(len, possible.values()))
    tests = {
        name: [tested(a, b, among) for a, b in pairs if all_pairs or a is _row_of(choices[name])]
        for name, pairs in possible.items()
    }
    known = {id(test): test.p for members in tests.values() for test in members if test.p is not None}
    adjusted = dict(zip(known, holm(list(known.values()), among), strict=True))
    return {name: _outcome(rows, choices[name], tests[name], adjusted, among, cost) for name, rows in by_data.items()}


def chosen_of(rows: Sequence[Row]) -> Choice | None:
    """Returns the trained row of the best mean on validation that learned there, the one that trains least of equals.

    Rows of which every seed learned go before those of which most did, and rows of two seeds or more before others.
    The scores that are compared choose where no row was validated.
    """
    trained = [row for row in rows if not row.is_baseline and row.scores]
    validated = [row for row in trained if math.isfinite(row.validation)]
    if validated:
        known = {row.name: (row.validation, row.unlearned) for row in validated}
    else:
        known = {row.name: (row.mean, len(row.degenerate)) for row in trained if math.isfinite(row.mean)}
    usable = [row for row in trained if row.name in known and known[row.name][1] == 0]
    if not usable:
        usable = [row for row in trained if row.name in known and known[row.name][1] < len(row.scores) / 2]
    usable = [row for row in usable if len(row.scores) >= 2] or usable
    if not usable:
        return None
    best = min(usable, key=lambda row: (_loss(row, known[row.name][0]), row.cost("trainable")))
    return Choice(best, bool(validated), not validated or best.split == "validation")


def _row_of(choice: Choice | None) -> Row | None:
    return choice.row if choice else None


def _loss(row: Row, score: float) -> float:
    return score if row.metric in LOWER_IS_BETTER else -score


def _pairs(rows: Sequence[Row], choice: Choice | None) -> list[tuple[Row, Row]]:
    """Returns all pairs of rows that say something, but of two baselines; those with the chosen row first."""
    if choice is None or not choice.row.is_judged:
        return []
    rivals = [row for row in rows if row.is_judged and row is not choice.row]
    between = [(a, b) for a, b in combinations(rivals, 2) if not (a.is_baseline and b.is_baseline)]
    return [(choice.row, row) for row in rivals] + between


def _outcome(
    rows: list[Row], choice: Choice | None, tests: list[Pair], adjusted: Mapping[int, float], among: int, cost: str
) -> Outcome:
    own = [test for test in tests if choice is not None and choice.row in (test.a, test.b)]
    standing = {row.name: _standing(row, choice, own, adjusted, among) for row in rows}
    winner, recommended, tied = _verdict(rows, choice, standing, own, adjusted, cost)
    return Outcome(rows, choice, standing, tests, own, adjusted, among, winner, recommended, tied)


def _standing(row: Row, choice: Choice | None, own: Sequence[Pair], adjusted: Mapping[int, float], among: int) -> str:
    """Returns where a row stands against the chosen one.

    It is behind or ahead by a significant test, or where the interval of the pair's own differences, which holds for
    all pairs together, leaves 0 out. Below all seeds of the chosen one by more than texts explain, it is outpaced.
    """
    if choice is None or not math.isfinite(row.mean):
        return "not comparable"
    chosen = choice.row
    if row is chosen:
        return "chosen"
    found = difference_of(chosen, row)
    if found is None:
        return "not comparable"
    if len(chosen.scores) == 1:
        return "tied"
    differences, known, _ = found
    mean, tail = statistics.fmean(differences), 0.05 / max(among, 1)
    is_shown = any(row in (test.a, test.b) and adjusted.get(id(test), 1.0) < 0.05 for test in own)
    if is_shown or (len(differences) > 1 and not _reaches_zero(known.ends(mean, tail))):
        return "behind" if _loss(row, mean) < 0 else "ahead"
    worst_of_chosen = max(_loss(row, score) for score in chosen.scores.values())
    best_of_row = min(_loss(row, score) for score in row.scores.values())
    of_texts = Variance(0.0, 0, known.texts, known.texts_degrees).ends(chosen.mean - row.mean, tail)
    return "outpaced" if best_of_row > worst_of_chosen and not _reaches_zero(of_texts) else "tied"


def _is_better(row: Row, test: Pair) -> bool:
    """Returns whether the difference of a test is to the good of one of its two rows."""
    gain = test.difference if test.a is row else -test.difference
    return _loss(row, gain) < 0


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
    won = bool(in_question) and beaten == in_question | {id(test.b) for test in own} and not chosen.failed
    return (chosen.name if won else None), recommended.name, tied


def _by_validation(row: Row) -> float:
    return _loss(row, row.validation) if math.isfinite(row.validation) else math.inf
