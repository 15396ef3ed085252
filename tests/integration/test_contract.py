"""What every method must keep, with every setting that changes how it works, in both layouts."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from fleetune.engine.backbone import Backbone
from fleetune.engine.evaluation import trial_logits
from fleetune.engine.events import Finished, Stepped
from fleetune.engine.fleet import Fleet
from fleetune.engine.layout import Layout
from fleetune.engine.parameters import SEPARATOR
from fleetune.engine.trial import TrialSpec
from fleetune.errors import MethodError
from fleetune.methods import all_methods, get
from tests.tiny import learnable_data, random_data, spec, tiny_backbone

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "lora": [
        {"dora": True, "dropout": 0.1},
        {"rslora": True, "loraplus_lr_ratio": 16.0},
        {"start": "pissa", "rank": 4},
        {"start": "olora", "rank": 4, "dora": True},
        {"start": "orthogonal", "rank": 4},
        {"bias": "all"},
        {"bias": "lora_only", "target_modules": ["all-linear"]},
        {"layers": [-1]},
    ],
    "adalora": [{"rank": 4, "target_rank": 1, "allocate_every": 1, "initial_share": 0.2}],
    "vera": [{"rank": 8, "target_modules": ["all-linear"]}],
    "bitfit": [{"biases": ["query", "feed_forward_in"]}],
    "full": [{"layer_decay": 0.5}, {"frozen_layers": 1}],
}
"""Settings besides the defaults that change how a method works; a method of its own file need not stand here."""
CASES = [(kind, settings) for kind in sorted(all_methods()) for settings in [{}, *VARIANTS.get(kind, [])]]
LAYOUTS: list[Layout] = ["packed", "padded"]
ARCHITECTURES = ["bert", "llama"]
DATA = learnable_data(train=24)


@cache
def backbone_of(architecture: str, layout: Layout) -> Backbone:
    return tiny_backbone(architecture, layout=layout)


def fitting(architecture: str, kind: str, settings: dict[str, Any]) -> None:
    try:
        get(kind)(**settings).sites(backbone_of(architecture, "packed").shape)
    except MethodError:
        pytest.skip("does not fit this architecture, and says so")


def frozen_weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}


def trained(
    backbone: Backbone, *specs: TrialSpec
) -> dict[str, tuple[list[float], np.ndarray, dict[str, torch.Tensor]]]:
    """Returns each trial's losses, its logits on the test texts and its last tensors."""
    fleet = Fleet(backbone, list(specs), DATA)
    losses: dict[str, list[float]] = {one.id: [] for one in specs}
    logits = {}
    for event in fleet.train():
        if isinstance(event, Stepped):
            losses[event.trial].append(event.loss)
        if isinstance(event, Finished):
            logits[event.trial] = event.predictions["test"]
    return {one.spec.id: (losses[one.spec.id], logits[one.spec.id], one.parameters.state()) for one in fleet.trials}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("kind", "settings"), CASES, ids=str)
def test_contract(kind: str, settings: dict[str, Any], architecture: str, layout: Layout) -> None:
    fitting(architecture, kind, settings)
    backbone, method = backbone_of(architecture, layout), get(kind)(**settings)
    own = spec(kind, settings=settings, max_steps=6, learning_rate=1e-2)
    before = frozen_weights(backbone)

    start = Fleet(backbone, [own], DATA).trials[0].parameters
    trainable = sum(group.buffer.numel() for group in start.groups)
    assert trainable == method.expected_parameters(backbone.shape) + backbone.shape.head_parameters
    fresh = trial_logits(backbone, method, start.state(), DATA.tokens, DATA.splits["test"])
    head = {name: tensor for name, tensor in start.state().items() if SEPARATOR not in name}
    plain = trial_logits(backbone, get("head")(), head, DATA.tokens, DATA.splits["test"])
    if method.starts_as_no_op:
        np.testing.assert_allclose(fresh, plain, atol=1e-5)
    elif not method.installs:  # what PEFT's own methods start from is PEFT's affair
        assert np.abs(fresh - plain).max() > 1e-4, "it is a no-op, and says that it is none"

    losses, logits, state = trained(backbone, own)[own.id]
    assert len(losses) == 6
    assert np.isfinite(losses).all()
    changed = [name for name, tensor in start.state().items() if not torch.equal(tensor, state[name])]
    assert changed, "nothing was trained"
    deltas = [name for name in state if SEPARATOR in name]
    assert not deltas or any(SEPARATOR in name for name in changed), "the head alone was trained"
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} is frozen and has changed"

    if not method.shares_backbone:
        return
    neighbour = spec("ia3", seed=3, max_steps=6, learning_rate=1e-2)
    together = trained(backbone, neighbour, own)[own.id]
    np.testing.assert_allclose(together[0], losses, rtol=1e-9)
    np.testing.assert_allclose(together[1], logits, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("kind", "settings"), CASES, ids=str)
def test_layouts_agree(kind: str, settings: dict[str, Any], architecture: str) -> None:
    fitting(architecture, kind, settings)
    own = spec(kind, settings=settings, max_steps=4, learning_rate=1e-2)
    packed, padded = (trained(backbone_of(architecture, layout), own)[own.id] for layout in LAYOUTS)
    # Hugging Face computes rotary positions and norms of float64 models in fp32.
    np.testing.assert_allclose(packed[0], padded[0], rtol=1e-5)
    np.testing.assert_allclose(packed[1], padded[1], atol=1e-4)


def test_adalora_ends_with_its_budget() -> None:
    settings = {"rank": 4, "target_rank": 1, "allocate_every": 2, "initial_share": 0.1, "final_share": 0.4}
    backbone = backbone_of("bert", "packed")
    own = spec("adalora", settings=settings, max_steps=30, learning_rate=1e-2)
    _, _, state = trained(backbone, own)[own.id]
    values = torch.cat([tensor for name, tensor in state.items() if name.endswith("::lora_E")])
    sites = len(get("adalora")().sites(backbone.shape))
    assert len(values) == 4 * sites
    assert int((values != 0).sum()) == sites, "one direction a module, on average"


def test_each_layer_of_a_decayed_full_fine_tune_has_its_own_rate() -> None:
    backbone = backbone_of("bert", "packed")
    fleet = Fleet(backbone, [spec("full", settings={"layer_decay": 0.5})], random_data())
    rates = {name: group.rate for group in fleet.trials[0].parameters.groups for name in group.shapes}
    assert rates["classifier.weight"] == 1.0
    assert rates["bert.pooler.dense::weight"] == 1.0
    assert rates["bert.encoder.layer.1.output.dense::weight"] == 0.5
    assert rates["bert.encoder.layer.0.output.dense::weight"] == 0.25
    assert rates["bert.embeddings.word_embeddings::weight"] == 0.125
