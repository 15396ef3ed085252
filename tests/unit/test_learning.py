"""A loss at chance, or still falling, is told from a method that is worse; published figures are held against it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from fleetune.compare.learning import chance_loss, loss_at_chance, under_trained
from fleetune.compare.result import TrialResult
from tests.unit.synthetic_runs import trial

NAMES = ["negative", "positive"]
LN2 = math.log(2)

# DistilBERT on 128 training and 32 validation texts of IMDB, 10 epochs: validation losses, training loss, right of 32.
IMDB = {
    "lora r 64": ([0.7038, 0.6977, 0.6944, 0.6922, 0.6919, 0.6914, 0.6894, 0.6887, 0.6879, 0.6877], 0.6908, 19),
    "lora r 64 and ffn": ([0.6911, 0.6899, 0.6891, 0.6880, 0.6884, 0.6881, 0.6863, 0.6856, 0.6849, 0.6847], 0.6860, 19),
    "lora r 32": ([0.6971, 0.6936, 0.6911, 0.6894, 0.6894, 0.6889, 0.6872, 0.6866, 0.6858, 0.6856], 0.6866, 19),
    "ia3": ([0.6917, 0.6917, 0.6915, 0.6910, 0.6916, 0.6916, 0.6903, 0.6898, 0.6893, 0.6892], 0.6946, 20),
}


def binary(right: int, texts: int, scale: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """As many right answers as asked on texts of two equal classes."""
    labels = np.arange(texts) % 2
    chosen = np.where(np.arange(texts) < right, labels, 1 - labels)
    return labels, (np.stack([1.0 - chosen, chosen], axis=1) * scale).astype(np.float32)


def with_losses(
    validation: list[float], stepwise: list[float], right: int = 55, texts: int = 100, **changes: Any
) -> TrialResult:
    steps = len(stepwise) // len(validation)
    history = [
        {"step": (place + 1) * steps, "epoch": place + 1.0, "metrics": {"loss": loss}}
        for place, loss in enumerate(validation)
    ]
    held = {"validation": binary(right, texts), "test": binary(right, texts)}
    losses = [(step + 1, loss) for step, loss in enumerate(stepwise)]
    plain: dict[str, Any] = {
        "history": history,
        "losses": losses,
        "predictions": held,
        "best_step": history[-1]["step"],
    }
    return replace(trial("lora", 0, NAMES), **(plain | changes))


@pytest.mark.parametrize("name", IMDB)
def test_published_runs_near_ln_2_are_at_chance(name: str) -> None:
    validation, training, right = IMDB[name]
    one = with_losses(validation, [training] * 80, right, texts=32)
    assert "0.6931" in (loss_at_chance(one) or "")
    assert (one.degenerate_reason("validation") or "").startswith("loss at chance")
    assert "a larger learning_rate or more epochs" in (under_trained(one) or "")


def test_bitfit_at_a_tiny_learning_rate_is_under_trained_and_not_a_worse_method() -> None:
    training = {"learning_rate": 1e-5, "epochs": 5.0, "loss": "cross_entropy", "class_weights": "none"}
    tiny = with_losses([0.694, 0.692, 0.691, 0.690, 0.690], [0.693] * 50, training=training)
    assert under_trained(tiny) == (
        "Under-trained with learning_rate 1e-05 and 5 epochs: its validation loss came down to 0.6900 only, and "
        "guessing by the labels' shares has 0.6931. "
        "Try a larger learning_rate or more epochs before judging the method."
    )
    trained = with_losses(
        [0.45, 0.32, 0.27, 0.255, 0.25],
        list(np.linspace(0.7, 0.2, 50)),
        90,
        training=training | {"learning_rate": 5e-4},
    )
    assert under_trained(trained) is None and trained.degenerate_reason("test") is None


def test_a_training_loss_that_fell_is_not_at_chance() -> None:
    one_epoch = with_losses([0.69], [0.6168] * 50)
    assert loss_at_chance(one_epoch) is None
    by_heart = with_losses([0.6168, 0.8, 0.9911], [0.0705] * 60, 80, best_step=20)
    assert loss_at_chance(by_heart) is None
    far_above_throughout = with_losses([0.9911, 0.9911], [0.0705] * 60, 80, best_step=30)
    assert loss_at_chance(far_above_throughout) is None and under_trained(far_above_throughout) is None


def test_a_run_that_diverged_is_at_chance_and_told_to_step_smaller() -> None:
    diverged = with_losses([1.5, 1.4, 1.6], [1.5] * 30)
    assert loss_at_chance(diverged)
    assert "mostly a smaller one" in (under_trained(diverged) or "")
    assert (under_trained(diverged) or "").startswith("Diverged with learning_rate")


def test_a_loss_above_chance_that_still_fell_did_not_diverge() -> None:
    falling = with_losses([1.5, 1.4, 1.3], [1.5] * 30)
    assert loss_at_chance(falling)
    said = under_trained(falling) or ""
    assert said.startswith("Under-trained with learning_rate") and "a larger learning_rate or more epochs" in said
    once = with_losses([0.75], [0.75] * 10)
    assert (under_trained(once) or "").startswith("Diverged"), "it began at ln 2"


@pytest.mark.parametrize("setting", [{"loss": "focal"}, {"class_weights": "balanced"}])
def test_a_loss_of_another_kind_is_not_held_against_chance(setting: dict[str, Any]) -> None:
    assert loss_at_chance(with_losses([0.69, 0.69], [0.2] * 20, training=setting))
    assert loss_at_chance(with_losses([0.99, 0.99], [0.2] * 20, training=setting)) is None
    assert loss_at_chance(with_losses([0.69, 0.69], [0.2] * 20, training={"loss": "cross_entropy"})) is None


def test_a_loss_still_falling_at_the_last_evaluation_is_under_trained() -> None:
    training = list(np.linspace(0.7, 0.4, 30))
    falling = with_losses([0.65, 0.55, 0.45], training, 80)
    assert "from 0.5500 to 0.4500" in (under_trained(falling) or "")
    assert falling.degenerate_reason("test") is None
    assert under_trained(with_losses([0.65, 0.45, 0.445], training, 80)) is None
    assert under_trained(with_losses([0.65, 0.55, 0.45], training, 80, stopped_early=True)) is None
    assert under_trained(with_losses([0.65, 0.55, 0.45], training, 80, best_step=20)) is None
    assert under_trained(with_losses([0.65, 0.45, 0.55], training, 80)) is None


def test_tiny_logits_in_the_right_order_are_under_trained_but_not_degenerate() -> None:
    one = with_losses([0.69, 0.685], [0.69] * 20, right=85)
    assert one.degenerate_reason("test") is None
    assert under_trained(one)


def test_baselines_and_trials_without_losses_are_never_at_chance() -> None:
    base = with_losses([0.69, 0.69], [0.69] * 20, kind="tfidf")
    assert loss_at_chance(base) is None and under_trained(base) is None
    assert loss_at_chance(with_losses([0.69], [0.69] * 5, predictions={})) is None
    nothing = with_losses([0.69], [0.69] * 5, history=[], losses=[])
    assert loss_at_chance(nothing) is None and under_trained(nothing) is None
    assert loss_at_chance(with_losses([math.nan, math.nan], [0.69] * 4)) is None


def test_chance_of_several_labels_is_their_mean_binary_entropy() -> None:
    labels = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
    one_of_four = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert chance_loss(labels, 3) == pytest.approx((one_of_four + 0.0 + one_of_four) / 3)
    assert chance_loss(np.array([0, 1]), 2) == pytest.approx(LN2)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_no_constant_guess_has_a_lower_loss_than_chance(classes: list[int]) -> None:
    labels = np.array(classes)
    shares = np.bincount(labels, minlength=5) / len(labels)
    expected = log_loss(labels, np.tile(shares, (len(labels), 1)), labels=range(5))
    assert chance_loss(labels, 5) == pytest.approx(expected, abs=1e-9)


def test_no_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="no texts"):
        chance_loss(np.empty(0, int), 2)
