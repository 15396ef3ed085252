"""Texts in windows: logits and gradients are a plain model's, run window by window; nothing else changes by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fleetune.bundle import load_bundle, save_bundle, verify_bundle
from fleetune.data.tokens import Tokens
from fleetune.engine.backbone import Backbone
from fleetune.engine.dropout import Stream
from fleetune.engine.evaluation import trial_logits
from fleetune.engine.events import Event, Stepped
from fleetune.engine.fleet import Fleet, FleetData
from fleetune.engine.lanes import Lanes
from fleetune.engine.layout import pack_texts
from fleetune.engine.probe import largest_batch
from fleetune.engine.trial import TrialSpec
from fleetune.errors import ExportMismatchError
from tests.tiny import (
    REPRESENTATIVE,
    attached,
    plain_model,
    random_data,
    random_tokens,
    relative_difference,
    spec,
    tiny_backbone,
)

Tensors = dict[str, torch.Tensor]
TEXTS = np.array([3, 1, 4, 0, 5, 9])
LABELS = torch.tensor([0, 2, 1, 1, 0, 2])
NO_DROPOUT = Stream(seed=0, step=0, micro_step=0, backbone=False, head_rate=0.0)
IN_FLOAT64_THROUGHOUT = ("bert", "distilbert", "roberta")
"""The others' Hugging Face code computes positions, norms or softmax in fp32 whatever the model's type."""


def windowed(texts: int, pool: Any = "mean", seed: int = 0) -> Tokens:
    """Returns random texts of 1 to 4 windows each."""
    counts = 1 + 3 * np.arange(texts) % 4
    text_offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    single = random_tokens(int(text_offsets[-1]), seed)
    lengths = np.diff(single.offsets[text_offsets]).astype(np.int32)
    cut = np.zeros(texts, dtype=np.bool_)
    return replace(single, full_lengths=lengths, text_offsets=text_offsets, cut=cut, pool=pool)


def windowed_data(pool: Any = "mean") -> FleetData:
    data = random_data()
    return FleetData(windowed(len(data.labels), pool), data.labels, data.splits)


def moved(backbone: Backbone, one: TrialSpec, dtype: torch.dtype = torch.float64) -> Tensors:
    """Returns what the trial trains, a little away from its start."""
    start = Fleet(backbone, [one], random_data()).trials[0].parameters.state()
    generator = torch.Generator().manual_seed(5)
    noise = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in start.items()}
    return {name: (tensor + 0.1 * noise[name]).to(dtype).requires_grad_() for name, tensor in start.items()}


def plain_logits(backbone: Backbone, one: TrialSpec, tensors: Tensors, tokens: Tokens) -> torch.Tensor:
    """Returns the texts' logits by the Hugging Face model, given one window at a time."""
    model = plain_model(backbone.shape.model_type).eval()
    weights = {name: tensor for name, tensor in tensors.items() if "::" not in name}
    for site in one.method.sites(backbone.shape):
        own = {name: tensors[f"{site.name}::{name}"] for name in one.method.parameters(site)}
        frozen = {name: model.get_parameter(f"{site.name}.{name}").detach() for name in site.shapes}
        merged = one.method.merged(own, site, frozen)
        assert merged is not None
        weights |= {f"{site.name}.{name}": tensor for name, tensor in merged.items()}
    assert tokens.text_offsets is not None
    logits = []
    for text in TEXTS:
        windows = []
        for window in range(tokens.text_offsets[text], tokens.text_offsets[text + 1]):
            ids = np.array(tokens.input_ids[tokens.offsets[window] : tokens.offsets[window + 1]], dtype=np.int64)
            inputs = {"input_ids": torch.from_numpy(ids)[None]}
            windows.append(torch.func.functional_call(model, weights, kwargs=inputs).logits[0])
        stacked = torch.stack(windows)
        logits.append(stacked.mean(dim=0) if tokens.pool == "mean" else stacked.max(dim=0).values)
    return torch.stack(logits)


def gradients(logits: torch.Tensor, tensors: Tensors) -> np.ndarray:
    """Returns every tensor's gradient of the mean cross entropy, end to end."""
    loss = torch.nn.functional.cross_entropy(logits, LABELS)
    found = torch.autograd.grad(loss, list(tensors.values()))
    return torch.cat([gradient.flatten() for gradient in found]).numpy()


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("architecture", REPRESENTATIVE)
def test_logits_and_gradients_are_a_plain_models_pooled(architecture: str, layout: str) -> None:
    backbone, one = (
        tiny_backbone(architecture, layout=layout),
        spec("lora", settings={"target_modules": ["all-linear"]}),
    )
    tensors = moved(backbone, one)
    exact = 1e-10 if architecture in IN_FLOAT64_THROUGHOUT else 5e-6
    for pool in ("mean", "max"):
        tokens = windowed(12, pool)
        assert set(tokens.sequence_counts[TEXTS]) > {1, 4}
        pack = pack_texts(tokens, [(0, TEXTS)], backbone.layout)
        with attached(backbone, {0: (one.method, tensors)}) as heads:
            logits = backbone.logits(pack, heads, {0: NO_DROPOUT})[0]
            found = gradients(logits, tensors)
        plain = plain_logits(backbone, one, tensors, tokens)
        assert logits.shape == plain.shape == (6, 3)
        assert relative_difference(logits.detach().numpy(), plain.detach().numpy()) <= exact
        assert relative_difference(found, gradients(plain, tensors)) <= exact
        evaluated = trial_logits(backbone, one.method, {n: t.detach() for n, t in tensors.items()}, tokens, TEXTS)
        assert relative_difference(evaluated, plain.detach().numpy()) <= 1e-5


def test_passes_of_an_evaluation_divide_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, one, tokens = tiny_backbone(), spec("head"), windowed(12)
    tensors = {name: tensor.detach() for name, tensor in moved(backbone, one).items()}
    whole = trial_logits(backbone, one.method, tensors, tokens)
    passes: list[int] = []
    real = Backbone.logits

    def watched(self: Backbone, pack: Any, heads: Any, streams: Any) -> Any:
        passes.append(pack.tokens)
        return real(self, pack, heads, streams)

    monkeypatch.setattr(Backbone, "logits", watched)
    monkeypatch.setattr("fleetune.engine.evaluation.tokens_in_one_pass", lambda: 30)
    divided = trial_logits(backbone, one.method, tensors, tokens)
    assert max(passes) <= 30 < tokens.lengths.max()
    np.testing.assert_allclose(divided, whole, rtol=1e-6)


MIXED = [
    spec("lora", 0, {"dropout": 0.2}, epochs=1),
    spec("bitfit", 2, epochs=1, batch_size=3, gradient_accumulation_steps=2),
    spec("norm", 3, epochs=1, gradient_accumulation_steps=3),
    spec("ia3", 4, epochs=1, batch_size=5, class_weights="balanced"),
]


def train(specs: list[TrialSpec], data: FleetData, layout: str) -> dict[str, list[Any]]:
    """Returns the losses and all trained values of each trial."""
    fleet = Fleet(tiny_backbone(layout=layout), specs, data)
    events: list[Event] = list(fleet.train())
    result: dict[str, list[Any]] = {}
    for trial in fleet.trials:
        steps = [event for event in events if isinstance(event, Stepped) and event.trial == trial.spec.id]
        values = torch.cat([tensor.flatten() for tensor in trial.parameters.state().values()]).numpy()
        result[trial.spec.id] = [[step.loss for step in steps], values, sum(step.tokens for step in steps)]
    return result


@pytest.mark.parametrize(
    ("layout", "lanes", "shared"), [("packed", 3, False), ("packed", 1, True), ("padded", 3, False)]
)
def test_alone_equals_together(monkeypatch: pytest.MonkeyPatch, layout: str, lanes: int, shared: bool) -> None:
    data = windowed_data()
    monkeypatch.setattr("fleetune.engine.micro_batches.lanes", lambda: Lanes(1, 1))
    alone = {one.id: train([one], data, "packed")[one.id] for one in MIXED}
    monkeypatch.setattr("fleetune.engine.micro_batches.lanes", lambda: Lanes(lanes, 1))
    monkeypatch.setattr("fleetune.engine.micro_batches.shares_packs", lambda backbone: shared)
    # In three lanes a trial by itself has its batches divided, between windows of a text never.
    for company in (MIXED, MIXED[:1], MIXED[2:3]):
        for name, (losses, values, tokens) in train(company, data, layout).items():
            np.testing.assert_allclose(losses, alone[name][0], rtol=1e-9)
            np.testing.assert_allclose(values, alone[name][1], rtol=1e-6, atol=1e-8)
            assert tokens == alone[name][2] == data.tokens.lengths[data.splits["train"]].sum()


def test_windows_with_the_same_tokens_have_masks_of_their_own() -> None:
    backbone, one = tiny_backbone(), spec("head")
    tensors = moved(backbone, one)
    single = random_tokens(1)
    twice = replace(
        single,
        input_ids=np.tile(single.input_ids, 2),
        offsets=np.array([0, len(single.input_ids), 2 * len(single.input_ids)]),
        text_offsets=np.array([0, 2]),
        pool="max",
    )
    with attached(backbone, {0: (one.method, tensors)}) as heads:
        pack = pack_texts(twice, [(0, np.array([0]))], "packed")
        dropped = {0: Stream(seed=0, step=0, micro_step=0)}
        once = pack_texts(single, [(0, np.array([0]))], "packed")
        first, both = (backbone.logits(one, heads, dropped)[0].detach() for one in (once, pack))
        assert (both >= first - 1e-12).all() and (both > first + 1e-6).any(), "the second window differs from the first"
        plain = [backbone.logits(one, heads, {})[0].detach() for one in (once, pack)]
        torch.testing.assert_close(*plain)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_largest_batch_is_counted_as_it_lies_in_memory(layout: str) -> None:
    data = windowed_data()
    backbone = tiny_backbone(layout=layout)
    order = np.random.default_rng(0).permutation(40)[:4]
    everything = FleetData(data.tokens, data.labels, {"train": order})
    pack = pack_texts(data.tokens, [(0, order)], backbone.layout)
    assert largest_batch(backbone, everything, 4) == pack.input_ids.numel()


@pytest.mark.parametrize("merge", [False, True])
def test_a_bundle_is_proven_window_by_window(tmp_path: Path, merge: bool) -> None:
    backbone, one = tiny_backbone(precision="fp32"), spec("lora")
    tensors = {name: tensor.detach() for name, tensor in moved(backbone, one, torch.float32).items()}
    labels = ["no", "maybe", "yes"]
    tokens = {pool: windowed(10, pool) for pool in ("mean", "max")}
    difference = save_bundle(tmp_path / "b", backbone, one.method, tensors, labels, probe=tokens["max"], merge=merge)
    assert difference is not None and difference < 2e-5
    bundle = load_bundle(tmp_path / "b")
    expected = {
        pool: trial_logits(bundle.open_backbone("fp32"), bundle.method, bundle.tensors, own)
        for pool, own in tokens.items()
    }
    assert verify_bundle(tmp_path / "b", backbone, tokens["mean"], expected["mean"]) < 2e-5
    with pytest.raises(ExportMismatchError):
        verify_bundle(tmp_path / "b", backbone, tokens["mean"], expected["max"])


def test_the_window_that_is_largest_gets_the_gradient_of_max() -> None:
    from fleetune.engine.windows import Windows

    logits = torch.tensor([[1.0, 5.0], [3.0, 4.0], [2.0, 0.0]], requires_grad=True)
    pooled = Windows(torch.tensor([2, 1]), "max").pooled(logits)
    assert pooled.tolist() == [[3.0, 5.0], [2.0, 0.0]]
    pooled.sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
