"""Points of a learning curve over data size, and what may be said of more labels."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fleetune.compare.data_curve import data_curve, frame, more_labels_help
from fleetune.compare.result import TrialResult
from fleetune.compare.summary import compare
from tests.unit.synthetic_runs import trial

NAMES = ["no", "yes"]


def sized(kind: str, seed: int, share: float, accuracy: float, **changes: Any) -> TrialResult:
    labels = np.arange(100) % 2
    chosen = np.where(np.arange(100) < round(100 * accuracy), labels, 1 - labels)
    logits = (np.stack([1.0 - chosen, chosen], axis=1) * 4).astype(np.float32)
    fixed: dict[str, Any] = {"predictions": {"test": (labels, logits)}, "metric": "accuracy"}
    fixed |= {"train_share": share, "train_texts": round(900 * share), "id": f"{kind} {seed} {share}"}
    return trial(kind, seed, NAMES, **(fixed | changes))


def curve(scores: dict[float, list[float]], kind: str = "lora") -> list[TrialResult]:
    return [sized(kind, seed, share, score) for share, seeds in scores.items() for seed, score in enumerate(seeds)]


def test_points_are_of_configurations_trained_at_two_shares_or_more() -> None:
    trials = curve({1.0: [0.9, 0.92], 0.1: [0.6, 0.7], 0.3: [0.8, 0.8]}) + curve({1.0: [0.8, 0.8]}, "head")
    points = data_curve(trials, "test")
    assert [(one.name, one.share, one.texts) for one in points] == [
        ("lora", 0.1, 90),
        ("lora", 0.3, 270),
        ("lora", 1.0, 900),
    ]
    assert points[2].mean == pytest.approx(0.91)
    whole = compare([one for one in trials if one.train_share == 1.0]).row("lora")
    assert points[2].interval == whole.interval
    assert points[0].scores == pytest.approx({0: 0.6, 1: 0.7})
    json.dumps([one.to_json() for one in points])
    assert list(frame(points)["mean"]) == pytest.approx([0.65, 0.8, 0.91]) and len(frame([])) == 0


def test_failed_trials_are_counted_and_a_share_without_scores_is_no_point() -> None:
    trials = curve({0.3: [0.8, 0.8], 1.0: [0.9, 0.9]})
    trials.append(sized("lora", 2, 0.3, 0.5, status="failed", predictions={}))
    trials.append(sized("lora", 0, 0.1, 0.5, status="failed", predictions={}))
    assert [(one.share, one.failed) for one in data_curve(trials, "test")] == [(0.3, 1), (1.0, 0)]


def test_more_labels_help_where_every_seed_gained_alike() -> None:
    points = data_curve(
        curve({0.3: [0.80, 0.81, 0.82, 0.80, 0.81, 0.80], 1.0: [0.90, 0.92, 0.92, 0.91, 0.91, 0.91]}), "test"
    )
    said = " ".join(more_labels_help(points))
    assert said.startswith("lora: yes") and "30 % (270) to 100 % (900)" in said
    low, high = map(float, re.findall(r"interval (\S+) to (\S+) over", said)[0])
    gains = np.array([0.10, 0.11, 0.10, 0.11, 0.10, 0.11])
    of_seeds_alone = stats.t.interval(0.95, 5, gains.mean(), gains.std(ddof=1) / np.sqrt(6))
    assert 0 < low < of_seeds_alone[0] and high > of_seeds_alone[1], "other texts could have given other gains"


def test_nothing_is_claimed_of_one_seed_of_equal_gains_or_of_a_loss() -> None:
    assert "fewer than 3 seeds" in (" ".join(more_labels_help(data_curve(curve({0.3: [0.5], 1.0: [0.9]}), "test"))))
    little = " ".join(more_labels_help(data_curve(curve({0.3: [0.5, 0.6, 0.55], 1.0: [0.51, 0.61, 0.57]}), "test")))
    assert "not shown" in little, "three seeds that gain a text or two of a hundred"
    worse = curve({0.3: [0.80, 0.81, 0.82], 1.0: [0.60, 0.62, 0.61]})
    assert "not shown" in (" ".join(more_labels_help(data_curve(worse, "test"))))
    assert more_labels_help([]) == []


def test_a_falling_loss_is_a_gain() -> None:
    points = data_curve(curve({0.3: [0.80, 0.81, 0.82], 1.0: [0.90, 0.92, 0.92]}), "test", "log_loss")
    assert points[1].mean < points[0].mean
    assert "more labels seem to help, although 3 seeds do not prove it" in " ".join(more_labels_help(points))


def test_seeds_that_are_not_at_both_sizes_are_not_paired() -> None:
    trials = [*curve({0.3: [0.5, 0.6, 0.6]}), sized("lora", 7, 1.0, 0.9)]
    assert "fewer than 3 seeds" in (" ".join(more_labels_help(data_curve(trials, "test"))))


def test_more_curves_need_wider_intervals_to_hold_together() -> None:
    def interval(kinds: list[str]) -> tuple[float, float]:
        trials = [one for kind in kinds for one in curve({0.3: [0.80, 0.82, 0.81], 1.0: [0.84, 0.86, 0.88]}, kind)]
        said = " ".join(more_labels_help(data_curve(trials, "test")))
        low, high = re.findall(r"lora: .*?interval (\S+) to (\S+) over", said)[0]
        return float(low), float(high)

    alone, together = interval(["lora"]), interval(["lora", "ia3", "bitfit", "norm"])
    assert together[0] < alone[0] and together[1] > alone[1]


def test_fewer_texts_are_fewer_steps_too_and_the_sentence_says_so() -> None:
    [said] = more_labels_help(data_curve(curve({0.3: [0.80, 0.81, 0.82], 1.0: [0.90, 0.92, 0.92]}), "test"))
    assert "30 % (270) to 100 % (900) of the training texts, and of the steps" in said


def test_of_a_baseline_fitted_once_at_each_size_nothing_is_proved() -> None:
    settings: dict[str, Any] = {"settings": {}, "training": {}}
    trials = [sized("head", 0, share, score, **settings) for share, score in ((0.3, 0.6), (1.0, 0.95))]
    trials = [replace(one, kind="tfidf", method="tfidf", id=f"tfidf {one.train_share}") for one in trials]
    [said] = more_labels_help(data_curve(trials, "test"))
    assert said.startswith("tfidf: more labels seem to help, although one fit of each does not prove it")
    assert "steps" not in said, "a baseline makes none"
