"""Logits and gradients are those of the padded layout, of Hugging Face and of finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fleetune.engine.backbone import Backbone
from fleetune.engine.dropout import Stream
from fleetune.engine.events import Stepped
from fleetune.engine.fleet import Fleet
from fleetune.engine.layout import pack_texts
from fleetune.engine.trial import TrialSpec
from fleetune.runtime import random_stream
from tests.references import Reference
from tests.tiny import (
    REPRESENTATIVE,
    attached,
    fitting_methods,
    mixed_specs,
    padded_inputs,
    plain_model,
    random_data,
    relative_difference,
    spec,
    tiny_backbone,
)

EXACT = {"float64": 1e-10, "fp32": 1e-5}
"""Relative to the largest value."""
IN_FLOAT64_THROUGHOUT = ("bert", "distilbert", "roberta")
"""The others' Hugging Face code computes rotary positions, norms or softmax in fp32 whatever the model's type, so
against it 2e-6 can be had, and for gradients, which pass that rounding again on their way back, 5e-6."""
DATA = random_data()
TEXTS = np.array([3, 1, 4, 0, 5, 9])
NO_DROPOUT = Stream(seed=0, step=0, micro_step=0, backbone=False, head_rate=0.0)
"""Training all the same: evaluation may take other ways through the engine."""

Tensors = dict[str, torch.Tensor]
Results = tuple[NDArray[np.float64], Tensors]


def moved(backbone: Backbone, one: TrialSpec) -> Tensors:
    """Returns the trial's tensors, those it trains a little away from their start, where LoRA's A has no gradient."""
    start = Fleet(backbone, [one], DATA).trials[0].parameters.tensors
    generator = torch.Generator().manual_seed(5)
    return {name: _moved(tensor, generator) if tensor.requires_grad else tensor for name, tensor in start.items()}


def _moved(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(tensor.shape, generator=generator).to(tensor)
    return (tensor.detach() + 0.1 * noise).requires_grad_()


def results(logits: torch.Tensor, tensors: Tensors, texts: Any = TEXTS) -> Results:
    """Returns the logits, and the gradient of their mean cross entropy by each tensor."""
    trained = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    gradients = torch.autograd.grad(loss_of(logits, texts), list(trained.values()))
    return logits.detach().double().numpy(), dict(zip(trained, gradients, strict=True))


def loss_of(logits: torch.Tensor, texts: Any = TEXTS) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(DATA.labels[texts]))


def fleet_results(
    backbone: Backbone, one: TrialSpec, tensors: Tensors, stream: Stream = NO_DROPOUT, texts: Any = TEXTS
) -> Results:
    pack = pack_texts(DATA.tokens, [(0, texts)], backbone.layout)
    with attached(backbone, {0: (one.method, tensors)}) as heads:
        return results(backbone.logits(pack, heads, {0: stream})[0], tensors, texts)


def plain_results(model: Any, backbone: Backbone, one: TrialSpec, tensors: Tensors) -> Results:
    """Returns what the Hugging Face model gives with the trial's deltas."""
    reference = Reference(model, one.method, backbone.shape, tensors)
    # In float64 eager softmax turns padding outside a sliding window into NaN.
    batches = TEXTS[:, None] if model.config.model_type in ("modernbert", "phi3") else TEXTS[None]
    inputs = [padded_inputs(DATA.tokens, batch, model.config.pad_token_id) for batch in batches]
    return results(torch.cat([reference(**batch).logits for batch in inputs]), tensors)


def gradient_differences(got: Tensors, expected: Tensors) -> dict[str, float]:
    """Returns each tensor's largest difference, relative to the trial's largest gradient.

    In float64 it is relative to the tensor's own largest, or to a tenth of the trial's: a bias of all keys has no
    effect where positions are not rotary, and a gradient that is nothing but rounding.
    """
    largest = {name: float(gradient.abs().max()) for name, gradient in expected.items()}
    in_float64 = all(gradient.dtype == torch.float64 for gradient in got.values())
    least = max(largest.values()) * (0.1 if in_float64 else 1.0)
    return {name: float((got[name] - expected[name]).abs().max()) / max(largest[name], least) for name in expected}


@pytest.mark.parametrize("precision", EXACT)
@pytest.mark.parametrize("architecture", REPRESENTATIVE)
def test_packed_equals_padded_equals_hugging_face(architecture: str, precision: str) -> None:
    packed, padded = (tiny_backbone(architecture, precision=precision, layout=one) for one in ("packed", "padded"))
    model = plain_model(architecture, dtype=packed.master_dtype).eval()
    exact = EXACT[precision]
    rounded = precision == "float64" and architecture not in IN_FLOAT64_THROUGHOUT
    for kind in fitting_methods(packed):
        one = spec(kind)
        tensors = moved(packed, one)
        logits, gradients = fleet_results(packed, one, tensors)
        padded_logits, padded_gradients = fleet_results(padded, one, tensors)
        plain_logits, plain_gradients = plain_results(model, packed, one, tensors)
        assert relative_difference(logits, padded_logits) <= exact, kind
        assert relative_difference(logits, plain_logits) <= (2e-6 if rounded else exact), kind
        for name, difference in gradient_differences(gradients, padded_gradients).items():
            # Gemma's norms take their gain in fp32, so its gradient is rounded.
            in_fp32 = rounded and architecture == "gemma" and "norm::" in name
            assert difference <= (5e-7 if in_fp32 else exact), (kind, name)
        for name, difference in gradient_differences(gradients, plain_gradients).items():
            assert difference <= (5e-6 if rounded else exact), (kind, name)


@pytest.mark.parametrize("precision", EXACT)
@pytest.mark.parametrize("architecture", REPRESENTATIVE)
def test_a_text_is_blind_to_its_batch_mates(architecture: str, precision: str) -> None:
    backbone = tiny_backbone(architecture, precision=precision, layout="packed")
    trials = {slot: (one.method, moved(backbone, one)) for slot, one in enumerate(mixed_specs(architecture))}
    with attached(backbone, trials) as heads, torch.no_grad():
        batches = {slot: np.roll(TEXTS, slot) for slot in trials}
        together = backbone.logits(pack_texts(DATA.tokens, list(batches.items()), "packed"), heads, {})
        for slot, texts in batches.items():
            single = [pack_texts(DATA.tokens, [(slot, texts[row : row + 1])], "packed") for row in range(len(texts))]
            apart = torch.cat([backbone.logits(pack, heads, {})[slot] for pack in single])
            assert relative_difference(together[slot].numpy(), apart.numpy()) <= EXACT[precision]


@pytest.fixture
def llama_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face computes Llama's norm in fp32, where a finite difference sees nothing but rounding."""

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (x * scale)

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaRMSNorm.forward", norm)


@pytest.mark.usefixtures("llama_in_float64")
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_gradients_are_those_of_finite_differences(architecture: str) -> None:
    backbone, stream, step = tiny_backbone(architecture), Stream(seed=3, step=1, micro_step=4), 1e-5
    pack = pack_texts(DATA.tokens, [(0, TEXTS)], backbone.layout)
    settings = {"lora": {"dropout": 0.3, "target_modules": ("all-linear",)}}
    for kind in fitting_methods(backbone):
        one = spec(kind, settings=settings.get(kind))
        tensors = moved(backbone, one)
        _, gradients = fleet_results(backbone, one, tensors, stream)
        least = max(float(gradient.abs().max()) for gradient in gradients.values()) / 1000
        with attached(backbone, {0: (one.method, tensors)}) as heads, torch.no_grad():
            for name in gradients:
                tensor = tensors[name]
                start = tensor.clone()
                for direction in directions(tensor.shape):
                    losses = []
                    for way in (step, -step):
                        tensor.copy_(start + way * direction)
                        losses.append(float(loss_of(backbone.logits(pack, heads, {0: stream})[0])))
                    tensor.copy_(start)
                    expected = (losses[0] - losses[1]) / (2 * step)
                    got = float((gradients[name] * direction).sum())
                    assert abs(got - expected) <= 1e-6 * max(abs(expected), least), (kind, name)


def directions(shape: torch.Size) -> list[torch.Tensor]:
    """Returns two random directions of length 1 and one coordinate."""
    generator = torch.Generator().manual_seed(8)
    anywhere = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    coordinate = torch.zeros(shape, dtype=torch.float64)
    coordinate.view(-1)[int(torch.randint(coordinate.numel(), (), generator=generator))] = 1.0
    return [*(direction / direction.norm() for direction in anywhere), coordinate]


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_fleet_steps_along_these_gradients(architecture: str) -> None:
    fields: dict[str, Any] = {"batch_size": 6, "gradient_accumulation_steps": 1, "class_weights": "none"}
    specs = [spec(kind, seed, **fields) for seed, kind in enumerate(fitting_methods(tiny_backbone(architecture)))]
    specs = [one for one in specs if not one.method.has_penalty]
    alone = [[one] for one in specs if not one.method.shares_backbone]
    for group in ([one for one in specs if one.method.shares_backbone], *alone):
        fleet = Fleet(tiny_backbone(architecture), group, DATA)
        starts = [_copies(trial.parameters.tensors) for trial in fleet.trials]
        events = fleet.train()
        first = {event.trial: event for event in (next(events) for _ in group) if isinstance(event, Stepped)}
        events.close()  # type: ignore[attr-defined]
        for one, start in zip(group, starts, strict=True):
            texts = DATA.splits["train"][random_stream("order", one.seed, 0).permutation(40)[:6]]
            stream = Stream(one.seed, step=0, micro_step=0)
            logits, gradients = fleet_results(tiny_backbone(architecture), one, start, stream, texts)
            norm = float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())
            assert first[one.id].loss == pytest.approx(float(loss_of(torch.from_numpy(logits), texts)), rel=1e-10)
            assert first[one.id].gradient_norm == pytest.approx(norm, rel=1e-10)


def _copies(tensors: Tensors) -> Tensors:
    return {name: one.detach().clone().requires_grad_(one.requires_grad) for name, one in tensors.items()}
