"""The sentences of a verdict: each stands there where it follows, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.recomputed.inference import Pair, Row
from tests.recomputed.printed import Checks
from tests.recomputed.scores import LOWER_IS_BETTER
from tests.recomputed.verdict import Outcome

COSTS = {
    "trainable": "trains the fewest parameters",
    "bundle_bytes": "has the smallest bundle",
    "seconds": "trains the fastest",
    "serving": "needs the fewest operations to serve",
}


def check_words(reason: str, of_data: Outcome, cost: str, checks: Checks) -> None:
    """Checks that the verdict's sentences say of one data set what follows, and nothing that does not."""
    chosen, recommended, tied = of_data.chosen, of_data.recommended, of_data.tied
    mine = next((row for row in tied if row.name == recommended), None)
    dearer = [row for row in tied if mine and row.cost(cost) > mine.cost(cost)]
    told = mine is not None and math.isfinite(mine.cost(cost)) and len(dearer) == len(tied) - 1
    others = [row for row in of_data.rows if row is not chosen]
    all_behind = bool(others) and all(of_data.standing[row.name] == "behind" for row in others)
    is_usable = chosen is not None and chosen.is_judged and len(chosen.scores) > 1
    is_tested = is_usable and of_data.winner is None
    own = [test for test in of_data.own if test.p is not None]
    better = _better(own, of_data)
    shown = [test for test in own if of_data.is_shown(test)]
    seeds = max((test.seeds for test in own), default=0)
    said = {
        f"Ship {recommended}": recommended is not None,
        "one is recommended": recommended is None,
        ", fails on ": chosen is not None and not chosen.is_judged,
        "every other is behind it": len(tied) == 1 and all_behind,
        "no other comes into question": len(tied) == 1 and bool(others) and not all_behind,
        f"the {len(tied)} configurations that seeds and texts do not tell apart": len(tied) > 1,
        "seeds failed: the means are of those that did not": mine is not None and bool(mine.failed),
        "nothing that it could be tested against": is_tested and not own,
        "cannot be significant": is_tested and bool(own) and not better and seeds < of_data.needed,
        "no difference is significant": is_tested and bool(own) and not shown and seeds >= of_data.needed,
        "on the texts that were scored": is_tested and bool(better),
        "but was not chosen": is_tested and bool(better) and not better[0].is_baseline,
        COSTS[cost]: len(tied) > 1 and (told or mine is not chosen),
        "is known to be cheaper": len(tied) > 1 and mine is chosen and not told,
        "is the demonstrated winner": of_data.winner is not None,
        "The same texts chose and judge": of_data.choice is not None
        and of_data.choice.on_scored
        and (recommended is not None or (of_data.choice.row.is_judged and len(of_data.choice.row.scores) == 1)),
    }
    said |= {f"baseline {row.name} ": _is_mentioned(row, of_data) for row in of_data.rows if row.is_baseline}
    for words, expected in said.items():
        checks.equal(f"comparison.json: reason says {words!r}", words in reason, expected)


def _better(own: Sequence[Pair], of_data: Outcome) -> list[Row]:
    """Returns the rows that are demonstrated to be better than the chosen one."""
    found = []
    for test in own:
        gain = test.difference if test.a is of_data.chosen else -test.difference
        if of_data.is_shown(test) and (gain > 0) == (test.a.metric in LOWER_IS_BETTER):
            found.append(test.b if test.a is of_data.chosen else test.a)
    return found


def _is_mentioned(row: Row, of_data: Outcome) -> bool:
    """Returns whether the verdict names a baseline: the chosen row has a worse mean, or is not shown to be better."""
    chosen = of_data.chosen
    if chosen is None or not chosen.is_judged:
        return False
    ahead = [one.name for one in of_data.rows if one.is_baseline and of_data.standing[one.name] == "ahead"]
    if ahead and len(chosen.scores) > 1:
        return row.name == ahead[0]
    if row.degenerate or not math.isfinite(row.mean):
        return False
    is_better = row.mean < chosen.mean if row.metric in LOWER_IS_BETTER else row.mean > chosen.mean
    return is_better or (of_data.standing[row.name] in ("tied", "outpaced") and len(chosen.scores) > 1)
