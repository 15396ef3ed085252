"""Means, spreads and the careful reading of them: nothing is crowned, dropped or called apart without ground."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference

from fleetune.compare.configuration import group, shared_settings
from fleetune.compare.result import TrialResult
from fleetune.compare.summary import Comparison, compare, scored_split
from tests.unit.synthetic_runs import METHODS, multi_class_run, multi_label_run, trial, troubled_run

NAMES = ["negative", "positive"]


def with_accuracy(kind: str, seed: int, accuracy: float, **changes: Any) -> TrialResult:
    """A trial whose accuracy is exactly as asked on validation and test, each 100 texts of two equal classes."""
    labels = np.arange(100) % 2
    chosen = np.where(np.arange(100) < round(100 * accuracy), labels, 1 - labels)
    logits = np.stack([1.0 - chosen, chosen], axis=1).astype(np.float32) * 4
    both = {"validation": (labels, logits), "test": (labels, logits)}
    return trial(kind, seed, NAMES, **({"predictions": both, "metric": "accuracy"} | changes))


def comparison_of(scores: dict[str, list[float]], **changes: Any) -> Comparison:
    return compare([with_accuracy(k, s, a, **changes) for k, values in scores.items() for s, a in enumerate(values)])


def test_rows_hold_the_mean_and_an_interval_over_seeds_and_texts() -> None:
    row = comparison_of({"lora": [0.80, 0.84, 0.88]}).rows[0]
    assert row.mean == pytest.approx(0.84)
    assert row.spread == pytest.approx(0.04)
    assert row.scores == pytest.approx({0: 0.80, 1: 0.84, 2: 0.88})
    assert row.validation == pytest.approx(0.84)
    assert row.interval is not None and row.interval_over == "seeds and texts"
    of_texts_alone = comparison_of({"lora": [0.84]}).rows[0]
    assert of_texts_alone.interval is not None and of_texts_alone.interval_over == "texts"
    assert row.interval[0] < of_texts_alone.interval[0] and row.interval[1] > of_texts_alone.interval[1]


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
    empty = replace(
        second, predictions={**second.predictions, "test": (np.empty(0, int), np.empty((0, 2), np.float32))}
    )
    assert scored_split([first, empty]) == "validation"


def test_a_score_that_is_not_defined_has_no_interval() -> None:
    labels = np.zeros(20, dtype=int)
    logits = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    row = compare([trial("lora", 0, NAMES, predictions={"test": (labels, logits)})], metric="roc_auc").rows[0]
    assert np.isnan(row.mean) and row.interval is None and row.standing == "not comparable"


def test_few_seeds_crown_nobody_even_where_one_is_far_ahead() -> None:
    result = comparison_of({"lora": [0.90, 0.91, 0.92], "head": [0.60, 0.61, 0.62]})
    assert result.verdict.winner is None
    assert result.verdict.recommended == "lora"
    assert not result.row("head").tied_with_best
    assert "No winner is demonstrated: in one comparison, 3 seeds cannot be significant" in result.verdict.reason
    assert "set seeds = 6" in result.verdict.reason
    [test] = result.tests
    assert not test.is_significant and test.p == pytest.approx(0.25) and test.seeds_needed == 6


def test_six_seeds_crown_a_winner_that_is_far_ahead_of_one_other() -> None:
    scores = {kind: [start + seed / 100 for seed in range(6)] for kind, start in (("lora", 0.90), ("head", 0.60))}
    result = comparison_of(scores)
    assert result.verdict.winner == "lora"
    assert result.tests[0].p_adjusted == pytest.approx(2 / 64)
    assert "lora is better than head" in result.claims[0].text
    with_a_third = comparison_of(scores | {"ia3": [0.53 + seed / 100 for seed in range(6)]})
    assert with_a_third.verdict.winner is None, "three pairs of configurations take seven seeds"
    assert [test.p_adjusted for test in with_a_third.tests] == pytest.approx([6 / 64] * 2)
    assert {test.seeds_needed for test in with_a_third.tests} == {7}
    assert not any("better than" in claim.text for claim in with_a_third.claims)


def test_the_cheapest_of_the_tied_is_recommended_by_the_cost_that_is_asked() -> None:
    result = comparison_of({"full": [0.88, 0.90, 0.91], "lora": [0.86, 0.90, 0.88], "head": [0.60, 0.61, 0.62]})
    assert [row.name for row in result.rows if row.tied_with_best] == ["full", "lora"]
    assert result.references == {"tweets": "full"}
    assert result.verdict.recommended == "lora"
    assert "trains the fewest parameters of the 2 configurations" in result.verdict.reason
    seconds = {"full": 10.0, "lora": 20.0, "head": 5.0}
    trials = [
        with_accuracy(kind, seed, accuracy, seconds=seconds[kind])
        for kind, accuracy in (("full", 0.90), ("lora", 0.88), ("head", 0.60))
        for seed in range(3)
    ]
    assert compare(trials).verdict.recommended == "lora"
    fastest = compare(trials, cost="seconds").verdict
    assert fastest.recommended == "full" and "trains the fastest" in fastest.reason


def test_validation_chooses_and_test_does_not() -> None:
    better_on_test = [with_accuracy("lora", seed, 0.95) for seed in range(3)]
    better_on_validation = [with_accuracy("full", seed, 0.92) for seed in range(3)]
    chosen = [
        replace(one, predictions={**one.predictions, "validation": with_accuracy("full", 0, score).predictions["test"]})
        for group_, score in ((better_on_test, 0.80), (better_on_validation, 0.90))
        for one in group_
    ]
    result = compare(chosen)
    assert result.references == {"tweets": "full"}
    assert result.ranked[0].name == "lora"
    assert "validation chooses full (0.950 against 0.920 on test)" in result.verdict.reason


def test_ties_grow_with_the_spread_over_seeds_and_with_fewer_texts() -> None:
    calm = comparison_of({"full": [0.90, 0.90, 0.91], "head": [0.78, 0.79, 0.79]})
    wild = comparison_of({"full": [0.70, 0.99, 0.99], "head": [0.70, 0.79, 0.87]})
    assert not calm.row("head").tied_with_best
    assert wild.row("head").tied_with_best
    few = [
        replace(one, predictions={split: (labels[::9], logits[::9]) for split, (labels, logits) in
                                  one.predictions.items()})
        for one in (with_accuracy(kind, seed, accuracy) for kind, accuracy in (("full", 0.90), ("head", 0.78))
                    for seed in range(3))
    ]  # fmt: skip
    assert compare(few).row("head").tied_with_best


def test_two_seeds_suffice_to_set_a_far_worse_configuration_apart() -> None:
    result = comparison_of({"lora": [0.90, 0.91], "bitfit": [0.89, 0.90], "head": [0.60, 0.62]})
    assert {row.name: row.standing for row in result.rows} == {"lora": "chosen", "bitfit": "tied", "head": "behind"}
    assert result.verdict.recommended == "bitfit"


def test_what_never_comes_near_the_best_is_not_recommended_however_wide_the_intervals() -> None:
    result = comparison_of({"ia3": [0.79, 0.80], "full": [0.63, 0.82], "lora": [0.58, 0.72], "head": [0.60, 0.64]})
    assert {row.name: row.standing for row in result.rows} == {
        "ia3": "chosen", "full": "tied", "lora": "outpaced", "head": "outpaced",
    }  # fmt: skip
    assert result.verdict.recommended == "ia3"
    assert "Cheaper, but worse than every seed of ia3: head; more seeds would tell" in result.verdict.reason


def test_what_never_differs_is_tied_and_is_called_one_result() -> None:
    result = comparison_of({"lora": [0.9, 0.9], "bitfit": [0.9, 0.9], "head": [0.6, 0.6]})
    assert [row.tied_with_best for row in result.rows] == [True, True, False]
    assert any("lora and bitfit gave the same outputs for every text" in claim.text for claim in result.claims)
    assert result.tests[0].p == 1.0


def test_one_seed_gives_no_recommendation_and_says_why() -> None:
    result = comparison_of({"lora": [0.90], "head": [0.60]})
    assert result.verdict.recommended is None
    assert "one seed" in result.verdict.reason
    assert all(row.tied_with_best for row in result.rows)
    assert result.tests[0].p == 1.0 and result.tests[0].p_texts is not None and result.tests[0].p_texts < 0.001
    assert not any("better" in claim.text for claim in result.claims)


def test_a_row_with_one_finished_seed_is_never_recommended_over_rows_with_a_spread() -> None:
    result = comparison_of({"full": [0.90, 0.91], "head": [0.95]})
    assert result.references == {"tweets": "full"}
    assert result.verdict.recommended == "full"
    assert result.row("head").tied_with_best


def test_all_pairs_are_corrected_for_whether_they_are_shown_or_not() -> None:
    scores = {kind: [start + seed / 100 for seed in range(6)] for kind, start in
              (("full", 0.90), ("lora", 0.80), ("ia3", 0.65), ("head", 0.52))}  # fmt: skip
    trials = [with_accuracy(kind, seed, one) for kind, values in scores.items() for seed, one in enumerate(values)]
    everything = compare(trials, pairs="all")
    assert len(everything.tests) == 6
    for shown in (compare(trials), compare(trials, split="validation")):
        assert [(test.a, test.b) for test in shown.tests] == [("full", other) for other in ("lora", "ia3", "head")]
        assert [test.p_adjusted for test in [*shown.tests, *everything.tests]] == pytest.approx([6 / 32] * 9)
        assert {(test.corrected_for, test.seeds_needed) for test in shown.tests} == {(6, 8)}
        ends = {test.b: test.simultaneous for test in everything.tests if test.a == "full"}
        assert {test.b: test.simultaneous for test in shown.tests} == ends


def test_pairs_on_all_data_sets_share_one_correction() -> None:
    trials = [
        with_accuracy(kind, seed, accuracy + seed / 100, data=data)
        for data in ("easy", "hard")
        for kind, accuracy in (("lora", 0.90), ("head", 0.60))
        for seed in range(6)
    ]
    found = compare(trials)
    assert [test.data for test in found.tests] == ["easy", "hard"]
    assert {(test.corrected_for, test.seeds_needed) for test in found.tests} == {(2, 7)}
    assert {one.winner for one in found.verdicts.values()} == {None}
    assert not any("better than" in claim.text for claim in found.claims)


def test_trials_on_a_share_of_the_texts_are_no_rows() -> None:
    whole = [with_accuracy("lora", seed, 0.9 + seed / 100) for seed in range(3)]
    part = [with_accuracy("lora", seed, 0.6, train_share=0.1, id=f"part {seed}") for seed in range(3)]
    result = compare([*whole, *part])
    assert [len(row.scores) for row in result.rows] == [3]


def test_smaller_is_better_for_losses() -> None:
    trials = [
        with_accuracy(kind, seed, accuracy - seed / 100)
        for kind, accuracy in (("lora", 0.9), ("full", 0.6))
        for seed in range(6)
    ]
    result = compare(trials, metric="log_loss")
    assert result.ranked[0].name == "lora"
    assert result.verdict.recommended == result.verdict.winner == "lora"
    assert "lora is better than full" in result.claims[0].text
    assert result.tests[0].difference < 0 and result.claims[0].numbers["low"] > 0


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
    assert [result.recommended_on(data) for data in ("easy", "hard", "other")] == ["lora · easy", "lora · hard", None]
    assert set(result.to_json()["verdicts"]) == {"easy", "hard"}
    assert result.to_json()["verdicts"]["hard"]["recommended"] == "lora · hard"


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
    assert "lora has a better mean, although some seed learned nothing" in found.verdict.reason
