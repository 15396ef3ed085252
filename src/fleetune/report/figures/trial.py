"""The figures of one trial, for trackers."""

from __future__ import annotations

from fleetune.compare.configuration import Configuration
from fleetune.compare.result import TrialResult
from fleetune.compare.row import summed_up
from fleetune.lab.trackers.base import Picture
from fleetune.report.figure import Figure
from fleetune.report.figures.confusion import confusion_panels, per_label_bars
from fleetune.report.figures.curves import loss_panels

SCALE = 1.5


def trial_pictures(trial: TrialResult) -> list[Picture]:
    """Returns a finished trial's learning curve, its confusion matrix and its scores by label as PNG files."""
    return [Picture(key, figure.title, figure.png(SCALE)) for key, figure in trial_figures(trial).items()]


def trial_figures(trial: TrialResult) -> dict[str, Figure]:
    """Returns the figures by name; those of its predictions are of the test split, or of validation without one.

    What has nothing to show is left out: a confusion matrix where texts have several labels, scores by label where
    there are two. Metrics by step are not among them, because trackers draw those themselves.
    """
    configuration = Configuration(trial.method, (trial,), {})
    split = next((name for name in ("test", "validation") if len(trial.labels(name))), None)
    rows = [summed_up(configuration, split, trial.metric)] if split is not None else []
    found: dict[str, Figure | None] = {
        "loss": next(iter(loss_panels([configuration], "loss")), None),
        "confusion": next(iter(confusion_panels(rows, split or "", "confusion")), None),
        "labels": per_label_bars(rows, split or "", "labels") if len(trial.label_names) > 2 else None,
    }
    return {key: figure for key, figure in found.items() if figure is not None}
