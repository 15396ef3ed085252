"""Names of metrics in words."""

from __future__ import annotations

METRIC_TITLES = {
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "matthews": "Matthews correlation",
    "roc_auc": "ROC-AUC",
    "log_loss": "log loss",
    "ece": "expected calibration error",
    "loss": "loss",
}


def metric_title(name: str) -> str:
    """Returns the metric's name in words: `f1_macro` is "F1 (macro)"."""
    if name in METRIC_TITLES:
        return METRIC_TITLES[name]
    base, _, average = name.partition("_")
    word = base.upper() if base == "f1" else base
    return f"{word} ({average})" if average else word
