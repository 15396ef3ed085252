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

from fleetune.compare.choice import Choice
from fleetune.compare.costs import COST_WORDS, Cost
from fleetune.compare.pair import PairTest
from fleetune.compare.row import Row
from fleetune.compare.tests import seeds_needed
from fleetune.compare.titles import metric_title
from fleetune.metrics import is_better

NAMED = 4
ON_SCORED = "The same texts chose and judge; only a test split keeps the two apart."


@dataclass(frozen=True)
class Verdict:
    """What may be said: `winner` is None where none is demonstrated; `recommended` names a row."""

    winner: str | None
    recommended: str | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Returns the three fields."""
        return {"winner": self.winner, "recommended": self.recommended, "reason": self.reason}


def verdict_on(
    rows: Sequence[Row], choice: Choice | None, tests: Sequence[PairTest], split: str, cost: Cost = "trainable"
) -> Verdict:
    """Returns the verdict on rows of the same data; it recommends no baseline, but names it.

    Args:
        rows: The rows with their standing.
        choice: Which of them was chosen, and how.
        tests: Those of the chosen row.
        split: What was scored.
        cost: By what the cheapest of the tied is recommended.
    """
    if choice is None:
        title = metric_title(rows[0].metric) if rows else "score"
        return Verdict(None, None, f"Nothing that was trained has a usable {title}: none is recommended.")
    chosen = next(row for row in rows if row.name == choice.row.name)
    if not chosen.is_judged:
        reason = next(iter(chosen.degenerate.values()), "it has no usable score there")
        return Verdict(None, None, f"{chosen.name}, {choice.clause}, fails on {split}: {reason}. None is recommended.")
    on_scored = [ON_SCORED] if choice.on_scored else []
    if len(chosen.scores) < 2:
        return Verdict(
            None, None, " ".join([_one_seed(chosen, choice, tests, split), *_remarks(rows, chosen), *on_scored])
        )
    ahead = [row for row in rows if row.is_baseline and row.standing == "ahead"]
    if ahead:
        return Verdict(
            None,
            None,
            f"{chosen.name}, {choice.clause}, does not come up to the baseline {ahead[0].name} "
            f"({_against(chosen, ahead[0])} on {split}): none is recommended. "
            f"{_demonstrated(rows, chosen, tests, None)}",
        )
    trained = [row for row in rows if not row.is_baseline]
    tied = [row for row in trained if row.is_candidate]
    tied = tied if chosen in tied else [chosen, *tied]
    sound = [row for row in tied if not row.configuration.failed] or tied
    recommended = _cheapest(sound, chosen, cost)
    winner = chosen.name if _wins(chosen, rows, tests) else None
    sentences = [
        _lead(recommended, chosen, choice, rows, tied, split, cost),
        *_failed(recommended),
        _demonstrated(rows, chosen, tests, winner),
        *_outpaced(trained, chosen, recommended, cost, len(tied) == 1),
        *_left_out(trained, sound, recommended, cost),
        *_remarks(rows, chosen),
        *on_scored,
    ]
    return Verdict(winner, recommended.name, " ".join(sentences))


def overall(verdicts: Mapping[str, Verdict]) -> Verdict:
    """Returns one verdict for all data sets; with several there is no common recommendation, only reasons."""
    if not verdicts:
        return Verdict(None, None, "There are no trials to compare.")
    if len(verdicts) == 1:
        return next(iter(verdicts.values()))
    return Verdict(None, None, " ".join(f"On {name}: {verdict.reason}" for name, verdict in verdicts.items()))


def cost_of(row: Row, cost: Cost) -> float:
    """Returns what a row costs by the measure asked for; infinite where that is not known."""
    known: Mapping[Cost, float | None] = {
        "trainable": row.trainable,
        "bundle_bytes": row.bundle_bytes,
        "seconds": row.seconds,
        "serving": row.serving_operations,
    }
    value = known[cost]
    return math.inf if value is None else float(value)


def _cheapest(rows: Sequence[Row], chosen: Row, cost: Cost) -> Row:
    """Returns the cheapest row; of equally cheap ones the chosen, else the best on validation, else the first."""
    lowest = min(cost_of(row, cost) for row in rows)
    cheapest = [row for row in rows if cost_of(row, cost) == lowest]
    best = chosen if chosen in cheapest else cheapest[0]
    for row in cheapest:
        if best is not chosen and is_better(row.metric, row.validation, best.validation):
            best = row
    return best


def _wins(chosen: Row, rows: Sequence[Row], tests: Sequence[PairTest]) -> bool:
    """Returns whether every trained rival, and every baseline that was tested, is demonstrated to be worse.

    Of what some seeds failed the mean is of the survivors, which proves nothing of the rest.
    """
    beaten = {
        test.b if test.a == chosen.name else test.a
        for test in tests
        if test.is_significant and test.favours(chosen.name)
    }
    others = {test.b if test.a == chosen.name else test.a for test in tests}
    rivals = _rivals(rows, chosen)
    return bool(rivals) and beaten == rivals | others and not chosen.configuration.failed


def _rivals(rows: Sequence[Row], chosen: Row) -> set[str]:
    return {row.name for row in rows if row is not chosen and not row.is_baseline and _may_rival(row)}


def _may_rival(row: Row) -> bool:
    """Returns whether the row's method is still in question: it was judged, or is not finished."""
    waiting = any(trial.status in ("pending", "running") for trial in row.configuration.trials)
    return row.is_judged or waiting


def _lead(
    recommended: Row, chosen: Row, choice: Choice, rows: Sequence[Row], tied: Sequence[Row], split: str, cost: Cost
) -> str:
    score = f"{metric_title(chosen.metric)} {chosen.mean:.3f} on {split}"
    if len(tied) == 1:
        others = [row for row in rows if row is not chosen]
        if others and all(row.standing == "behind" for row in others):
            return f"Ship {chosen.name}: {choice.words}, and on {split} every other is behind it ({score})."
        alone = "" if not others else ", and no other comes into question in its place"
        return f"Ship {chosen.name}: {choice.words} ({score}){alone}."
    group = f"the {len(tied)} configurations that seeds and texts do not tell apart"
    lowest = cost_of(recommended, cost)
    dearer = [row for row in tied if cost_of(row, cost) > lowest]
    is_cheapest = math.isfinite(lowest) and len(dearer) == len(tied) - 1
    if recommended is not chosen:
        among = COST_WORDS[cost] if is_cheapest else f"{COST_WORDS[cost]}, with {len(tied) - len(dearer) - 1} more,"
        return (
            f"Ship {recommended.name}: it {among} of {group}; {choice.chooser} {chosen.name} "
            f"({_against(recommended, chosen)} on {split})."
        )
    if is_cheapest:
        return f"Ship {chosen.name}: {choice.words} ({score}), and it {COST_WORDS[cost]} of {group}."
    return f"Ship {chosen.name}: {choice.words} ({score}), and none of {group} is known to be cheaper."


def _failed(recommended: Row) -> list[str]:
    failed, trials = len(recommended.configuration.failed), len(recommended.configuration.trials)
    if not failed:
        return []
    return [f"But {failed} of its {trials} seeds failed: the means are of those that did not."]


def _demonstrated(rows: Sequence[Row], chosen: Row, tests: Sequence[PairTest], winner: str | None) -> str:
    if winner is not None:
        return f"{winner} is the demonstrated winner: every difference to it is significant after Holm's correction."
    known = [test for test in tests if test.p is not None]
    if not known:
        return "No winner is demonstrated: there was nothing that it could be tested against."
    above = [test for test in known if test.is_significant and not test.favours(chosen.name)]
    shown = [test for test in known if test.is_significant and test.favours(chosen.name)]
    needed, seeds, of_all = known[0].seeds_needed, max(test.seeds for test in known), known[0].corrected_for
    said = "No winner is demonstrated"
    comparisons = "one comparison" if of_all == 1 else f"{of_all} comparisons"
    if above:
        other = above[0].a if above[0].b == chosen.name else above[0].b
        return f"{said}: {other} is better than {chosen.name} on the texts that were scored, but was not chosen."
    if seeds < needed:
        had = "one seed" if seeds == 1 else f"{seeds} seeds"
        among = f"among {comparisons}, " if of_all > 1 else "in one comparison, "
        return f"{said}: {among}{had} cannot be significant; set seeds = {needed} to let them."
    if len(shown) == len(tests):
        names = listed([test.b if test.a == chosen.name else test.a for test in shown])
        if chosen.configuration.failed:
            why = "but some of its seeds failed"
        elif not _rivals(rows, chosen):
            why = "and no other that was trained is there to win against"
        else:
            why = "and others are not judged yet"
        return f"{said}: {chosen.name} is significantly better than {names}, {why}."
    if shown:
        return f"{said}: {chosen.name} is significantly better than {len(shown)} of {len(tests)} others only."
    return f"{said}: no difference is significant after Holm's correction over {comparisons}."


def _outpaced(rows: Sequence[Row], chosen: Row, recommended: Row, cost: Cost, is_alone: bool) -> list[str]:
    """Returns a sentence on what its seeds alone keep back: the cheaper ones, or where nothing is tied, all."""
    limit = cost_of(recommended, cost)
    names = [row.name for row in rows if row.standing == "outpaced" and (is_alone or cost_of(row, cost) < limit)]
    if not names:
        return []
    lead = "Worse" if is_alone else "Cheaper, but worse"
    return [f"{lead} than every seed of {chosen.name}: {listed(names)}; more seeds would tell."]


def _left_out(trained: Sequence[Row], sound: Sequence[Row], recommended: Row, cost: Cost) -> list[str]:
    limit = cost_of(recommended, cost)
    tied = [row for row in trained if row.tied_with_best and row not in sound and cost_of(row, cost) < limit]
    names = [row.name for row in tied if row.configuration.failed or row.degenerate]
    return [f"Cheaper, but left out because some seed failed or learned nothing: {listed(names)}."] if names else []


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
        elif row.standing in ("tied", "outpaced") and len(chosen.scores) > 1:
            remarks.append(
                f"That {chosen.name} is better than the baseline {row.name} ({_against(chosen, row)}) is not "
                "demonstrated."
            )
    ahead = [row.name for row in rows if row.degenerate and not row.is_baseline
             and is_better(chosen.metric, row.mean, chosen.mean)]  # fmt: skip
    if ahead:
        verb = "has" if len(ahead) == 1 else "have"
        remarks.append(f"{listed(ahead)} {verb} a better mean, although some seed learned nothing.")
    return remarks


def _one_seed(chosen: Row, choice: Choice, tests: Sequence[PairTest], split: str) -> str:
    enough = tests[0].seeds_needed if tests else seeds_needed(1)
    return (
        f"{chosen.name}, {choice.clause}, has {metric_title(chosen.metric)} {chosen.mean:.3f} on {split}, but with one "
        "seed the spread over seeds is not known, so no difference can be told from chance and none is recommended. "
        f"Set seeds = {enough} or more in the recipe; 3 give a first reading."
    )


def _against(one: Row, other: Row) -> str:
    return f"{one.mean:.3f} against {other.mean:.3f}"


def listed(names: Sequence[str]) -> str:
    """Returns names in words, the first few of them."""
    shown = list(names[:NAMED])
    if len(names) > NAMED:
        return f"{', '.join(shown)} and {len(names) - NAMED} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
