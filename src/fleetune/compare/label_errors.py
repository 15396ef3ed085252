"""Labels that are likely wrong: a list to check by eye. Nothing is ever changed by it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fleetune.compare.decisions import BoolArray, as_sets, check_same_texts, mean_of, names_in, telling_trials
from fleetune.compare.held_out import HeldOutTexts
from fleetune.compare.row import Row

if TYPE_CHECKING:
    import pandas as pd

FloatArray = NDArray[np.float64]

FEWEST_TEXTS = 20
FEWEST_OF_A_LABEL = 2
SMALLEST = 1e-6


@dataclass(frozen=True)
class LabelError:
    """A text whose label is likely wrong.

    Attributes:
        split: Where it stands.
        index: Its place in the split.
        text: Its words; empty where they are not at hand.
        place: `file:line`; empty where not at hand.
        given: Its labels as they are; one where texts have one each.
        suggested: The labels that the classifiers would give it.
        quality: How well the given labels fit the mean probabilities, 0 (surely wrong) to 1.
        disagreeing: How many trials decide against the given label, or one of those in question.
        trials: Of how many.
    """

    split: str
    index: int
    text: str
    place: str
    given: tuple[str, ...]
    suggested: tuple[str, ...]
    quality: float
    disagreeing: int
    trials: int

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return {
            "split": self.split,
            "index": self.index,
            "text": self.text,
            "place": self.place,
            "given": list(self.given),
            "suggested": list(self.suggested),
            "quality": self.quality,
            "disagreeing": self.disagreeing,
            "trials": self.trials,
        }


def label_errors(
    rows: Sequence[Row], split: str, held_out: HeldOutTexts | None = None, limit: int = 50
) -> list[LabelError]:
    """Returns the texts of `split` whose labels are likely wrong, the likeliest first.

    Confident learning (Northcutt, Jiang and Chuang, 2021, arXiv:1911.00068) as cleanlab has it, on probabilities that
    are the mean over configurations of the mean over seeds. Validation and test texts were not trained on, as it asks;
    the checkpoint was chosen on validation, which makes its labels look a little better than they are. Baselines,
    degenerate trials and those whose logits are not all finite have no say. Fewer than 20 texts, or a single label,
    tell nothing.

    Args:
        rows: Configurations on one data set.
        split: `validation` or `test`.
        held_out: The split's texts, where they are at hand.
        limit: At most so many.

    Raises:
        ValueError: If predictions are not all of the same texts.
    """
    voters = [trials for row in rows if not row.is_baseline and (trials := telling_trials(row, split))]
    trials = [trial for members in voters for trial in members]
    check_same_texts(trials, split)
    if not trials or len(trials[0].labels(split)) < FEWEST_TEXTS:
        return []
    first = trials[0]
    labels = np.asarray(first.labels(split))
    probabilities = mean_of(mean_of(one.probabilities(split) for one in members) for members in voters)
    find = _wrong_sets if first.multi_label else _wrong_classes
    with warnings.catch_warnings():
        # cleanlab warns of labels with few texts, for which it says nothing then.
        warnings.simplefilter("ignore")
        given, suggested, quality = find(labels, probabilities)
    in_question = given != suggested
    found = np.flatnonzero(in_question.any(axis=1))
    chosen = found[np.argsort(quality[found], kind="stable")][:limit]
    decided = np.stack([as_sets(first, trial.decisions(split)[chosen]) for trial in trials])
    against = ((decided != given[chosen]) & in_question[chosen]).any(axis=2).sum(axis=0)
    return [
        LabelError(
            split=split,
            index=index,
            text=held_out.texts[index] if held_out else "",
            place=held_out.places[index] if held_out else "",
            given=names_in(first, given[index]),
            suggested=names_in(first, suggested[index]),
            quality=float(quality[index]),
            disagreeing=int(against[rank]),
            trials=len(trials),
        )
        for rank, index in enumerate(chosen.tolist())
    ]


def frame(found: Sequence[LabelError]) -> pd.DataFrame:
    """Returns the list as a table, one line a text."""
    import pandas as pd

    columns = ["split", "index", "place", "text", "given", "suggested", "quality", "disagreeing", "trials"]
    records = [one.to_json() | {"given": ", ".join(one.given), "suggested": ", ".join(one.suggested)} for one in found]
    return pd.DataFrame.from_records(records, columns=columns)


def _wrong_classes(labels: NDArray[Any], probabilities: FloatArray) -> tuple[BoolArray, BoolArray, FloatArray]:
    """Returns given and suggested classes as sets `(texts, num_labels)`, and each text's quality `(texts,)`."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    classes = np.arange(probabilities.shape[1])
    given = labels[:, None] == classes
    if len(np.unique(labels)) < 2:
        return given, given, np.ones(len(labels))
    wrong = find_label_issues(labels.astype(np.int64), probabilities, n_jobs=1)
    best = probabilities.argmax(axis=1)[:, None] == classes
    quality = get_label_quality_scores(labels.astype(np.int64), probabilities, method="self_confidence")
    return given, np.where(wrong[:, None], best, given), np.asarray(quality)


def _wrong_sets(labels: NDArray[Any], probabilities: FloatArray) -> tuple[BoolArray, BoolArray, FloatArray]:
    """Returns the same where texts may have several labels: each label is judged by itself, against all others.

    A label that fewer than two texts have, or lack, is not judged.
    """
    from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class

    given = labels == 1
    counts = given.sum(axis=0)
    judged = np.flatnonzero((counts >= FEWEST_OF_A_LABEL) & (len(given) - counts >= FEWEST_OF_A_LABEL))
    wrong = np.zeros_like(given)
    if len(judged):
        sets = [np.flatnonzero(chosen).tolist() for chosen in given[:, judged]]
        clipped = np.clip(probabilities[:, judged], SMALLEST, 1.0 - SMALLEST)
        wrong[:, judged] = find_multilabel_issues_per_class(sets, clipped, n_jobs=1)
    fit = np.where(given, probabilities, 1.0 - probabilities)
    return given, given ^ wrong, np.where(wrong, fit, 1.0).min(axis=1)
