"""Gradient checkpointing changes memory and time, and no number."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fleetune import memory
from fleetune.engine import micro_batches as batches_module
from fleetune.engine.architecture import ARCHITECTURES as KNOWN
from fleetune.engine.backbone import Backbone, load_backbone
from fleetune.engine.config import BackboneConfig, TrainingConfig
from fleetune.engine.events import Stepped
from fleetune.engine.fleet import Fleet, FleetData
from fleetune.engine.footprint import Candidate, activation_bytes, fleet_bytes
from fleetune.engine.lanes import Lanes
from fleetune.engine.layout import pack_texts
from fleetune.engine.shape import shape_from_config
from fleetune.engine.trial import Trial, TrialSpec
from fleetune.lab.plan import plan
from fleetune.lab.recipe import load_recipe
from fleetune.methods import get
from tests.tiny import ARCHITECTURES, mixed_specs, random_data, random_tokens, spec, tiny_backbone

DATA = random_data(train=20)


def losses_and_tensors(
    backbone: Backbone, specs: list[TrialSpec], **training: Any
) -> tuple[dict[str, list[float]], dict[str, dict[str, torch.Tensor]]]:
    changed = [TrialSpec(one.id, one.method, one.training.model_copy(update=training), one.seed) for one in specs]
    fleet = Fleet(backbone, changed, DATA)
    losses: dict[str, list[float]] = {one.id: [] for one in specs}
    for event in fleet.train():
        if isinstance(event, Stepped):
            losses[event.trial].append(event.loss)
    return losses, {trial.spec.id: trial.parameters.state() for trial in fleet.trials}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list that grows by a layer's name each time that it is computed."""
    from fleetune.engine import checkpointing

    passages: list[str] = []
    make = checkpointing._checkpointed

    def watched(forward: Any, state: Any) -> Any:
        def counting(*args: Any, **kwargs: Any) -> Any:
            passages.append(threading.current_thread().name)
            return forward(*args, **kwargs)

        return make(counting, state)

    monkeypatch.setattr(checkpointing, "_checkpointed", watched)
    return passages


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(name, marks=() if name in ("bert", "llama") or KNOWN[name].relative else pytest.mark.slow)
        for name in ARCHITECTURES
    ],
)
def test_same_losses_and_tensors(architecture, layout, counted):
    specs = mixed_specs(architecture, least=4)[:6]
    if layout == "packed" and KNOWN[architecture].relative is not None:
        pytest.skip("it takes padded texts alone")
    backbone = tiny_backbone(architecture, layout=layout)
    counted.clear()
    expected = losses_and_tensors(backbone, specs)
    once = len(counted)
    got = losses_and_tensors(backbone, specs, gradient_checkpointing=True)
    assert len(counted) > 2.4 * once, "no layer was computed again"
    assert got[0] == expected[0]
    for name, state in expected[1].items():
        assert all(torch.equal(got[1][name][key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_same_with_the_kernels_and_on_lanes(precision, monkeypatch):
    lanes = Lanes(2, 1)
    monkeypatch.setattr(batches_module, "lanes", lambda: lanes)
    specs = [spec("lora", seed, {"rank": 2, "dropout": 0.3}, batch_size=6) for seed in range(3)]
    backbone = tiny_backbone("bert", precision=precision)
    expected = losses_and_tensors(backbone, specs)
    got = losses_and_tensors(backbone, specs, gradient_checkpointing=True)
    assert got[0] == expected[0]


def test_trials_of_one_pack_and_a_backward_pass_in_another_thread():
    """What a GPU does: several trials share a pack, and autograd computes layers again in a thread of its own."""
    backbone = tiny_backbone("bert")
    data = random_data(train=16)
    results = {}
    for checkpointing in (False, True):
        specs = [spec("lora", seed, {"rank": 2, "dropout": 0.4}) for seed in range(2)]
        fleet = Fleet(backbone, specs, data)
        for trial in fleet.trials:
            fleet._batches.attach(trial)
        results[checkpointing] = _gradients(backbone, fleet.trials, data, checkpointing)
        for trial in fleet.trials:
            fleet._batches.detach(trial)
    for name, gradient in results[False].items():
        assert float(gradient.abs().sum()) > 0
        assert torch.equal(gradient, results[True][name]), name


def _gradients(
    backbone: Backbone, trials: list[Trial], data: FleetData, checkpointing: bool
) -> dict[str, torch.Tensor]:
    pack = pack_texts(data.tokens, [(trial.slot, np.arange(4)) for trial in trials], "packed")
    heads = {trial.slot: trial.parameters.head for trial in trials}
    streams = {trial.slot: trial.stream() for trial in trials}
    logits = backbone.logits(pack, heads, streams, checkpointing)
    loss = torch.stack([one.square().sum() for one in logits.values()]).sum()
    failed: list[BaseException] = []

    def backward() -> None:
        try:
            loss.backward()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    assert not failed, failed
    return {
        f"{trial.slot} {name}": gradient.clone()
        for trial in trials
        for name, gradient in trial.parameters.gradients().items()
    }


def test_an_evaluation_is_computed_once(counted):
    backbone = tiny_backbone("llama")
    pack = pack_texts(DATA.tokens, [(0, np.arange(4))], "packed")
    heads = {0: {name: torch.zeros(shape, dtype=torch.float64) for name, shape in backbone.shape.head.items()}}
    before = len(counted)
    with torch.inference_mode():
        backbone.logits(pack, heads, {}, checkpointing=True)
    assert len(counted) - before == 2


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_memory_falls(architecture, tmp_path):
    folder = tmp_path / "model"
    config = transformers.AutoConfig.for_model(
        architecture, vocab_size=100, hidden_size=128, num_hidden_layers=12, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=512, max_position_embeddings=512, pad_token_id=0,
    )  # fmt: skip
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    backbone = load_backbone(BackboneConfig(model=str(folder)), 2, "fp32")
    tokens = random_tokens(16, longest=160, first_id=3)
    data = FleetData(tokens, np.arange(16) % 2, {"train": np.arange(16)})
    method = get("lora")(target_modules=("all-linear",))
    peaks = {}
    for checkpointing in (False, True):
        training = TrainingConfig(batch_size=16, max_steps=2, gradient_checkpointing=checkpointing)
        fleet = Fleet(backbone, [TrialSpec("one", method, training, 0)], data)
        if not memory.begin_peak():
            pytest.skip("the peak of memory cannot be set here")
        before = memory.used_bytes()
        list(fleet.train())
        peaks[checkpointing] = memory.peak_bytes() - before
    assert peaks[True] < 0.5 * peaks[False], peaks


def test_the_forecast_knows(tmp_path):
    transformers.BertConfig().save_pretrained(tmp_path)
    shape = shape_from_config(tmp_path, 2)
    assert activation_bytes(shape, "bf16", True) < 0.25 * activation_bytes(shape, "bf16")
    few, many = (
        fleet_bytes(shape, [Candidate(get("lora")(), TrainingConfig(gradient_checkpointing=on), 512)])
        for on in (True, False)
    )
    assert few < many


def test_trials_with_and_without_are_apart(write_recipe):
    path = write_recipe(training={"gradient_checkpointing": [False, True], "seeds": 2})
    fleets = plan(load_recipe(path), lambda trials: True).fleets
    flags = [{trial.training.gradient_checkpointing for trial in fleet.trials} for fleet in fleets]
    assert flags == [{False}, {True}]
