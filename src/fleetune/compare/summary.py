"""The comparison of a run's configurations: means over seeds with their spread, and what may be said of them.

Nothing here demonstrates a winner: `tests` stays empty and `winner` null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fleetune.compare.claims import Claim
from fleetune.compare.configuration import group
from fleetune.compare.pair import PairTest
from fleetune.compare.result import TrialResult
from fleetune.compare.row import Row, summed_up
from fleetune.compare.verdict import Verdict, overall, verdict_on, with_ties
from fleetune.metrics import MINIMISED

if TYPE_CHECKING:
    import pandas as pd


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
    """

    metric: str
    split: str
    rows: tuple[Row, ...]
    verdict: Verdict
    tests: tuple[PairTest, ...] = ()
    claims: tuple[Claim, ...] = ()
    references: Mapping[str, str] = field(default_factory=dict)

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

    def to_json(self) -> dict[str, Any]:
        """Returns what `fleetune compare --json` prints."""
        return {
            "metric": self.metric,
            "split": self.split,
            "rows": [row.to_json() for row in self.rows],
            "tests": [test.to_json() for test in self.tests],
            "verdict": self.verdict.to_json(),
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
                | {"trainable": row.trainable, "seconds": row.seconds, "peak_bytes": row.peak_bytes}
                | {"bundle_bytes": row.bundle_bytes, "tied_with_best": row.tied_with_best}
                | {"degenerate": bool(row.degenerate), "failed": len(row.configuration.failed)}
            )
        return pd.DataFrame.from_records(records)


def compare(results: Sequence[TrialResult], split: str | None = None, metric: str | None = None) -> Comparison:
    """Returns the comparison of `results`.

    Args:
        results: Every trial of a run, failed and unfinished ones too.
        split: Whose predictions are scored; the test split where every finished trial has one, else validation.
        metric: Which score; each trial's own metric where absent.
    """
    trials = list(results)
    split = split or scored_split(trials)
    by_data: dict[str, list[Row]] = {}
    for one in group(trials):
        row = summed_up(one, split, metric or one.first.metric)
        by_data.setdefault(row.configuration.first.data, []).append(row)
    for name, members in by_data.items():
        by_data[name] = with_ties(members, members[0].metric)
    rows = [row for members in by_data.values() for row in members]
    verdicts = {name: verdict_on(members, members[0].metric, split) for name, members in by_data.items()}
    first = metric or (trials[0].metric if trials else "f1_macro")
    return Comparison(first, split, tuple(rows), overall(verdicts))


def scored_split(results: Sequence[TrialResult]) -> str:
    """Returns `test` where every trial with predictions has some there, else `validation`."""
    having = [trial for trial in results if trial.predictions]
    with_test = [trial for trial in having if "test" in trial.predictions and len(trial.predictions["test"][0])]
    return "test" if having and len(with_test) == len(having) else "validation"


def _rank(row: Row) -> tuple[bool, float]:
    sign = 1.0 if row.metric in MINIMISED else -1.0
    return math.isnan(row.mean), 0.0 if math.isnan(row.mean) else sign * row.mean


def _cell(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
