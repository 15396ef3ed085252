"""`comparison.json` against what follows from a run's predictions and its ledger."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from tests.recomputed.inference import (
    Pair,
    Row,
    difference_of,
    has_diverged,
    loss_at_chance,
    sign_flips,
    still_falling,
    within,
)
from tests.recomputed.printed import Checks
from tests.recomputed.scores import LOWER_IS_BETTER
from tests.recomputed.stored import FLOOR, Stored, Trial
from tests.recomputed.verdict import NEAR, Outcome, outcomes

COSTS = {
    "trainable": "trains the fewest parameters",
    "bundle_bytes": "has the smallest bundle",
    "seconds": "trains the fastest",
    "serving": "needs the fewest operations to serve",
}


@dataclass(frozen=True)
class Recomputed:
    """All rows and what may be said of them, by data set."""

    split: str
    metric: str
    outcomes: dict[str, Outcome]
    curves: dict[str, list[tuple[float, Row]]]

    @property
    def rows(self) -> list[Row]:
        return [row for one in self.outcomes.values() for row in one.rows]

    @property
    def names(self) -> list[str]:
        """Names that may have digits in them: of rows, data, methods, labels."""
        first = [row.first for row in self.rows]
        labels = [name for trial in first for name in trial.label_names]
        words = [str(trial.row[key]) for trial in first for key in ("name", "data", "backbone")]
        return [*dict.fromkeys([row.name for row in self.rows] + words + labels + [trial.entry for trial in first])]

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if " ".join(row.name.split()) == " ".join(name.split())), None)

    @property
    def recommended(self) -> str | None:
        """The one recommendation of a run; several data sets have one each, and none in common."""
        return next(iter(self.outcomes.values())).recommended if len(self.outcomes) == 1 else None

    @property
    def winner(self) -> str | None:
        return next(iter(self.outcomes.values())).winner if len(self.outcomes) == 1 else None


def recomputed(stored: Stored, checks: Checks) -> Recomputed:
    """Returns the rows of a run, called as its comparison calls them, and what follows from their predictions."""
    said = stored.comparison
    having = [one for one in stored.trials if one.predictions and one.share >= 1]
    split = "test" if having and all(one.texts("test") for one in having) else "validation"
    checks.equal("comparison.json: split", said["split"], split)
    groups = _grouped([one for one in stored.trials if one.share >= 1])
    checks.equal("comparison.json: number of rows", len(said["rows"]), len(groups))
    by_data: dict[str, list[Row]] = {}
    names: dict[tuple[str, ...], str] = {}
    data = list(dict.fromkeys(trials[0].row["data"] for trials in groups))
    for trials, stated in zip(
        sorted(groups, key=lambda one: data.index(one[0].row["data"])), said["rows"], strict=False
    ):
        row = Row(stated["name"], trials, split, stated["metric"])
        names[trials[0].key] = row.name
        by_data.setdefault(row.data, []).append(row)
    all_pairs = any(said["references"].get(one["data"]) not in (one["a"], one["b"]) for one in said["tests"])
    found = outcomes(by_data, said["cost"], all_pairs)
    return Recomputed(split, said["metric"], found, _curves(stored, names, split, said))


def _grouped(trials: Sequence[Trial]) -> list[list[Trial]]:
    found: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial.key, []).append(trial)
    return [sorted(members, key=lambda one: one.row["seed"]) for members in found.values()]


def _curves(
    stored: Stored, names: dict[tuple[str, ...], str], split: str, said: dict[str, Any]
) -> dict[str, list[tuple[float, Row]]]:
    """Returns by name the rows of each share of the training texts, of those that have several."""
    asked = {one["name"]: one["metric"] for one in said["rows"]}
    found = {}
    for trials in _grouped(stored.trials):
        name = names.get(trials[0].key, trials[0].row["name"])
        shares = sorted({one.share for one in trials})
        rows = [
            (share, Row(name, [one for one in trials if one.share == share], split, asked[name])) for share in shares
        ]
        rows = [(share, row) for share, row in rows if row.scores]
        if len(shares) > 1 and len(rows) > 1:
            found[name] = rows
    return found


def check_comparison(stored: Stored, found: Recomputed, checks: Checks) -> None:
    """Checks every number of `comparison.json`."""
    said = stored.comparison
    for stated, row in zip(said["rows"], found.rows, strict=False):
        _check_row(stated, row, found.outcomes[row.data], checks)
    tests = [(test, one) for one in found.outcomes.values() for test in one.tests]
    checks.equal("comparison.json: number of tests", len(said["tests"]), len(tests))
    for stated, (test, of_data) in zip(said["tests"], tests, strict=False):
        _check_test(stated, test, of_data, checks)
    references = {name: one.chosen.name for name, one in found.outcomes.items() if one.chosen}
    checks.equal("comparison.json: references", said["references"], references)
    checks.equal("comparison.json: cost", said["cost"], stored.cost)
    checks.equal("comparison.json: winner", said["verdict"]["winner"], found.winner)
    checks.equal("comparison.json: recommended", said["verdict"]["recommended"], found.recommended)
    check_reason("comparison.json: reason", said["verdict"]["reason"], found, checks)
    checks.equal("comparison.json: data sets with a verdict", list(said["verdicts"]), list(found.outcomes))
    for name, outcome in found.outcomes.items():
        verdict = said["verdicts"].get(name, {"winner": None, "recommended": None, "reason": ""})
        checks.equal(f"comparison.json: winner on {name}", verdict["winner"], outcome.winner)
        checks.equal(f"comparison.json: recommended on {name}", verdict["recommended"], outcome.recommended)
        checks.equal(f"comparison.json: reason on {name}", verdict["reason"] in said["verdict"]["reason"], True)
        check_reason(f"comparison.json: reason on {name}", verdict["reason"], found, checks)
        _check_words(verdict["reason"], outcome, said["cost"], checks)
    _check_claims(said["claims"], found, checks)


def check_reason(where: str, sentence: str, found: Recomputed, checks: Checks) -> None:
    """Checks that the numbers of the verdict's sentences are means or counts of the rows."""
    pool = [row.mean for row in found.rows]
    for one in found.outcomes.values():
        pool += [len(one.own), one.needed, one.corrected_for, *range(len(one.rows) + 1), 3]
        pool += [number for row in one.rows for number in (len(row.failed), len(row.trials)) if row.failed]
        pool += [test.seeds for test in one.tests]
        pool += [number for numbers in (one.chosen.degenerate.values() if one.chosen else ()) for number in numbers]
    checks.among(where, sentence, pool, found.names)


def _check_words(reason: str, of_data: Outcome, cost: str, checks: Checks) -> None:
    """Checks that the verdict's sentences say of one data set what follows, and nothing that does not."""
    chosen, recommended, tied = of_data.chosen, of_data.recommended, of_data.tied
    mine = next((row for row in tied if row.name == recommended), None)
    dearer = [row for row in tied if mine and row.cost(cost) > mine.cost(cost)]
    told = mine is not None and math.isfinite(mine.cost(cost)) and len(dearer) == len(tied) - 1
    others = [row for row in of_data.rows if row is not chosen]
    all_behind = bool(others) and all(of_data.standing[row.name] == "behind" for row in others)
    is_tested = recommended is not None and of_data.winner is None
    own = [test for test in of_data.own if test.p is not None]
    shown = [test for test in own if of_data.is_shown(test)]
    seeds = max((test.seeds for test in own), default=0)
    said = {
        f"Ship {recommended}": recommended is not None,
        "one is recommended": recommended is None,
        ", fails on ": chosen is not None and not chosen.is_judged,
        "every other is behind it": len(tied) == 1 and all_behind,
        "no other comes into question": len(tied) == 1 and bool(others) and not all_behind,
        f"the {len(tied)} configurations that seeds and texts do not tell apart": len(tied) > 1,
        "of its": mine is not None and bool(mine.failed),
        "nothing that it could be tested against": is_tested and not own,
        "cannot be significant": is_tested and bool(own) and seeds < of_data.needed and not _beats(own, of_data),
        "no difference is significant": is_tested and bool(own) and not shown and seeds >= of_data.needed,
        "but was not chosen": is_tested and _beats(own, of_data),
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


def _beats(own: Sequence[Pair], of_data: Outcome) -> bool:
    """Returns whether some row is demonstrated to be better than the chosen one."""
    for test in own:
        gain = test.difference if test.a is of_data.chosen else -test.difference
        if of_data.is_shown(test) and (gain > 0) == (test.a.metric in LOWER_IS_BETTER):
            return True
    return False


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


def _check_row(stated: dict[str, Any], row: Row, of_data: Outcome, checks: Checks) -> None:
    first, where = row.first.row, f"comparison.json: row {row.name!r}"
    for key in ("data", "backbone", "kind"):
        checks.equal(f"{where}, {key}", stated[key], first[key])
    checks.equal(f"{where}, method", stated["method"], first["name"])
    checks.equal(f"{where}, seeds", stated["seeds"], len(row.scores))
    checks.equal(f"{where}, seeds with scores", sorted(stated["scores"]), sorted(map(str, row.scores)))
    for seed, score in row.scores.items():
        checks.close(f"{where}, score of seed {seed}", stated["scores"].get(str(seed)), score)
    numbers = {"mean": row.mean, "spread": row.spread, "validation": row.validation, "texts": float(row.texts)}
    numbers |= costs(row)
    for key, value in numbers.items():
        checks.close(f"{where}, {key}", stated[key], value)
    _check_interval(where, stated["interval"], row.interval, checks)
    over = None if row.interval is None else "seeds and texts" if len(row.scores) > 1 else "texts"
    checks.equal(f"{where}, interval_over", stated["interval_over"], over)
    checks.equal(f"{where}, parameters", stated["parameters"], row.first.parameters)
    checks.equal(f"{where}, standing", stated["standing"], of_data.standing[row.name])
    checks.equal(f"{where}, tied_with_best", stated["tied_with_best"], of_data.standing[row.name] in NEAR)
    checks.equal(f"{where}, baseline", stated["baseline"], row.is_baseline)
    checks.equal(f"{where}, degenerate", stated["degenerate"], bool(row.degenerate))
    checks.equal(f"{where}, degenerate seeds", sorted(stated["degenerate_seeds"]), sorted(map(str, row.degenerate)))
    for seed, numbers_of in row.degenerate.items():
        sentence = stated["degenerate_seeds"].get(str(seed), "")
        checks.among(f"{where}, why seed {seed} is degenerate", sentence, numbers_of, row.first.label_names)
    checks.equal(f"{where}, failed", stated["failed"], len(row.failed))
    unfinished = len(row.trials) - len(row.done) - len(row.failed)
    checks.equal(f"{where}, unfinished", stated["unfinished"], unfinished)


def costs(row: Row) -> dict[str, float | None]:
    """Returns what a row costs, by the names that `comparison.json` has."""

    def highest(name: str) -> float | None:
        return max((one.row[name] for one in row.done if one.row[name] is not None), default=None)

    return {
        "trainable": row.first.parameters.get("trainable"),
        "seconds": row.seconds,
        "peak_bytes": highest("peak_bytes"),
        "bundle_bytes": highest("bundle_bytes"),
        "operations": row.over_seeds(one.row.get("operations") for one in row.done),
        "serving_operations": row.first.row.get("serving_operations"),
        "texts_per_second": row.over_seeds(one.training_rate for one in row.done),
        "evaluation_texts_per_second": row.over_seeds(one.evaluation_rate for one in row.done),
    }


def _check_interval(where: str, stated: list[float] | None, ends: tuple[float, float] | None, checks: Checks) -> None:
    for place, name in enumerate(("low", "high")):
        checks.close(f"{where}, {name}", stated[place] if stated else None, ends[place] if ends else None)


def _check_test(stated: dict[str, Any], test: Pair, of_data: Outcome, checks: Checks) -> None:
    where = f"comparison.json: test of {test.a.name!r} and {test.b.name!r}"
    checks.equal(where, (stated["a"], stated["b"]), (test.a.name, test.b.name))
    adjusted = of_data.adjusted.get(id(test))
    numbers = {"difference": test.difference, "p_seeds": test.p_seeds, "p_texts": test.p_texts, "p": test.p}
    for key, value in (numbers | {"p_adjusted": adjusted}).items():
        checks.close(f"{where}, {key}", stated[key], value)
    _check_interval(where, stated["interval"], test.interval, checks)
    checks.equal(f"{where}, seeds", stated["seeds"], test.seeds)
    checks.equal(f"{where}, seeds_needed", stated["seeds_needed"], of_data.needed)
    checks.equal(f"{where}, corrected_for", stated["corrected_for"], of_data.corrected_for)
    checks.equal(f"{where}, significant", stated["significant"], of_data.is_shown(test))


@dataclass(frozen=True)
class Sentence:
    """A claim that may be made: words it holds and does not hold, its numbers, and those that may be printed in it."""

    evidence: str
    words: dict[str, bool]
    numbers: dict[str, Any]
    pool: list[float]


def _check_claims(stated: Sequence[dict[str, Any]], found: Recomputed, checks: Checks) -> None:
    """Checks that exactly those claims are made that follow, with their numbers."""
    expected = [one for of_data in found.outcomes.values() for one in _sentences(of_data)]
    rest = [one for one in stated if one["evidence"] not in ("data-curve", "budget")]
    checks.equal("comparison.json: number of claims", len(rest), len(expected))
    for claim, one in zip(rest, expected, strict=False):
        where = f"comparison.json: claim {claim['text'][:60]!r}"
        checks.equal(f"{where}, evidence", claim["evidence"], one.evidence)
        for words, holds in one.words.items():
            checks.equal(f"{where}, holds {words!r}", words in claim["text"], holds)
        checks.equal(f"{where}, names of its numbers", sorted(claim["numbers"]), sorted(one.numbers))
        for name, value in one.numbers.items():
            if isinstance(value, list):
                checks.equal(f"{where}, {name}", claim["numbers"].get(name), value)
            else:
                checks.close(f"{where}, {name}", claim["numbers"].get(name), value)
        checks.among(where, claim["text"], one.pool, [*found.names, "95 %"])
    for claim in stated:
        if claim["evidence"] == "budget":
            _check_budget_claim(claim, found, checks)
    curves = [claim for claim in stated if claim["evidence"] == "data-curve"]
    steps = last_steps(found)
    checks.equal("comparison.json: number of claims on more labels", len(curves), len(steps))
    for claim, step in zip(curves, steps, strict=False):
        check_more_labels("comparison.json: claim on more labels", claim["text"], step, len(steps), found, checks)


def _sentences(of_data: Outcome) -> list[Sentence]:
    rows = of_data.rows
    found = []
    for test in of_data.tests:
        if of_data.is_shown(test):
            p = of_data.adjusted[id(test)]
            ends = test.interval or (test.difference, test.difference)
            low, high = ends if test.difference > 0 else (-ends[1], -ends[0])
            numbers = {
                "difference": abs(test.difference),
                "low": low,
                "high": high,
                "p_adjusted": p,
                "seeds": test.seeds,
            }
            both = (test.a, test.b)
            counts = [number for row in both for number in (len(row.failed), len(row.degenerate), len(row.trials))]
            pool = [value for name, value in numbers.items() if name != "p_adjusted"]
            words = {
                "is better than": True,
                "p < 0.001": p < 0.001,
                "failed and are not in its mean": any(row.failed for row in both),
                "learned nothing and are in its mean": any(row.degenerate and not row.is_baseline for row in both),
            }
            found.append(Sentence("tests", words, numbers, [*pool, *counts, max(p, 0.001)]))
    found += _undemonstrated(of_data)
    for one, other in combinations([row for row in rows if row.scores and not row.is_baseline], 2):
        if splits := _same_splits(one, other):
            found.append(Sentence("configurations", {"gave the same outputs": True}, {"splits": splits}, []))
    nothing = sum(len(row.degenerate) for row in rows if not row.is_baseline)
    if nothing:
        pool = [nothing, *range(len(rows))]
        found.append(Sentence("configurations", {"learned nothing": True}, {"trials": nothing}, pool))
    found += _training_sentences(rows)
    failed = [len(row.failed) for row in rows if row.failed]
    if failed:
        pool = [sum(failed), *range(len(rows))]
        found.append(Sentence("configurations", {"failed": True}, {"trials": sum(failed)}, pool))
    return found


def _undemonstrated(of_data: Outcome) -> list[Sentence]:
    """Returns the sentence on tests that show nothing: what they leave room for, all together."""
    still = [test for test in of_data.tests if test.p is not None and not of_data.is_shown(test)]
    if not still:
        return []
    ends = [test.simultaneous for test in still if test.simultaneous]
    room = max(abs(end) for both in ends for end in both) if len(ends) == len(still) else None
    seeds = max(test.seeds for test in still)
    numbers = {"room": room, "seeds": seeds, "seeds_needed": of_data.needed}
    counts = [len(of_data.tests), len(still), len(still) - 4, of_data.corrected_for, seeds, of_data.needed]
    words = {
        "No difference is demonstrated": True,
        "leave room for up to": room is not None,
        "none could be": seeds < of_data.needed,
    }
    return [Sentence("tests", words, numbers, [*counts, *([] if room is None else [room])])]


def _training_sentences(rows: Sequence[Row]) -> list[Sentence]:
    found, improving = [], []
    for row in rows:
        at_chance = [one for one in map(loss_at_chance, row.done) if one]
        if 2 * len(at_chance) > len(row.done):
            pool = [len(at_chance), len(row.done), *at_chance[0], *_settings_of(row)]
            first = next(one for one in row.done if loss_at_chance(one))
            words = {"cannot be judged by these scores": True, "Diverged": has_diverged(first)}
            found.append(Sentence("training", words, {"trials": len(at_chance)}, pool))
        elif 2 * sum(bool(loss_at_chance(one) or still_falling(one)) for one in row.done) > len(row.done):
            improving.append(row.name)
    if improving:
        numbers = {"configurations": len(improving)}
        found.append(Sentence("training", {"Still improving": True}, numbers, [*range(len(rows))]))
    return found


def _settings_of(row: Row) -> list[float]:
    return [float(value) for key in ("learning_rate", "epochs") if (value := row.first.settings.get(key)) is not None]


def _same_splits(one: Row, other: Row) -> list[str]:
    """Returns the splits on which two rows of the same seeds gave the same logits with every one."""
    if one.scores.keys() != other.scores.keys():
        return []
    common = [(a, b) for a in one.done for b in other.done if a.row["seed"] == b.row["seed"] and a.texts(one.split)]
    common = [(a, b) for a, b in common if b.texts(one.split)]
    same = [
        [split for split in a.predictions if split in b.predictions and a.texts(split)
         and np.array_equal(a.predictions[split][1], b.predictions[split][1], equal_nan=True)]
        for a, b in common
    ]  # fmt: skip
    return [split for split in same[0] if all(split in of_seed for of_seed in same)] if same else []


def _check_budget_claim(claim: dict[str, Any], found: Recomputed, checks: Checks) -> None:
    where = f"comparison.json: claim {claim['text'][:60]!r}"
    rows = [row for row in found.outcomes[claim["data"]].rows if not row.is_baseline]
    sizes: dict[str, set[int]] = {}
    several = len({row.first.row["backbone"] for row in rows}) > 1
    for backbone, entry in dict.fromkeys((row.first.row["backbone"], row.first.entry) for row in rows):
        size = sum((row.first.row["backbone"], row.first.entry) == (backbone, entry) for row in rows)
        sizes.setdefault(f"{entry} on {backbone}" if several else entry, set()).add(size)
    for name, value in claim["numbers"].items():
        known = sizes.get(name, set()) if name != "settings" else set().union(*sizes.values())
        checks.equal(f"{where}, {name}: {value} is among {sorted(known)}", value in known, True)
    values = [float(value) for row in rows for value in row.first.settings.values() if isinstance(value, int | float)]
    checks.among(where, claim["text"], [*values, *(size for known in sizes.values() for size in known)], found.names)


Step = tuple[tuple[float, Row], tuple[float, Row]]


def last_steps(found: Recomputed) -> list[Step]:
    """Returns the last two shares of the training texts of every curve, but of what learns nothing by design."""
    steps = []
    for points in found.curves.values():
        usable = [(share, row) for share, row in points if math.isfinite(row.mean)]
        if len(usable) > 1 and usable[0][1].first.row["kind"] != FLOOR:
            steps.append((usable[-2], usable[-1]))
    return steps


def check_more_labels(where: str, sentence: str, step: Step, steps: int, found: Recomputed, checks: Checks) -> None:
    """Checks the numbers of what is said of more labels: amounts, the last step's gain, and its interval."""
    (before_share, before), (after_share, after) = step
    pool: list[float] = [steps, 3, before_share, after_share]
    pool += [float(row.first.row["train_texts"]) for row in (before, after) if row.first.row.get("train_texts")]
    gap = difference_of(after, before)
    enough = gap is not None and len(gap[0]) >= (1 if after.is_baseline else 3)
    checks.equal(f"{where}: {after.name!r} has an interval", "95 % interval" in sentence, enough)
    checks.equal(f"{where}: {after.name!r}, of the steps", ", and of the steps" in sentence, not after.is_baseline)
    if gap is not None and enough:
        sign = -1.0 if after.metric in LOWER_IS_BETTER else 1.0
        mean = statistics.fmean(gap[0])
        low, high = sorted(sign * end for end in within(gap[1].ends(mean, 0.05 / steps), after.metric))
        is_shown = not after.is_baseline and sign_flips(gap[0]) * steps < 0.05
        for words, said in ((": yes, ", low > 0 and is_shown), ("seem to help", low > 0 and not is_shown)):
            checks.equal(f"{where}: {after.name!r}, {words!r}", words in sentence, said)
        pool += [sign * mean, len(gap[0]), low, high]
    checks.among(where, sentence, pool, [*found.names, "95 %"])
