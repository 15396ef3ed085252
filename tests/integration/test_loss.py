"""Losses are those of torch, of their formula and of one large batch, however a step is divided."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from fleetune.engine.events import Evaluated, Failed, Stepped
from fleetune.engine.fleet import Fleet
from fleetune.engine.lanes import Lanes
from fleetune.engine.loss import batch_loss, class_weights
from tests.tiny import random_data, spec, tiny_backbone

LABELS = 3
WEIGHTS = torch.tensor([0.5, 2.0, 3.5], dtype=torch.float64)


def drawn(multi_label: bool, texts: int = 11, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(scale=3.0, size=(texts, LABELS)))
    given = rng.integers(0, 2, (texts, LABELS)).astype(np.uint8) if multi_label else rng.integers(0, LABELS, texts)
    return logits.requires_grad_(), torch.from_numpy(given)


def focal_by_hand(logits: torch.Tensor, labels: torch.Tensor, gamma: float, weights: torch.Tensor) -> float:
    """Equation 5 of Lin et al., text by text."""
    total = 0.0
    for row, label in zip(logits.detach().tolist(), labels.tolist(), strict=True):
        if isinstance(label, list):
            for place, (value, truth) in enumerate(zip(row, label, strict=True)):
                chance = 1 / (1 + np.exp(-value))
                p = chance if truth else 1 - chance
                total -= (
                    (float(weights[place]) if truth else 1.0) * (1 - p) ** gamma * np.log(p) / (LABELS * len(labels))
                )
        else:
            p = np.exp(row[label]) / np.exp(row).sum()
            total -= float(weights[label]) * (1 - p) ** gamma * np.log(p) / float(weights[labels].sum())
    return total


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_without_focus_it_is_torchs(weights: torch.Tensor | None) -> None:
    logits, labels = drawn(multi_label=False)
    expected = functional.cross_entropy(logits, labels, weight=weights)
    torch.testing.assert_close(batch_loss(logits, labels, labels, weights), expected)
    torch.testing.assert_close(batch_loss(logits, labels, labels, weights, focal_gamma=0.0), expected)
    logits, labels = drawn(multi_label=True)
    expected = functional.binary_cross_entropy_with_logits(logits, labels.double(), pos_weight=weights)
    torch.testing.assert_close(batch_loss(logits, labels, labels, weights), expected)
    torch.testing.assert_close(batch_loss(logits, labels, labels, weights, focal_gamma=0.0), expected)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_is_its_formula_and_has_its_gradient(multi_label: bool, gamma: float) -> None:
    logits, labels = drawn(multi_label)
    expected = focal_by_hand(logits, labels, gamma, WEIGHTS)
    assert batch_loss(logits, labels, labels, WEIGHTS, gamma).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: batch_loss(x, labels, labels, WEIGHTS, gamma), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [None, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("value", [0.0, 40.0, 200.0, 1e4])
def test_sure_answers_have_finite_losses_and_gradients(gamma: float | None, value: float, dtype: torch.dtype) -> None:
    for labels in (torch.tensor([0, 1, 1]), torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=torch.uint8)):
        logits = torch.tensor([[value, -value], [-value, value], [value, -value]], dtype=dtype, requires_grad=True)
        loss = batch_loss(logits, labels, labels, focal_gamma=gamma)
        loss.backward()
        assert torch.isfinite(loss) and logits.grad is not None and torch.isfinite(logits.grad).all()


@given(
    multi_label=st.booleans(),
    weighted=st.booleans(),
    gamma=st.sampled_from([None, 2.0]),
    borders=st.sets(st.integers(1, 10)),
)
@settings(max_examples=40, deadline=None)
def test_parts_of_a_step_add_up_to_it(
    multi_label: bool, weighted: bool, gamma: float | None, borders: set[int]
) -> None:
    logits, labels = drawn(multi_label)
    weights = WEIGHTS if weighted else None
    whole = batch_loss(logits, labels, labels, weights, gamma)
    places = [0, *sorted(borders), len(labels)]
    parts = [
        batch_loss(logits[start:end], labels[start:end], labels, weights, gamma)
        for start, end in itertools.pairwise(places)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_weights_are_those_of_scikit_learn_and_of_the_ratio() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    balanced = class_weights(labels, 3, "balanced")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced is not None
    np.testing.assert_allclose(balanced.numpy(), expected)
    several = class_weights(np.array([[1, 0], [0, 0], [0, 0], [1, 0]], dtype=np.uint8), 2, "balanced")
    assert several is not None and several.tolist() == [1.0, 1.0]
    assert class_weights(labels, 3, "none") is None
    given_numbers = class_weights(labels, 3, (1.0, 3.5, 2.0))
    assert given_numbers is not None and given_numbers.tolist() == [1.0, 3.5, 2.0]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(
    "fields",
    [{"class_weights": (0.3, 5.0, 1.0)}, {"loss": "focal"}, {"loss": "focal", "class_weights": "balanced"}],
)
def test_a_step_is_the_same_in_one_batch_accumulated_and_divided_between_lanes(
    monkeypatch: pytest.MonkeyPatch, multi_label: bool, fields: dict[str, Any]
) -> None:
    data = random_data(train=37, multi_label=multi_label)
    common = {"max_steps": 8, "metric": "f1_macro", "learning_rate": 1e-2, "head_dropout": 0.0, **fields}
    common["backbone_dropout"] = False
    found = {}
    for name, size, accumulation, lanes in (("whole", 12, 1, 1), ("accumulated", 3, 4, 1), ("lanes", 12, 1, 3),
                                            ("both", 6, 2, 3)):  # fmt: skip
        monkeypatch.setattr("fleetune.engine.micro_batches.lanes", lambda lanes=lanes: Lanes(lanes, 1))
        one = spec("lora", batch_size=size, gradient_accumulation_steps=accumulation, **common)
        events = list(Fleet(tiny_backbone(), [one], data).train())
        found[name] = [event.loss for event in events if isinstance(event, Stepped)]
        assert any(isinstance(event, Evaluated) for event in events)
        assert not any(isinstance(event, Failed) for event in events)
    assert found["whole"][0] != pytest.approx(found["whole"][-1], rel=1e-3)
    for name in ("accumulated", "lanes", "both"):
        np.testing.assert_allclose(found[name], found["whole"], rtol=1e-9, err_msg=name)
