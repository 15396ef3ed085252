"""The comparison of a run's configurations: means with their intervals, paired tests, and what may be said of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, get_args

from fleetune.compare.choice import Choice, choose
from fleetune.compare.claims import Claim, claims_on
from fleetune.compare.configuration import Configuration, group
from fleetune.compare.costs import Cost
from fleetune.compare.data_curve import data_curve, more_labels_help
from fleetune.compare.pair import PairTest, tested
from fleetune.compare.resampling import draws_by_trial
from fleetune.compare.result import TrialResult
from fleetune.compare.row import Row, scored_trials, summed_up
from fleetune.compare.ties import with_ties
from fleetune.compare.verdict import Verdict, overall, verdict_on
from fleetune.metrics import MINIMISED, check_metric

if TYPE_CHECKING:
    import pandas as pd

Pairs = Literal["chosen", "all"]
PAIRS: tuple[Pairs, ...] = get_args(Pairs)


@dataclass(frozen=True)
class Comparison:
    """Every configuration of a run, scored on one split by the metric of its data.

    Attributes:
        metric: Name of the metric; of the first trial where data sets have their own, which their rows name.
        split: `test`, or `validation` where there is no test split.
        rows: One a configuration, in the recipe's order within each data set.
        verdict: What may be said of them.
        tests: The pairs that were asked about.
        claims: Sentences that the tests allow.
        references: By data, the name of the row that validation chooses: what the others are tested against.
        verdicts: By data, what may be said of its rows.
        cost: By what the recommended row is the cheapest of the tied.
    """

    metric: str
    split: str
    rows: tuple[Row, ...]
    verdict: Verdict
    tests: tuple[PairTest, ...] = ()
    claims: tuple[Claim, ...] = ()
    references: Mapping[str, str] = field(default_factory=dict)
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    cost: Cost = "trainable"

    @property
    def has_one_metric(self) -> bool:
        """Whether all rows are scored by the same metric."""
        return len({row.metric for row in self.rows}) < 2

    @property
    def ranked(self) -> list[Row]:
        """The rows from best to worst mean, one data set after the other; rows without a mean last in theirs."""
        data = list(dict.fromkeys(row.configuration.first.data for row in self.rows))
        return sorted(self.rows, key=lambda row: (data.index(row.configuration.first.data), *_rank(row)))

    def row(self, name: str) -> Row:
        """Returns the row called `name`.

        Raises:
            KeyError: If there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def recommended_on(self, data: str) -> str | None:
        """Returns the name of the row that is recommended for the data called `data`; None if none is."""
        return self.verdicts[data].recommended if data in self.verdicts else None

    def lead_on(self, data: str) -> str | None:
        """Returns the name of the row to look at first: recommended, else what validation chooses."""
        return self.recommended_on(data) or self.references.get(data)

    def tests_frame(self) -> pd.DataFrame:
        """Returns the tests as a table, one line a pair."""
        import pandas as pd

        records = [test.to_json() for test in self.tests]
        for record in records:
            record["low"], record["high"] = record.pop("interval") or (None, None)
        return pd.DataFrame.from_records(records)

    def to_json(self) -> dict[str, Any]:
        """Returns what `fleetune compare --json` prints."""
        return {
            "metric": self.metric,
            "split": self.split,
            "rows": [row.to_json() for row in self.rows],
            "tests": [test.to_json() for test in self.tests],
            "claims": [claim.to_json() for claim in self.claims],
            "references": dict(self.references),
            "cost": self.cost,
            "verdict": self.verdict.to_json(),
            "verdicts": {name: verdict.to_json() for name, verdict in self.verdicts.items()},
        }

    def frame(self) -> pd.DataFrame:
        """Returns the rows as a table, best first, one column for each setting that varies."""
        import pandas as pd

        records = []
        for row in self.ranked:
            first = row.configuration.first
            low, high = row.interval or (None, None)
            records.append(
                {"name": row.name, "data": first.data, "backbone": first.backbone, "method": first.method}
                | {key: _cell(value) for key, value in row.configuration.varying.items()}
                | {"metric": row.metric}
                | {"seeds": len(row.scores), "mean": row.mean, "low": low, "high": high, "spread": row.spread}
                | {"interval_over": row.interval_over, "validation": row.validation, "standing": row.standing}
                | {"trainable": row.trainable, "seconds": row.seconds, "peak_bytes": row.peak_bytes}
                | {"operations": row.operations, "serving_operations": row.serving_operations}
                | {"texts_per_second": row.texts_per_second}
                | {"evaluation_texts_per_second": row.evaluation_texts_per_second}
                | {"bundle_bytes": row.bundle_bytes, "tied_with_best": row.tied_with_best}
                | {"degenerate": bool(row.degenerate), "failed": len(row.configuration.failed)}
            )
        return pd.DataFrame.from_records(records)


def compare(
    results: Sequence[TrialResult],
    split: str | None = None,
    metric: str | None = None,
    cost: Cost = "trainable",
    pairs: Pairs = "chosen",
) -> Comparison:
    """Returns the comparison of `results`; trials on a share of the training texts are no part of it.

    Args:
        results: Every trial of a run, failed and unfinished ones too.
        split: Whose predictions are scored; the test split where every finished trial has one, else validation.
        metric: Which score; each trial's own metric where absent.
        cost: By what the cheapest of the tied is recommended.
        pairs: Which are shown: each configuration against the one that validation chooses, or `all`. All are
            corrected for either way: validation chose among all of them, by the same trained seeds.

    Raises:
        RecipeError: If the metric is not defined for the labels.
    """
    trials = [trial for trial in results if trial.train_share >= 1.0]
    split = split or scored_split(trials)
    by_data: dict[str, list[Configuration]] = {}
    for one in group(trials):
        by_data.setdefault(one.first.data, []).append(one)
    rows = {name: _rows(members, split, metric) for name, members in by_data.items()}
    choices = {name: choose(members, split) for name, members in rows.items()}
    possible = {name: _pairs(members, choices[name]) for name, members in rows.items()}
    asked = [
        (a, b)
        for name, members in possible.items()
        for a, b in members
        if pairs == "all" or a is _row_of(choices[name])
    ]
    # One correction for all that can be asked of the run, whichever data it is about.
    family = sum(map(len, possible.values()))
    tests = tested(asked, split, family)
    found = {
        name: _concluded(members, choices[name], [test for test in tests if test.data == name], split, cost, family)
        for name, members in rows.items()
    }
    first = metric or (trials[0].metric if trials else "f1_macro")
    return Comparison(
        first,
        split,
        tuple(row for one in found.values() for row in one.rows),
        overall({name: one.verdict for name, one in found.items()}),
        tuple(test for one in found.values() for test in one.tests),
        (*(claim for one in found.values() for claim in one.claims), *_curve_claims(results, split, metric)),
        {name: choice.row.name for name, choice in choices.items() if choice is not None},
        {name: one.verdict for name, one in found.items()},
        cost,
    )


def _curve_claims(results: Sequence[TrialResult], split: str, metric: str | None) -> list[Claim]:
    points = data_curve(results, split, metric)
    return [Claim(f"More labels: {sentence}", "data-curve") for sentence in more_labels_help(points)]


@dataclass(frozen=True)
class _OnOneData:
    rows: list[Row]
    tests: list[PairTest]
    claims: list[Claim]
    verdict: Verdict


def _rows(configurations: Sequence[Configuration], split: str, metric: str | None) -> list[Row]:
    first = configurations[0].first
    metric = metric or first.metric
    check_metric(metric, len(first.label_names), first.multi_label)
    draws = draws_by_trial([trial for one in configurations for trial in scored_trials(one, split)], split, metric)
    return [summed_up(one, split, metric, draws) for one in configurations]


def _pairs(rows: Sequence[Row], choice: Choice | None) -> list[tuple[Row, Row]]:
    """Returns every pair that can be tested, the chosen row first in its own; baselines are not held against others.

    What learned nothing, and floors, are left out.
    """
    if choice is None or not choice.row.is_judged:
        return []
    rivals = [row for row in rows if row is not choice.row and row.is_judged]
    others = [(a, b) for a, b in combinations(rivals, 2) if not (a.is_baseline and b.is_baseline)]
    return [(choice.row, row) for row in rivals] + others


def _row_of(choice: Choice | None) -> Row | None:
    return choice.row if choice else None


def _concluded(
    rows: Sequence[Row], choice: Choice | None, tests: Sequence[PairTest], split: str, cost: Cost, family: int
) -> _OnOneData:
    chosen = _row_of(choice)
    own = [test for test in tests if chosen is not None and chosen.name in (test.a, test.b)]
    standing = with_ties(rows, chosen, family, own)
    verdict = verdict_on(standing, choice, own, split, cost)
    return _OnOneData(standing, list(tests), claims_on(standing, tests, split), verdict)


def scored_split(results: Sequence[TrialResult]) -> str:
    """Returns `test` where every trial with predictions has some there, else `validation`."""
    having = [trial for trial in results if trial.predictions]
    with_test = [trial for trial in having if "test" in trial.predictions and len(trial.labels("test"))]
    return "test" if having and len(with_test) == len(having) else "validation"


def _rank(row: Row) -> tuple[bool, float]:
    sign = 1.0 if row.metric in MINIMISED else -1.0
    return math.isnan(row.mean), 0.0 if math.isnan(row.mean) else sign * row.mean


def _cell(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
