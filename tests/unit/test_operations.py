"""Operations of predicting a text: the backbone's, and what each kind of delta adds."""

from __future__ import annotations

from typing import Any

import pytest

from fleetune.engine.operations import forward_operations, serving_operations
from fleetune.engine.shape import shape_from_config
from fleetune.methods import all_methods, get
from fleetune.methods.base import BackboneShape
from tests.tiny import tiny_folder

TOKENS = 10.0
WIDTH, INNER, LAYERS = 32, 48, 2


@pytest.fixture(scope="module")
def shape() -> BackboneShape:
    return shape_from_config(tiny_folder("bert"), 3)


def added(shape: BackboneShape, kind: str, **settings: Any) -> float:
    """Returns what a delta adds to one token's operations."""
    return serving_operations(shape, get(kind)(**settings), TOKENS) / TOKENS - forward_operations(shape)


def test_a_delta_adds_two_operations_a_weight_of_its_matrices(shape: BackboneShape) -> None:
    rank = 4
    assert added(shape, "lora", rank=rank, target_modules=["query"]) == 2 * LAYERS * rank * (WIDTH + WIDTH)
    every = 4 * (WIDTH + WIDTH) + 2 * (WIDTH + INNER)
    assert added(shape, "lora", rank=rank, target_modules=["all-linear"]) == 2 * LAYERS * rank * every
    assert added(shape, "pfeiffer", bottleneck_size=8) == 2 * LAYERS * 2 * 8 * WIDTH
    assert added(shape, "houlsby", bottleneck_size=8) == 2 * added(shape, "pfeiffer", bottleneck_size=8)


def test_what_a_start_is_remembered_by_adds_nothing(shape: BackboneShape) -> None:
    assert added(shape, "lora", rank=4, start="pissa") == added(shape, "lora", rank=4)


@pytest.mark.parametrize("kind", ["head", "bitfit", "norm", "ia3", "full"])
def test_vectors_and_what_takes_a_frozen_weights_place_add_nothing(shape: BackboneShape, kind: str) -> None:
    assert added(shape, kind) == 0


def test_matrices_that_sites_share_are_used_at_each(shape: BackboneShape) -> None:
    assert added(shape, "vera", rank=64, target_modules=["query"]) == pytest.approx(2 * LAYERS * 64 * (WIDTH + WIDTH))
    every = 4 * (WIDTH + WIDTH) + 2 * (WIDTH + INNER)
    assert added(shape, "vera", rank=64, target_modules=["all-linear"]) == pytest.approx(2 * LAYERS * 64 * every)


def test_virtual_tokens_are_tokens_and_a_prefix_is_met_in_each_layer(shape: BackboneShape) -> None:
    forward = forward_operations(shape)
    assert serving_operations(shape, get("prompt")(num_virtual_tokens=5), TOKENS) == (TOKENS + 5) * forward
    # A key and a value of the width of all heads, for each virtual token and layer.
    assert added(shape, "prefix", num_virtual_tokens=5) == 2 * 5 * LAYERS * 2 * WIDTH


def test_every_method_has_a_serving_cost_that_grows_with_the_text(shape: BackboneShape) -> None:
    for kind in all_methods():
        costs = [serving_operations(shape, get(kind)(), tokens) for tokens in (0.0, 1.0, 100.0)]
        assert 0 <= costs[0] < costs[1] < costs[2], kind
        assert costs[1] - costs[0] >= forward_operations(shape), kind
