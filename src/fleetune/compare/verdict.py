"""What may be said of rows on the same data: which one validation chooses, whether it wins, which one to ship.

Validation alone chooses; the test split then says what is demonstrated of that choice. "No demonstrated winner" is a
result like another: the configurations that nothing tells from the chosen one form a group, and the cheapest of the
group is recommended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fleetune.compare.costs import COST_WORDS, COSTS, Cost
from fleetune.compare.pair import PairTest
from fleetune.compare.row import Row
from fleetune.compare.titles import metric_title
from fleetune.metrics import MINIMISED, is_better

NAMED = 4
ENOUGH_SEEDS = 6


@dataclass(frozen=True)
class Verdict:
    """What may be said: `winner` is None where none is demonstrated; `recommended` names a row."""

    winner: str | None
    recommended: str | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Returns the three fields."""
        return {"winner": self.winner, "recommended": self.recommended, "reason": self.reason}


def chosen_row(rows: Sequence[Row]) -> Row | None:
    """Returns the row of the best mean on validation, of those trained that learned something with every seed.

    A row with one seed is chosen only where no row has two. Where there are no scores on validation, those that are
    compared decide. Of baselines alone, the best baseline.
    """
    usable = [row for row in rows if math.isfinite(row.mean) and not row.degenerate]
    usable = [row for row in usable if not row.is_baseline] or usable
    usable = [row for row in usable if row.has_known_spread] or usable
    selecting = all(math.isfinite(row.validation) for row in usable)
    best: Row | None = None
    for row in usable:
        score, highest = (row.validation, best.validation if best else math.nan) if selecting else (
            row.mean, best.mean if best else math.nan)  # fmt: skip
        if best is None or is_better(row.metric, score, highest):
            best = row
    return best


def verdict_on(rows: Sequence[Row], tests: Sequence[PairTest], split: str, cost: Cost = "trainable") -> Verdict:
    """Returns the verdict on rows of the same data, whose ties are marked; it recommends no baseline, but names it."""
    chosen = chosen_row(rows)
    if chosen is None:
        title = metric_title(rows[0].metric) if rows else "score"
        return Verdict(None, None, f"No configuration has a usable {title} on {split}: none is recommended.")
    if chosen.is_baseline:
        title = metric_title(chosen.metric)
        return Verdict(None, None, f"Nothing that was trained has a usable {title} on {split}: none is recommended.")
    ahead = [row for row in rows if row.is_baseline and row.standing == "ahead"]
    if ahead and len(chosen.scores) > 1:
        return Verdict(
            None,
            None,
            f"No fine-tune comes up to the baseline {ahead[0].name}: validation chooses {chosen.name} among them "
            f"({_against(chosen, ahead[0])} on {split}). None is recommended.",
        )
    if len(chosen.scores) < 2:
        return Verdict(None, None, " ".join([_one_seed(chosen, split), *_remarks(rows, chosen)]))
    trained = [row for row in rows if not row.is_baseline]
    tied = [row for row in trained if row.tied_with_best and not row.degenerate and row.has_known_spread]
    sound = [row for row in tied if not row.configuration.failed] or tied
    recommended = min(sound, key=lambda row: costs_of(row, cost))
    winner = chosen.name if _wins(chosen, rows, tests) else None
    sentences = [
        _lead(recommended, chosen, tied, split, cost),
        _demonstrated(chosen, tests, winner),
        *_outpaced(trained, chosen, recommended, cost),
        *_left_out(tied, sound, recommended, cost),
        *_remarks(rows, chosen),
    ]
    return Verdict(winner, recommended.name, " ".join(sentences))


def overall(verdicts: Mapping[str, Verdict]) -> Verdict:
    """Returns one verdict for all data sets; with several there is no common recommendation, only reasons."""
    if not verdicts:
        return Verdict(None, None, "There are no trials to compare.")
    if len(verdicts) == 1:
        return next(iter(verdicts.values()))
    return Verdict(None, None, " ".join(f"On {name}: {verdict.reason}" for name, verdict in verdicts.items()))


def costs_of(row: Row, cost: Cost) -> tuple[float, ...]:
    """Returns what a row costs by the measure asked for, then by the others; what is not known is dear."""
    known: Mapping[Cost, float | None] = {
        "trainable": row.trainable,
        "bundle_bytes": row.bundle_bytes,
        "seconds": row.seconds,
        "serving": row.serving_operations,
    }
    order = [cost, *(other for other in COSTS if other != cost)]
    return tuple(math.inf if (value := known[name]) is None else float(value) for name in order)


def _wins(chosen: Row, rows: Sequence[Row], tests: Sequence[PairTest]) -> bool:
    """Returns whether every configuration that was tested against `chosen` is demonstrated to be worse."""
    others = [test for test in tests if chosen.name in (test.a, test.b)]
    rivals = [row for row in rows if row is not chosen and not row.is_baseline and math.isfinite(row.mean)]
    learned = [row for row in rivals if not row.degenerate]
    return bool(learned) and bool(others) and all(_favours(test, chosen) and test.is_significant for test in others)


def _favours(test: PairTest, row: Row) -> bool:
    gain = test.difference if test.a == row.name else -test.difference
    return gain < 0 if test.metric in MINIMISED else gain > 0


def _lead(recommended: Row, chosen: Row, tied: Sequence[Row], split: str, cost: Cost) -> str:
    score = f"{metric_title(chosen.metric)} {chosen.mean:.3f} on {split}"
    if len(tied) == 1:
        return f"Ship {chosen.name}: validation chooses it, and on {split} nothing cheaper comes up to it ({score})."
    group = f"the {len(tied)} configurations that seeds and texts do not tell"
    if recommended is chosen:
        return f"Ship {chosen.name}: validation chooses it ({score}), and it {COST_WORDS[cost]} of {group} apart."
    return (
        f"Ship {recommended.name}: it {COST_WORDS[cost]} of {group} from {chosen.name}, which validation chooses "
        f"({_against(recommended, chosen)} on {split})."
    )


def _demonstrated(chosen: Row, tests: Sequence[PairTest], winner: str | None) -> str:
    if winner is not None:
        return f"{winner} is the demonstrated winner: every difference to it is significant after Holm's correction."
    if not tests:
        return "No winner is demonstrated: there was nothing to compare it with."
    above = [test for test in tests if test.is_significant and not _favours(test, chosen)]
    shown = [test for test in tests if test.is_significant and _favours(test, chosen)]
    needed, seeds = tests[0].seeds_needed, max(test.seeds for test in tests)
    said = "No winner is demonstrated"
    if above:
        other = above[0].a if above[0].b == chosen.name else above[0].b
        return f"{said}: {other} scores higher than {chosen.name}, but validation did not choose it."
    if seeds < needed:
        pairs = "one comparison" if len(tests) == 1 else f"{len(tests)} comparisons"
        had = "one seed" if seeds == 1 else f"{seeds} seeds"
        return f"{said}: among {pairs}, {had} cannot be significant; set seeds = {needed} to let them."
    if shown:
        return f"{said}: {chosen.name} is significantly better than {len(shown)} of {len(tests)} others only."
    return f"{said}: no difference is significant after Holm's correction over {len(tests)} comparisons."


def _outpaced(rows: Sequence[Row], chosen: Row, recommended: Row, cost: Cost) -> list[str]:
    names = [
        row.name for row in rows if row.standing == "outpaced" and costs_of(row, cost) < costs_of(recommended, cost)
    ]
    if not names:
        return []
    return [f"Cheaper, but below every seed of {chosen.name}: {listed(names)}; more seeds would tell."]


def _left_out(tied: Sequence[Row], sound: Sequence[Row], recommended: Row, cost: Cost) -> list[str]:
    names = [row.name for row in tied if row not in sound and costs_of(row, cost) < costs_of(recommended, cost)]
    return [f"Cheaper, but left out because some of its seeds failed: {', '.join(names)}."] if names else []


def _remarks(rows: Sequence[Row], chosen: Row) -> list[str]:
    """Returns sentences on what is not behind the chosen row and is not recommended all the same."""
    remarks = []
    for row in rows:
        if not row.is_baseline or row.degenerate or not math.isfinite(row.mean):
            continue
        if is_better(chosen.metric, row.mean, chosen.mean):
            remarks.append(
                f"The baseline {row.name} has a better mean than {chosen.name} ({_against(row, chosen)}): "
                "no gain from training is shown."
            )
        elif row.tied_with_best and len(chosen.scores) > 1:
            remarks.append(
                f"Nor is the baseline {row.name} told from {chosen.name} ({_against(row, chosen)}): "
                "no gain from training is shown."
            )
    ahead = [row.name for row in rows if row.degenerate and not row.is_baseline
             and is_better(chosen.metric, row.mean, chosen.mean)]  # fmt: skip
    if ahead:
        verb = "has" if len(ahead) == 1 else "have"
        remarks.append(f"{listed(ahead)} {verb} a better mean, although some seed learned nothing.")
    return remarks


def _one_seed(chosen: Row, split: str) -> str:
    return (
        f"Validation chooses {chosen.name} ({metric_title(chosen.metric)} {chosen.mean:.3f} on {split}), but with one "
        "seed the spread over seeds is not known, so no difference can be told from chance and none is recommended. "
        f"Set seeds = {ENOUGH_SEEDS} or more in the recipe; 3 give a first reading."
    )


def _against(one: Row, other: Row) -> str:
    return f"{one.mean:.3f} against {other.mean:.3f}"


def listed(names: Sequence[str]) -> str:
    """Returns names in words, the first few of them."""
    shown = list(names[:NAMED])
    if len(names) > NAMED:
        return f"{', '.join(shown)} and {len(names) - NAMED} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
