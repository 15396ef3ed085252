"""What a reader should know of the data before believing a figure made from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.data.dataset import SPLITS, Dataset

BUCKETS = 20


@dataclass(frozen=True)
class Audit:
    """Counts of one data set.

    Attributes:
        name: Name of the data set.
        sources: Files or hub splits read.
        records: Records read that `where` keeps: accepted and quarantined together.
        accepted: Records with a usable text and label.
        quarantined: Records without.
        filtered: Records that `where` leaves out; they are not among `records`.
        sampled_out: Accepted texts that `sample` leaves out.
        dropped: Texts of validation and test left out because they stand in training too (`leaks = "drop"`).
        duplicates: Accepted texts that repeat an earlier one, after normalising case, white space and links.
        conflicts: Distinct texts that stand with more than one label.
        leaks: Texts of validation and test that stand in training too, before any are dropped.
        near_leaks: Texts of validation and test that nearly stand in training, by split.
        train: Number of training texts.
        validation: Number of validation texts.
        test: Number of test texts.
        labels: Labels by name, in the order of the classifier's outputs.
        multi_label: Whether a text may have several labels, or none.
        class_counts: Number of texts by split and label.
        unlabelled: Texts without any label by split, where multi-label.
        reasons: Number of quarantined records by reason.
        max_tokens: Longest sequence of tokens; known after tokenising.
        truncated: Number of texts of which a part is left out; known after tokenising.
        windowed: Number of texts that are read in several windows; known after tokenising.
        token_lengths: Histogram of lengths in tokens before cutting; known after tokenising.
        warnings: What may make a figure untrue.
        notes: What was done on the way.
        unscored: Texts of test that have no label: predicted, never scored, and not searched for leaks and duplicates.
            They are among `accepted` and `test`, and without `class_counts`.
    """

    name: str
    sources: list[str]
    records: int
    accepted: int
    quarantined: int
    filtered: int
    sampled_out: int
    dropped: int
    duplicates: int
    conflicts: int
    leaks: int
    near_leaks: dict[str, int]
    train: int
    validation: int
    test: int
    labels: list[str]
    multi_label: bool
    class_counts: dict[str, dict[str, int]]
    unlabelled: dict[str, int]
    reasons: dict[str, int]
    max_tokens: int | None = None
    truncated: int | None = None
    windowed: int | None = None
    token_lengths: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unscored: int = 0

    def with_tokens(
        self, full_lengths: NDArray[np.int32], max_tokens: int, truncated: int | None = None, windowed: int = 0
    ) -> Audit:
        """Returns this audit with what is known after tokenising.

        Args:
            full_lengths: `(texts,)` lengths in tokens before cutting.
            max_tokens: Longest sequence of tokens.
            truncated: Number of texts of which a part is left out; all that are longer, if absent.
            windowed: Number of texts that are read in several windows.
        """
        if truncated is None:
            truncated = int((full_lengths > max_tokens).sum())
        lengths = length_histogram(full_lengths)
        return replace(self, max_tokens=max_tokens, truncated=truncated, windowed=windowed, token_lengths=lengths)

    def to_json(self) -> dict[str, Any]:
        """Returns the audit as JSON writes it."""
        return asdict(self)


def class_counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Returns the number of texts by split and label."""
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        labels = dataset.labels[dataset.splits[split]]
        numbers = labels.sum(axis=0) if dataset.multi_label else np.bincount(labels, minlength=dataset.num_labels)
        counts[split] = {name: int(number) for name, number in zip(dataset.label_names, numbers, strict=True)}
    return counts


def unlabelled(dataset: Dataset) -> dict[str, int]:
    """Returns the number of texts without any label by split, where multi-label."""
    if not dataset.multi_label:
        return {}
    return {split: int((~dataset.labels[dataset.splits[split]].any(axis=1)).sum()) for split in SPLITS}


def length_histogram(lengths: NDArray[np.int32]) -> dict[str, Any]:
    """Returns quantiles of the lengths, and counts between `edges`: a count is of `edges[i] <= length < edges[i+1]`."""
    if not len(lengths):
        return {"edges": [], "counts": [], "mean": 0.0, "median": 0, "p95": 0, "max": 0}
    longest = int(lengths.max())
    step = max(1, -(-(longest + 1) // BUCKETS))
    edges = np.arange(0, longest + step + 1, step)
    counts, _ = np.histogram(lengths, bins=edges)
    median, p95 = np.percentile(lengths, [50, 95], method="inverted_cdf")
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "mean": round(float(lengths.mean()), 2),
        "median": int(median),
        "p95": int(p95),
        "max": longest,
    }
