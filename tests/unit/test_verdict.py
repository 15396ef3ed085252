"""Each sentence of the verdict is said where it is true, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fleetune.compare.choice import choose
from fleetune.compare.configuration import group
from fleetune.compare.result import TrialResult
from fleetune.compare.row import summed_up
from fleetune.compare.summary import Comparison, compare
from tests.unit.test_compare import NAMES, comparison_of, with_accuracy

SIX = range(6)
BEHIND = "every other is behind it"
NO_OTHER = "and no other comes into question in its place"


def trials_of(scores: dict[str, list[float]], **changes: Any) -> list[TrialResult]:
    return [with_accuracy(kind, seed, one, **changes) for kind, own in scores.items() for seed, one in enumerate(own)]


def baseline(kind: str, accuracy: float) -> TrialResult:
    made = with_accuracy("head", 0, accuracy)
    return replace(made, kind=kind, method=kind, id=kind, settings={}, training={"metric": "accuracy"})


def failed(trial: TrialResult) -> TrialResult:
    return replace(trial, status="failed", reason="loss is nan", predictions={})


def on_test(validation: dict[str, list[float]], test: dict[str, list[float]]) -> Comparison:
    """Returns the comparison of trials that have these scores on validation and those on test."""
    trials = [
        replace(one, predictions={"validation": one.predictions["test"], "test": other.predictions["test"]})
        for one, other in zip(trials_of(validation), trials_of(test), strict=True)
    ]
    return compare(trials)


def test_that_all_are_behind_is_said_where_every_one_is() -> None:
    found = comparison_of({"lora": [0.90, 0.91, 0.92], "head": [0.60, 0.61, 0.62]})
    assert found.row("head").standing == "behind"
    assert BEHIND in found.verdict.reason and NO_OTHER not in found.verdict.reason


def test_that_all_are_behind_is_not_said_where_one_is_outpaced_only() -> None:
    found = comparison_of({"ia3": [0.79, 0.80], "lora": [0.58, 0.72], "head": [0.40, 0.41]})
    assert {row.name: row.standing for row in found.rows if row.name != "ia3"}["lora"] == "outpaced"
    assert BEHIND not in found.verdict.reason and NO_OTHER in found.verdict.reason


def test_that_all_are_behind_is_not_said_where_a_baseline_is_outpaced_only() -> None:
    found = compare([*trials_of({"lora": [0.80, 0.98]}), baseline("tfidf", 0.60)])
    assert found.row("tfidf").standing == "outpaced"
    assert BEHIND not in found.verdict.reason and NO_OTHER in found.verdict.reason
    assert "That lora is better than the baseline tfidf (0.890 against 0.600) is not demonstrated" in (
        found.verdict.reason
    )


def test_that_all_are_behind_is_not_said_where_a_rival_has_one_seed() -> None:
    found = comparison_of({"full": [0.90, 0.91, 0.92], "head": [0.90], "lora": [0.55, 0.56, 0.57]})
    assert found.row("head").standing == "tied" and not found.row("head").is_candidate
    assert found.verdict.recommended == "full"
    assert BEHIND not in found.verdict.reason and NO_OTHER in found.verdict.reason


def test_a_single_configuration_has_no_others_to_speak_of() -> None:
    reason = comparison_of({"lora": [0.90, 0.91, 0.92]}).verdict.reason
    assert reason.startswith("Ship lora: validation chooses it (accuracy 0.910 on test).")
    assert BEHIND not in reason and NO_OTHER not in reason
    assert "there was nothing that it could be tested against" in reason


def test_one_method_that_beats_a_baseline_has_won_against_no_other_method() -> None:
    found = compare([*trials_of({"lora": [0.90 + seed / 100 for seed in SIX]}), baseline("tfidf", 0.60)])
    [test] = found.tests
    assert test.is_significant and found.verdict.winner is None
    assert "lora is significantly better than tfidf, and no other that was trained is there to win against" in (
        found.verdict.reason
    )


def test_of_what_some_seeds_failed_nobody_says_that_it_won() -> None:
    trials = trials_of({"lora": [0.90 + seed / 100 for seed in range(7)], "head": [0.60 + seed / 100 for seed in SIX]})
    whole = compare(trials[:6] + trials[7:])
    assert whole.verdict.winner == "lora"
    assert whole.claims[0].text.endswith("6 seeds)."), "nothing failed, and nothing is held back"
    found = compare([*trials[:6], failed(trials[6]), *trials[7:]])
    assert found.tests[0].is_significant and found.verdict.winner is None
    assert "lora is significantly better than head, but some of its seeds failed" in found.verdict.reason
    assert "But 1 of its 7 seeds failed: the means are of those that did not." in found.verdict.reason
    assert "lora is better than head" in found.claims[0].text
    assert "1 of 7 seeds of lora failed and are not in its mean." in found.claims[0].text


def test_a_claim_says_which_seeds_learned_nothing() -> None:
    lora, bitfit = [0.90 + seed / 100 for seed in range(8)], [0.65 + seed / 100 for seed in range(7)] + [0.50]
    found = comparison_of({"lora": lora, "bitfit": bitfit})
    assert found.row("bitfit").degenerate.keys() == {7} and found.tests[0].is_significant
    assert "1 of 8 seeds of bitfit learned nothing and are in its mean." in found.claims[0].text
    assert "seeds of lora" not in found.claims[0].text


def test_what_is_ahead_of_the_chosen_one_is_no_tie_and_is_not_recommended() -> None:
    validation = {"full": [0.90 + seed / 100 for seed in SIX], "head": [0.80 + seed / 100 for seed in SIX]}
    found = on_test(validation, {"full": validation["head"], "head": validation["full"]})
    head = found.row("head")
    assert head.standing == "ahead" and not head.tied_with_best and not head.is_candidate
    assert found.verdict.recommended == "full" and found.verdict.winner is None
    assert "head is better than full on the texts that were scored, but was not chosen" in found.verdict.reason
    assert BEHIND not in found.verdict.reason


def test_the_cheapest_is_named_as_one_of_several_where_others_cost_as_little() -> None:
    trials = trials_of({"full": [0.90, 0.92, 0.91], "ia3": [0.90, 0.90, 0.91], "lora": [0.91, 0.91, 0.89]})
    same = {"adapter": 10, "head": 2, "trainable": 12}
    trials = [one if one.kind == "full" else replace(one, parameters=same) for one in trials]
    reason = compare(trials).verdict.reason
    assert "trains the fewest parameters, with 1 more, of the 3 configurations" in reason
    assert "validation chooses full" in reason


@pytest.mark.parametrize(
    ("kinds", "seeds"),
    [(("lora",), 6), (("lora", "head"), 6), (("lora", "head", "ia3"), 7), (("lora", "head", "ia3", "full"), 8)],
)
def test_one_seed_is_told_how_many_the_pairs_would_take(kinds: tuple[str, ...], seeds: int) -> None:
    reason = comparison_of({kind: [0.9 - place / 50] for place, kind in enumerate(kinds)}).verdict.reason
    assert f"Set seeds = {seeds} or more in the recipe" in reason


def test_one_seed_on_the_texts_that_chose_says_so() -> None:
    found = compare(trials_of({"lora": [0.90], "head": [0.80]}), split="validation")
    assert "The same texts chose and judge; only a test split keeps the two apart." in found.verdict.reason


def test_where_less_is_better_worse_is_not_below() -> None:
    found = compare(trials_of({"ia3": [0.79, 0.80], "head": [0.55, 0.65], "full": [0.74, 0.80]}), metric="log_loss")
    assert found.row("head").standing == "outpaced"
    assert found.references == {"tweets": "ia3"}
    assert "below" not in found.verdict.reason
    assert "worse than every seed of ia3: head" in found.verdict.reason


def chosen(scores: dict[str, list[float]], **changes: TrialResult) -> str | None:
    trials = [changes.get(f"{one.kind}_{one.seed}", one) for one in trials_of(scores)]
    choice = choose([summed_up(one, "test", "accuracy") for one in group(trials)], "test")
    return choice.row.name if choice else None


def test_those_of_which_every_seed_learned_are_chosen_before_better_ones() -> None:
    assert chosen({"lora": [0.95, 0.95, 0.50], "head": [0.60, 0.61, 0.62]}) == "head"


def test_where_no_row_learned_with_every_seed_one_that_mostly_did_is_chosen() -> None:
    scores = {"lora": [0.95, 0.95, 0.50], "head": [0.80, 0.81, 0.50], "full": [0.99, 0.50, 0.50]}
    assert chosen(scores) == "lora", "not full, of which most seeds learned nothing"
    assert chosen({"full": [0.99, 0.50, 0.50]}) is None
    found = comparison_of(scores)
    assert found.verdict.recommended == "lora"


def test_the_fallback_counts_what_failed_on_validation_and_not_on_test() -> None:
    """What learned nothing on test alone is chosen all the same, and its verdict says that it fails there."""
    one_answer = np.tile(np.array([1.0, 0.0], np.float32), (100, 1))
    trials = trials_of({"lora": [0.90, 0.91, 0.92], "head": [0.80, 0.81, 0.82]})
    trials = [
        replace(one, predictions={**one.predictions, "test": (np.arange(100) % 2, one_answer)})
        if one.kind == "lora"
        else one
        for one in trials
    ]
    found = compare(trials)
    assert found.references == {"tweets": "lora"} and found.verdict.recommended is None
    assert f"lora, which validation chooses, fails on test: predicts '{NAMES[0]}'" in found.verdict.reason
