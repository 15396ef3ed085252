"""Means, spreads and the careful reading of them: nothing is crowned, dropped or called apart without ground."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
from scipy import stats

from fleetune.compare.configuration import group, shared_settings
from fleetune.compare.result import TrialResult
from fleetune.compare.row import seed_interval
from fleetune.compare.summary import Comparison, compare, scored_split
from tests.unit.synthetic_runs import METHODS, multi_class_run, multi_label_run, trial, troubled_run

NAMES = ["negative", "positive"]


def with_accuracy(kind: str, seed: int, accuracy: float, **changes: Any) -> TrialResult:
    """A trial whose test accuracy is exactly as asked, on 100 texts of two equal classes."""
    labels = np.arange(100) % 2
    chosen = np.where(np.arange(100) < round(100 * accuracy), labels, 1 - labels)
    logits = np.stack([1.0 - chosen, chosen], axis=1).astype(np.float32) * 4
    return trial(kind, seed, NAMES, predictions={"test": (labels, logits)}, metric="accuracy", **changes)


def comparison_of(scores: dict[str, list[float]], **changes: Any) -> Comparison:
    return compare([with_accuracy(k, s, a, **changes) for k, values in scores.items() for s, a in enumerate(values)])


def test_rows_hold_the_mean_and_the_t_interval_over_seeds() -> None:
    values = [0.80, 0.84, 0.88]
    row = comparison_of({"lora": values}).rows[0]
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
    assert row.mean == pytest.approx(0.84)
    assert row.spread == pytest.approx(0.04)
    assert row.interval == pytest.approx((0.84 - half, 0.84 + half))
    assert row.scores == pytest.approx({0: 0.80, 1: 0.84, 2: 0.88})


def test_scores_are_of_the_test_split_and_equal_scikit_learn() -> None:
    run = multi_class_run()
    row = compare(run.trials).row("ia3")
    for one in [one for one in run.trials if one.method == "ia3"]:
        labels, logits = one.predictions["test"]
        assert row.scores[one.seed] == pytest.approx(reference.f1_score(labels, logits.argmax(1), average="macro"))


def test_validation_is_scored_unless_every_trial_has_test_predictions() -> None:
    first, second = trial("lora", 0, NAMES), trial("lora", 1, NAMES)
    assert scored_split([first, second]) == "test"
    without = replace(second, predictions={"validation": second.predictions["validation"]})
    assert scored_split([first, without]) == "validation"
    empty = replace(second, predictions=second.predictions | {"test": (np.empty(0, int), np.empty((0, 2), np.float32))})
    assert scored_split([first, empty]) == "validation"


def test_intervals_stay_within_the_metric_and_need_two_numbers() -> None:
    assert seed_interval([0.9], "accuracy") is None
    assert seed_interval([0.9, float("nan")], "accuracy") is None
    low, high = seed_interval([0.9, 1.0], "accuracy") or (0.0, 0.0)
    assert high == 1.0 and 0.0 <= low < 0.9
    low, high = seed_interval([-0.5, 0.5], "matthews") or (0.0, 0.0)
    assert low == -1.0
    assert (seed_interval([0.2, 3.0], "log_loss") or (0.0, 0.0))[1] > 3.0


def test_no_winner_is_crowned_even_where_one_is_far_ahead() -> None:
    result = comparison_of({"lora": [0.90, 0.91, 0.92], "head": [0.60, 0.61, 0.62]})
    assert result.verdict.winner is None
    assert result.verdict.recommended == "lora"
    assert not result.row("head").tied_with_best
    assert "no winner is demonstrated" in result.verdict.reason
    assert result.to_json()["tests"] == []


def test_the_cheapest_of_the_tied_is_recommended() -> None:
    result = comparison_of({"full": [0.86, 0.90, 0.91], "lora": [0.84, 0.90, 0.88], "head": [0.60, 0.61, 0.62]})
    assert [row.name for row in result.rows if row.tied_with_best] == ["full", "lora"]
    assert result.verdict.recommended == "lora"
    assert "full" in result.verdict.reason


def test_ties_are_those_of_tukeys_range_test() -> None:
    rng = np.random.default_rng(11)
    kinds = ["lora", "bitfit", "head", "full"]
    decided = set()
    for _ in range(12):
        scores = {kind: list(np.round(rng.normal(0.7 + 0.03 * i, 0.03, 3), 2)) for i, kind in enumerate(kinds)}
        rows = comparison_of(scores).rows
        pvalues = stats.tukey_hsd(*scores.values()).pvalue
        best = int(np.argmax([row.mean for row in rows]))
        for index, row in enumerate(rows):
            assert row.tied_with_best == (index == best or pvalues[index, best] >= 0.05)
            decided.add(row.tied_with_best)
    assert decided == {True, False}


def test_two_seeds_suffice_to_set_a_far_worse_configuration_apart() -> None:
    result = comparison_of({"lora": [0.90, 0.91], "bitfit": [0.89, 0.90], "head": [0.70, 0.72]})
    assert {row.name: row.tied_with_best for row in result.rows} == {"lora": True, "bitfit": True, "head": False}
    assert result.verdict.recommended == "bitfit"


def test_what_never_comes_near_the_best_is_not_recommended_however_wide_the_spread() -> None:
    result = comparison_of({"ia3": [0.79, 0.80], "full": [0.63, 0.82], "lora": [0.58, 0.72], "head": [0.60, 0.61]})
    assert all(row.tied_with_best for row in result.rows), "two seeds and two wide rows tell nothing apart"
    assert result.verdict.recommended == "ia3"
    assert "more seeds would tell" in result.verdict.reason


def test_seeds_without_any_spread_tie_only_equal_means() -> None:
    result = comparison_of({"lora": [0.9, 0.9], "bitfit": [0.9, 0.9], "head": [0.8, 0.8]})
    assert [row.tied_with_best for row in result.rows] == [True, True, False]


def test_one_seed_gives_no_recommendation_and_says_why() -> None:
    result = comparison_of({"lora": [0.90], "head": [0.60]})
    assert result.rows[0].interval is None
    assert result.verdict.recommended is None
    assert "one seed" in result.verdict.reason
    assert all(row.tied_with_best for row in result.rows)


def test_a_row_with_one_finished_seed_is_never_recommended_over_rows_with_a_spread() -> None:
    result = comparison_of({"full": [0.90, 0.91], "head": [0.95]})
    assert result.verdict.recommended == "full"
    assert result.row("head").tied_with_best


def test_smaller_is_better_for_losses() -> None:
    trials = [
        with_accuracy(kind, seed, accuracy - seed / 100)
        for kind, accuracy in (("lora", 0.9), ("full", 0.6))
        for seed in range(3)
    ]
    result = compare(trials, metric="log_loss")
    assert result.ranked[0].name == "lora"
    assert result.verdict.recommended == "lora"
    assert "lowest" in result.verdict.reason


def test_degenerate_and_failed_trials_are_counted_and_never_recommended() -> None:
    result = compare(troubled_run().trials)
    bitfit, lora = result.row("bitfit").to_json(), result.row("lora").to_json()
    assert bitfit["degenerate"] and bitfit["degenerate_seeds"] == {"1": "predicts 'no' for every text"}
    assert lora["failed"] == 1 and lora["failures"] == {"0": "loss is nan at step 17"} and lora["seeds"] == 2
    assert result.row("head").to_json()["unfinished"] == 1
    assert len(result.rows) == 3


def test_a_failing_configuration_is_left_out_of_the_recommendation_with_the_reason() -> None:
    trials = [with_accuracy(kind, seed, 0.9 + seed / 100) for kind in ("full", "head") for seed in range(3)]
    trials[3] = replace(trials[3], status="failed", reason="loss is nan", predictions={})
    verdict = compare(trials).verdict
    assert verdict.recommended == "full"
    assert "head" in verdict.reason and "failed" in verdict.reason


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        (np.full((100, 2), np.nan, np.float32), "not numbers"),
        (np.tile(np.array([0.0, 1.0], np.float32), (100, 1)), "predicts 'positive' for every text"),
        (np.eye(2, dtype=np.float32)[1 - np.arange(100) % 2], "not above the majority"),
    ],
)
def test_each_kind_of_degeneracy_is_named(logits: Any, words: str) -> None:
    one = trial("lora", 0, NAMES, predictions={"test": (np.arange(100) % 2, logits)})
    assert words in (one.degenerate_reason("test") or "")
    row = compare([one], metric="accuracy").rows[0]
    assert row.degenerate and not row.tied_with_best
    assert json.loads(json.dumps(row.to_json(), allow_nan=False))["degenerate"] is True


def test_a_multi_label_trial_without_any_label_is_degenerate_but_a_hard_one_is_not() -> None:
    run = multi_label_run()
    assert all(one.degenerate_reason("test") is None for one in run.trials)
    labels, logits = run.trials[0].predictions["test"]
    silent = replace(run.trials[0], predictions={"test": (labels, np.full_like(logits, -3.0))})
    assert silent.degenerate_reason("test") == "predicts no label for every text"


def test_configurations_are_told_apart_by_what_differs_and_nothing_else() -> None:
    def one(rank: int, seed: int) -> TrialResult:
        return trial("lora", seed, NAMES, settings={"rank": rank, "alpha": 16.0})

    groups = group([one(8, 1), one(16, 0), one(8, 0)])
    assert [configuration.name for configuration in groups] == ["lora (rank 8)", "lora (rank 16)"]
    assert [[member.seed for member in configuration.trials] for configuration in groups] == [[0, 1], [0]]
    assert groups[0].varying == {"rank": 8}
    assert shared_settings([configuration.first for configuration in groups])["alpha"] == 16.0


def test_a_training_axis_makes_configurations_too() -> None:
    trials = [trial("head", 0, NAMES, training={"learning_rate": rate, "epochs": 3.0}) for rate in (1e-3, 1e-2)]
    names = [configuration.name for configuration in group(trials)]
    assert names == ["head (learning_rate 0.001)", "head (learning_rate 0.01)"]


def test_names_stay_unique_over_data_and_backbones() -> None:
    trials = [trial("head", 0, NAMES, data=data, backbone=base) for data in ("a", "b") for base in ("x", "y")]
    names = [configuration.name for configuration in group(trials)]
    assert len(set(names)) == 4 and names[0] == "head · x · a"


def test_the_best_is_sought_within_each_data_set() -> None:
    easy = [
        with_accuracy(kind, s, a + s / 100, data="easy")
        for kind, a in (("lora", 0.95), ("head", 0.90))
        for s in range(3)
    ]
    hard = [
        with_accuracy(kind, s, a + s / 100, data="hard")
        for kind, a in (("lora", 0.70), ("head", 0.60))
        for s in range(3)
    ]
    result = compare(easy + hard)
    assert {row.name: row.tied_with_best for row in result.rows} == {
        "lora · easy": True, "head · easy": False, "lora · hard": True, "head · hard": False,
    }  # fmt: skip
    assert result.verdict.recommended is None
    assert "On easy" in result.verdict.reason and "On hard" in result.verdict.reason


def test_json_has_the_keys_that_other_programs_read() -> None:
    content = json.loads(json.dumps(compare(multi_class_run().trials).to_json(), allow_nan=False))
    assert set(content) >= {"metric", "rows", "tests", "verdict"}
    assert set(content["verdict"]) == {"winner", "recommended", "reason"}
    wished = "name data backbone method settings seeds mean interval trainable seconds peak_bytes bundle_bytes"
    for row in content["rows"]:
        assert set(row) >= {*wished.split(), "tied_with_best", "degenerate"}
        assert row["seeds"] == 2
    assert [row["name"] for row in content["rows"]] == list(METHODS)


def test_the_frame_is_ranked_and_holds_the_same_numbers() -> None:
    result = compare(multi_class_run().trials)
    frame = result.frame()
    assert list(frame["mean"]) == sorted(frame["mean"], reverse=True)
    assert {"learning_rate", "rank"} <= set(frame.columns) and "epochs" not in frame.columns
    for record in frame.to_dict("records"):
        assert record["mean"] == result.row(record["name"]).mean


def test_nothing_to_compare_is_said_not_raised() -> None:
    assert compare([]).verdict.reason == "There are no trials to compare."
    pending = trial("lora", 0, NAMES, status="pending", predictions={})
    result = compare([pending])
    assert result.rows[0].to_json()["mean"] is None and result.verdict.recommended is None


def test_a_better_mean_is_not_denied_because_one_seed_learned_nothing() -> None:
    found = comparison_of({"ia3": [0.79, 0.80, 0.81], "lora": [0.95, 0.96, 0.50]})
    assert found.row("lora").degenerate
    assert found.row("lora").mean > found.row("ia3").mean
    assert "of those that learned with every seed" in found.verdict.reason
    assert "lora has a better mean, although some seed learned nothing" in found.verdict.reason
