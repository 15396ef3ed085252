"""Texts on which the configurations decide differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fleetune.compare.decisions import as_sets, check_same_texts, mean_of, names_in, telling_trials
from fleetune.compare.held_out import HeldOutTexts
from fleetune.compare.result import TrialResult
from fleetune.compare.row import Row
from fleetune.methods import is_floor
from fleetune.metrics import predicted_sets

if TYPE_CHECKING:
    import pandas as pd

TIE_BREAK = 1e-6


@dataclass(frozen=True)
class Disagreement:
    """One text on which configurations decide differently.

    Attributes:
        index: Its place in the split.
        text: Its words; empty where they are not at hand.
        place: `file:line`; empty where not at hand.
        truth: Its labels; one where texts have one each.
        decisions: Each configuration's labels for it.
        right: Share of the configurations whose labels are all right.
    """

    index: int
    text: str
    place: str
    truth: tuple[str, ...]
    decisions: dict[str, tuple[str, ...]]
    right: float

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return {
            "index": self.index,
            "text": self.text,
            "place": self.place,
            "truth": list(self.truth),
            "decisions": {name: list(labels) for name, labels in self.decisions.items()},
            "right": self.right,
        }


def disagreements(
    rows: Sequence[Row], split: str, held_out: HeldOutTexts | None = None, limit: int = 50
) -> list[Disagreement]:
    """Returns the texts on which the decisions differ most, those that fewest get right first among equals.

    A configuration decides as most of its seeds do; where seeds are divided evenly, by their mean probability. How far
    decisions differ is the mean, over pairs of configurations, of the number of labels they do not share. Trials
    without finite logits, degenerate ones and the majority baseline are left out: they differ from all and tell
    nothing.

    Args:
        rows: Configurations on one data set.
        split: Whose predictions are looked at.
        held_out: The split's texts, where they are at hand.
        limit: At most so many.

    Raises:
        ValueError: If predictions are not all of the same texts.
    """
    voters = _voters(rows, split)
    if len(voters) < 2:
        return []
    first = voters[0][1][0]
    truth = as_sets(first, first.labels(split))
    decided = np.stack([_decision(trials, split) for _, trials in voters])
    differing = _mean_difference(decided)
    right = (decided == truth).all(axis=2).mean(axis=0)
    order = np.lexsort((np.arange(len(truth)), right, -differing))
    return [
        Disagreement(
            index=index,
            text=held_out.texts[index] if held_out else "",
            place=held_out.places[index] if held_out else "",
            truth=names_in(first, truth[index]),
            decisions={name: names_in(first, decided[who, index]) for who, (name, _) in enumerate(voters)},
            right=float(right[index]),
        )
        for index in order[:limit].tolist()
        if differing[index] > 0.0
    ]


def frame(found: Sequence[Disagreement]) -> pd.DataFrame:
    """Returns the texts as a table, one line each and one column a configuration."""
    import pandas as pd

    records = [
        {"index": one.index, "place": one.place, "text": one.text, "truth": ", ".join(one.truth), "right": one.right}
        | {f"decision of {name}": ", ".join(labels) for name, labels in one.decisions.items()}
        for one in found
    ]
    if not records:
        return pd.DataFrame(columns=["index", "place", "text", "truth", "right"])
    return pd.DataFrame.from_records(records)


def _voters(rows: Sequence[Row], split: str) -> list[tuple[str, list[TrialResult]]]:
    found = [(row.name, telling_trials(row, split)) for row in rows if not is_floor(row.configuration.first.kind)]
    check_same_texts([trial for _, trials in found for trial in trials], split)
    return [(name, trials) for name, trials in found if trials]


def _decision(trials: Sequence[TrialResult], split: str) -> NDArray[np.bool_]:
    """Returns what most of the trials decide `(texts, num_labels)`; mean probability decides where they are even."""
    votes = mean_of(as_sets(trial, trial.decisions(split)) for trial in trials)
    sure = mean_of(trial.probabilities(split) for trial in trials)
    if not trials[0].multi_label:
        return np.asarray(np.arange(votes.shape[1]) == (votes + TIE_BREAK * sure).argmax(axis=1)[:, None])
    needed = mean_of(np.broadcast_to(np.asarray(trial.thresholds(split)), sure.shape) for trial in trials)
    return np.asarray(np.where(np.isclose(votes, 0.5), predicted_sets(sure, needed) == 1, votes > 0.5))


def _mean_difference(decided: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns by text the mean number of labels that two of the configurations do not share `(texts,)`."""
    size = len(decided)
    giving = decided.sum(axis=0, dtype=np.int64)
    return np.asarray((giving * (size - giving)).sum(axis=1) / (size * (size - 1) / 2))
