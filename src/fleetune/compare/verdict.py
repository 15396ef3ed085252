"""What may be said of rows by the spread of their seeds alone. It is a reading, not a test: it crowns no winner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fleetune.compare.row import Row
from fleetune.compare.spread import SeedSpread, pooled_spread
from fleetune.compare.titles import metric_title
from fleetune.metrics import MINIMISED, is_better

CAUTION = (
    "This is a provisional reading of the spread over seeds alone; what the choice of test texts adds is not in it, "
    "so no winner is demonstrated."
)


@dataclass(frozen=True)
class Verdict:
    """What may be said: `winner` is None where none is demonstrated; `recommended` names a row."""

    winner: str | None
    recommended: str | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Returns the three fields."""
        return {"winner": self.winner, "recommended": self.recommended, "reason": self.reason}


def reference_row(rows: Sequence[Row], metric: str) -> Row | None:
    """Returns the row of the best mean, of those that are not degenerate and have two seeds if any have.

    A baseline needs no second seed.
    """
    usable = [row for row in rows if math.isfinite(row.mean) and not row.degenerate]
    spread_known = any(row.has_known_spread for row in usable if not row.is_baseline)
    best: Row | None = None
    for row in [row for row in usable if row.has_known_spread or not spread_known]:
        if best is None or is_better(metric, row.mean, best.mean):
            best = row
    return best


def with_ties(rows: Sequence[Row], metric: str) -> list[Row]:
    """Returns rows on the same data, each marked whether the spread over seeds does not tell it from the best."""
    best, spread = reference_row(rows, metric), pooled_spread(rows)
    return [replace(row, tied_with_best=_is_tied(row, best, spread)) for row in rows]


def verdict_on(rows: Sequence[Row], metric: str, split: str) -> Verdict:
    """Returns the verdict on rows of the same data, whose ties are marked; it recommends no baseline, but names it."""
    overall_best = reference_row(rows, metric)
    if overall_best is None:
        return Verdict(
            None, None, f"No configuration has a usable {metric_title(metric)} on {split}: none is recommended."
        )
    superlative = f"{'lowest' if metric in MINIMISED else 'highest'} mean {metric_title(metric)} on {split}"
    trained = [row for row in rows if not row.is_baseline]
    best = reference_row(trained, metric)
    if overall_best.is_baseline and (best is None or (best.interval and not best.tied_with_best)):
        behind = "no fine-tune comes up to it" if trained else "nothing was trained to compare it with"
        return Verdict(
            None, None, f"The baseline {overall_best.name} has the {superlative}; {behind}: none is recommended."
        )
    assert best is not None
    if overall_best.is_baseline:
        superlative += " of all that was trained"
    ahead = [row.name for row in trained if row.degenerate and is_better(metric, row.mean, best.mean)]
    if ahead:
        superlative += " of those that learned with every seed"
    remarks = [_remark_on(row, best, metric) for row in rows if row.is_baseline and not row.degenerate]
    if ahead:
        verb = "has" if len(ahead) == 1 else "have"
        remarks.append(f"{', '.join(ahead)} {verb} a better mean, although some seed learned nothing.")
    verdict = _verdict_on_trained(trained, best, metric, superlative, rivalled=any(remarks))
    return replace(verdict, reason=" ".join([verdict.reason, *filter(None, remarks)]))


def _remark_on(baseline: Row, best: Row, metric: str) -> str | None:
    """Returns a sentence on a baseline that is better than the best of what was trained, or not told from it."""
    scores = f"({baseline.mean:.3f} against {best.mean:.3f})"
    if is_better(metric, baseline.mean, best.mean):
        return f"The baseline {baseline.name} is better than {best.name} {scores}: no gain from training is shown."
    if best.interval and baseline.tied_with_best and _reaches(baseline, best, metric):
        return f"Nor is the baseline {baseline.name} told from {best.name} {scores}: no gain from training is shown."
    return None


def _verdict_on_trained(rows: Sequence[Row], best: Row, metric: str, superlative: str, rivalled: bool) -> Verdict:
    """Returns the verdict on what was trained, `best` being the best of it; `rivalled` by a baseline, or not."""
    if best.interval is None:
        return Verdict(
            None,
            None,
            f"{best.name} has the {superlative}, but with one seed the spread over seeds is not known, "
            "so no difference can be told from chance. Set seeds = 3 or more in the recipe.",
        )
    tied = [row for row in rows if row.tied_with_best and row.interval and not row.degenerate]
    near = [row for row in tied if _reaches(row, best, metric)]
    sound = [row for row in near if not row.configuration.failed] or near
    cheapest = min(sound, key=_cost)
    left_out = [row.name for row in near if row not in sound and _cost(row) < _cost(cheapest)]
    behind = [row.name for row in tied if row not in near]
    lead = _lead(cheapest, best, near, superlative, alone=len(tied) == 1 and not rivalled)
    sentences = [f"{best.name} has the {superlative}." if rivalled and len(near) == 1 else lead]
    if behind:
        sentences.append(
            f"So few seeds do not tell {best.name} from {', '.join(behind)} either, but every seed there is behind "
            f"every seed of {best.name}: more seeds would tell."
        )
    if left_out:
        sentences.append(f"Cheaper, but left out because some of its seeds failed: {', '.join(left_out)}.")
    return Verdict(None, cheapest.name, " ".join([*sentences, CAUTION]))


def overall(verdicts: dict[str, Verdict]) -> Verdict:
    """Returns one verdict for all data sets; with several there is no common recommendation, only reasons."""
    if not verdicts:
        return Verdict(None, None, "There are no trials to compare.")
    if len(verdicts) == 1:
        return next(iter(verdicts.values()))
    return Verdict(None, None, " ".join(f"On {name}: {verdict.reason}" for name, verdict in verdicts.items()))


def _is_tied(row: Row, best: Row | None, spread: SeedSpread | None) -> bool:
    if best is None or not math.isfinite(row.mean):
        return False
    if row.is_baseline and best.is_baseline:
        return row.mean == best.mean
    return row is best or spread is None or not spread.tells_apart(row, best)


def _reaches(row: Row, best: Row, metric: str) -> bool:
    """Returns whether some seed of `row` is as good as some seed of `best`.

    A wide spread ties everything with the best; what never came near it is no candidate all the same.
    """
    own, other = row.scores.values(), best.scores.values()
    return row is best or (min(own) <= max(other) if metric in MINIMISED else max(own) >= min(other))


def _lead(cheapest: Row, best: Row, near: Sequence[Row], superlative: str, alone: bool) -> str:
    if alone:
        return f"{best.name} has the {superlative}, beyond the spread over seeds of every other configuration."
    if len(near) == 1:
        return f"{best.name} has the {superlative}, and no other configuration's seeds come near it."
    if cheapest is best:
        return (
            f"{best.name} has the {superlative} and trains the fewest parameters of the {len(near)} configurations "
            "that the spread over seeds does not tell apart."
        )
    return (
        f"{cheapest.name} trains the fewest parameters of the {len(near)} configurations that the spread over seeds "
        f"does not tell from {best.name}, which has the {superlative}."
    )


def _cost(row: Row) -> tuple[float, float, str]:
    trainable, seconds = row.trainable, row.seconds
    return (math.inf if trainable is None else trainable, math.inf if seconds is None else seconds, row.name)
