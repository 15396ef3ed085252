"""How many settings each method chose from, whether the chosen one lies at an edge, and what fewer would give."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleetune.compare.configuration import ABSENT, all_settings
from fleetune.compare.row import Row
from fleetune.metrics import MINIMISED

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Budget:
    """What one `[[method]]` of a recipe could choose from on one data set and backbone.

    Attributes:
        data: Name of the data.
        backbone: Name of the backbone.
        entry: Name of the method's entry in the recipe; its kind in older runs.
        settings: How many settings were tried.
        trials: How many trials, all seeds together, failed ones too.
        axes: The settings that vary, each with its values, numbers in order.
        chosen: Name of the configuration of the best mean score on validation; None where none has a score.
        edges: A sentence for each number of the chosen configuration that ends its axis.
        untuned: That a single learning rate was tried, in a sentence; None where several were.
    """

    data: str
    backbone: str
    entry: str
    settings: int
    trials: int
    axes: dict[str, list[Any]]
    chosen: str | None
    edges: tuple[str, ...]
    untuned: str | None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return {
            "data": self.data,
            "backbone": self.backbone,
            "entry": self.entry,
            "settings": self.settings,
            "trials": self.trials,
            "axes": self.axes,
            "chosen": self.chosen,
            "edges": list(self.edges),
            "untuned": self.untuned,
        }


@dataclass(frozen=True)
class ExpectedBest:
    """What choosing on validation among fewer settings would be expected to give.

    Attributes:
        settings_tried: How many settings.
        validation: Expected validation score of the chosen one.
        scored: Expected score of the chosen one on the split that the rows are scored on.
    """

    settings_tried: int
    validation: float
    scored: float

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return {"settings_tried": self.settings_tried, "validation": self.validation, "scored": self.scored}


def budgets(rows: Sequence[Row]) -> list[Budget]:
    """Returns the budget of each method's entry on each data set and backbone; baselines choose nothing."""
    return [_budget(key, members) for key, members in by_entry(rows).items()]


def by_entry(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Returns the trained rows by data, backbone and the method's entry in the recipe."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        first = row.configuration.first
        if not row.is_baseline:
            groups.setdefault((first.data, first.backbone, first.entry or first.kind), []).append(row)
    return groups


def unequal(found: Sequence[Budget]) -> str | None:
    """Returns a sentence on methods that chose from different numbers of settings; None where all had equally many."""
    groups: dict[tuple[str, str], list[Budget]] = {}
    for budget in found:
        groups.setdefault((budget.data, budget.backbone), []).append(budget)
    uneven = {key: members for key, members in groups.items() if len({one.settings for one in members}) > 1}
    if not uneven:
        return None
    parts = []
    for (data, backbone), members in uneven.items():
        where = f"on {data} with {backbone}: " if len(groups) > 1 else ""
        parts.append(where + ", ".join(f"{one.entry} {one.settings}" for one in members))
    return (
        f"The methods chose from different numbers of settings ({'; '.join(parts)}): the best of more owes more of its "
        "validation score to chance."
    )


def expected_best(rows: Sequence[Row]) -> list[ExpectedBest]:
    """Returns what the best of n of these settings is expected to score, for n from 1 to all of them.

    Of g settings in the order of their validation score, the k-th (from the worst) is the best of n drawn without
    replacement with probability C(k - 1, n - 1) / C(g, n). Dodge et al. (2019, arXiv:1909.03004, equation 1) draw with
    replacement, as from endless random settings; a grid has each setting once, and with all of it tried the expected
    best is the best. Settings without a score on either split are left out; of equal ones the recipe's first is chosen.

    Args:
        rows: The settings of one method on one data set and backbone, as `by_entry` gives them.
    """
    ranked = _from_worst(rows)
    size = len(ranked)
    found = []
    for tried in range(1, size + 1):
        ways = math.comb(size, tried)
        weights = [math.comb(below, tried - 1) / ways for below in range(size)]
        found.append(
            ExpectedBest(
                tried,
                math.fsum(weight * validation for weight, (validation, _) in zip(weights, ranked, strict=True)),
                math.fsum(weight * scored for weight, (_, scored) in zip(weights, ranked, strict=True)),
            )
        )
    return found


def frame(found: Sequence[Budget]) -> pd.DataFrame:
    """Returns one line a budget, its axes and remarks as text."""
    import pandas as pd

    records = [
        {
            "data": one.data,
            "backbone": one.backbone,
            "method": one.entry,
            "settings": one.settings,
            "trials": one.trials,
            "axes": "; ".join(f"{name}: {_listed(values)}" for name, values in one.axes.items()),
            "chosen": one.chosen,
            "remarks": "; ".join([*one.edges, *([one.untuned] if one.untuned else [])]),
        }
        for one in found
    ]
    columns = ["data", "backbone", "method", "settings", "trials", "axes", "chosen", "remarks"]
    return pd.DataFrame.from_records(records, columns=columns)


def expected_best_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Returns the expected best of every method's entry, one line for each number of settings tried."""
    import pandas as pd

    records = [
        {"data": data, "backbone": backbone, "method": entry} | one.to_json()
        for (data, backbone, entry), members in by_entry(rows).items()
        for one in expected_best(members)
    ]
    columns = ["data", "backbone", "method", "settings_tried", "validation", "scored"]
    return pd.DataFrame.from_records(records, columns=columns)


def _budget(key: tuple[str, str, str], rows: Sequence[Row]) -> Budget:
    settings = [all_settings(row.configuration.first) for row in rows]
    axes = _axes(settings)
    chosen = _chosen(rows)
    own = all_settings(chosen.configuration.first) if chosen else {}
    rates = {one["learning_rate"] for one in settings if "learning_rate" in one}
    return Budget(
        *key,
        settings=len(rows),
        trials=sum(len(row.configuration.trials) for row in rows),
        axes=axes,
        chosen=chosen.name if chosen else None,
        edges=tuple(edge for name, values in axes.items() if (edge := _edge(name, own.get(name), values)))
        if chosen is not None and _is_alone(chosen, rows)
        else (),
        untuned=f"not tuned: learning_rate {_short(*rates)} is the only one tried" if len(rates) == 1 else None,
    )


def _is_alone(chosen: Row, rows: Sequence[Row]) -> bool:
    """Returns whether the chosen row learned, and no other setting has the same score on validation."""
    equal = [row for row in rows if row.validation == chosen.validation]
    return chosen.is_judged and len(equal) == 1


def _axes(settings: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for one in settings for name in one)
    axes = {}
    for name in names:
        values: list[Any] = []
        for one in settings:
            if (value := one.get(name, ABSENT)) is not ABSENT and value not in values:
                values.append(value)
        if len(values) > 1:
            axes[name] = sorted(values) if all(map(_is_number, values)) else values
    return axes


def _chosen(rows: Sequence[Row]) -> Row | None:
    known = [(row, _sign(row) * score) for row in rows if math.isfinite(score := row.validation)]
    return max(known, key=lambda pair: pair[1])[0] if known else None


def _edge(name: str, value: Any, values: Sequence[Any]) -> str | None:
    """Returns a sentence if `value` ends its axis; below 0, and below a whole 1, there is nothing left to try."""
    if not _is_number(value) or not all(map(_is_number, values)):
        return None
    if value == values[-1]:
        end = "highest"
    elif value == values[0] and value != 0 and not (value == 1 and isinstance(value, int)):
        end = "lowest"
    else:
        return None
    return f"{name} {_short(value)} is the {end} of {_listed(values)}: a wider grid may find better"


def _from_worst(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Returns validation and scored mean of each row that has both, worst validation first, first of equals last."""
    known = [(row.validation, row.mean, _sign(row)) for row in rows]
    usable = [one for one in reversed(known) if math.isfinite(one[0]) and math.isfinite(one[1])]
    return [(validation, scored) for validation, scored, sign in sorted(usable, key=lambda one: one[2] * one[0])]


def _sign(row: Row) -> float:
    return -1.0 if row.metric in MINIMISED else 1.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(_short, values))


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
