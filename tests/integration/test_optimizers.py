"""Each optimizer makes the steps of the library it comes from, and takes them up again where it was stopped."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fleetune.engine import optimizers
from fleetune.engine.backbone import Backbone, load_backbone
from fleetune.engine.config import BackboneConfig, TrainingConfig
from fleetune.engine.events import Stepped
from fleetune.engine.fleet import Fleet
from fleetune.engine.footprint import trained_bytes
from fleetune.engine.generation import FolderCheckpoints
from fleetune.engine.trial import TrialSpec
from fleetune.errors import MissingExtraError, RecipeError
from fleetune.lab.check import check
from fleetune.lab.executors.local import facts_of
from fleetune.lab.inputs import gather_inputs
from fleetune.lab.notices import Said
from fleetune.lab.recipe import load_recipe
from fleetune.lab.runner import run
from fleetune.methods import get
from fleetune.runtime import random_stream
from tests.tiny import padded_inputs, random_data, scratch, spec, tiny_backbone, train_until

has_bitsandbytes = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not has_bitsandbytes, reason="bitsandbytes is not installed")
KINDS = [
    "adamw",
    "paged_adamw_32bit",
    pytest.param("adamw_8bit", marks=needs_bitsandbytes),
    "adafactor",
    "sgd",
]
STEPS, BATCH, DECAY, RATE = 12, 8, 0.1, 3e-3
DATA = random_data(train=40)


@cache
def folder() -> Path:
    """Returns a model with weights large enough for 8-bit states, and some that are not."""
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    path = scratch() / "optimizers"
    transformers.AutoModel.from_config(config).save_pretrained(path)
    return path


def backbone() -> Backbone:
    return load_backbone(BackboneConfig(model=str(folder())), 3, "float64")


def full(optimizer: str, **training: Any) -> TrialSpec:
    fields = {
        "optimizer": optimizer, "batch_size": BATCH, "max_steps": STEPS, "learning_rate": RATE, "weight_decay": DECAY,
        "warmup_steps": 3, "momentum": 0.9 if optimizer == "sgd" else 0.0, "head_dropout": 0.0, **training,
    }  # fmt: skip
    return spec("full", 0, None, **fields)


def by_bitsandbytes(name: str) -> Callable[..., torch.optim.Optimizer]:
    from fleetune.engine.quantize import import_bitsandbytes

    import_bitsandbytes()
    import bitsandbytes.optim

    made: Callable[..., torch.optim.Optimizer] = getattr(bitsandbytes.optim, name)
    return made


def reference(kind: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    match kind:
        case "adamw" | "paged_adamw_32bit":
            return torch.optim.AdamW(groups, lr=RATE)
        case "adamw_8bit":
            return by_bitsandbytes("AdamW8bit")(groups, lr=RATE)
        case "adafactor":
            # As `Trainer(optim="adafactor")` makes it.
            return transformers.optimization.Adafactor(groups, lr=RATE, scale_parameter=False, relative_step=False)
        case _:
            return torch.optim.SGD(groups, lr=RATE, momentum=0.9)


def plain_loop(kind: str, start: dict[str, torch.Tensor]) -> list[float]:
    """Returns the losses of the loop that anybody would write with that optimizer."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder(), num_labels=3, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    for name, parameter in model.named_parameters():
        if name.startswith("classifier"):
            parameter.data.copy_(start[name])
    named = list(model.named_parameters())
    still = [(name, one) for name, one in named if name.endswith("bias") or "LayerNorm" in name]
    decayed = [one for name, one in named if name not in dict(still)]
    groups = [
        {"params": decayed, "weight_decay": DECAY},
        {"params": [one for _, one in still], "weight_decay": 0.0},
    ]
    optimizer = reference(kind, groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step / 3 if step < 3 else max(0.0, (STEPS - step) / (STEPS - 3))
    )
    train, losses = DATA.splits["train"], []
    for step in range(STEPS):
        epoch, position = divmod(step, 5)
        order = random_stream("order", 0, epoch).permutation(len(train))
        texts = train[order[position * BATCH : (position + 1) * BATCH]]
        logits = model(**padded_inputs(DATA.tokens, texts, 0)).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(DATA.labels[texts]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([one for _, one in named], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def losses_of(fleet: Fleet) -> dict[str, list[float]]:
    losses: dict[str, list[float]] = {trial.spec.id: [] for trial in fleet.trials}
    for event in fleet.train():
        if isinstance(event, Stepped):
            losses[event.trial].append(event.loss)
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_a_plain_loop(kind):
    fleet = Fleet(backbone(), [full(kind)], DATA)
    start = fleet.trials[0].parameters.state()
    (losses,) = losses_of(fleet).values()
    expected = plain_loop(kind, start)
    # bitsandbytes computes in fp32, wherever the values come from.
    assert losses == pytest.approx(expected, rel=1e-4 if kind == "adamw_8bit" else 1e-7)
    assert abs(losses[-1] - losses[0]) > 1e-3


def test_no_two_optimizers_are_the_same():
    kinds = ["adamw", "adafactor", "sgd", *(["adamw_8bit"] if has_bitsandbytes else [])]
    ends = [next(iter(losses_of(Fleet(backbone(), [full(kind)], DATA)).values()))[-1] for kind in kinds]
    assert len({f"{end:.7f}" for end in ends}) == len(ends)


@pytest.mark.parametrize("paging", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_trial_goes_on_as_if_never_stopped(kind, paging, tmp_path, monkeypatch):
    if paging and (kind != "paged_adamw_32bit" or not has_bitsandbytes):
        pytest.skip("nothing to page")
    if paging:
        monkeypatch.setattr(optimizers, "_can_page", lambda: True)
    with pytest.warns(UserWarning, match="not supported on CPU") if paging else nullcontext():
        whole = Fleet(backbone(), [full(kind, gradient_accumulation_steps=2)], DATA)
        list(whole.train())
    made: list[Fleet] = []

    def make(**more: Any) -> Fleet:
        specs = [full(kind, gradient_accumulation_steps=2)]
        made.append(Fleet(backbone(), specs, DATA, FolderCheckpoints(tmp_path), **more))
        return made[-1]

    for stop in (5, STEPS):
        train_until(make, lambda event: isinstance(event, Stepped) and event.step == stop)  # noqa: B023
    fleet = made[-1]
    expected = whole.trials[0].parameters.state()
    got = fleet.trials[0].parameters.state()
    assert fleet.trials[0].progress.step == STEPS
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


@needs_bitsandbytes
def test_what_a_gpu_pages_steps_as_adamw_does(monkeypatch):
    expected = losses_of(Fleet(backbone(), [full("adamw")], DATA))
    monkeypatch.setattr(optimizers, "_can_page", lambda: True)
    fleet = Fleet(backbone(), [full("paged_adamw_32bit")], DATA)
    assert type(fleet.trials[0].optimizer.optimizer).__name__ == "PagedAdamW32bit"
    with pytest.warns(UserWarning, match="not supported on CPU"):
        got = losses_of(fleet)
    assert got["full-0"] == pytest.approx(expected["full-0"], rel=1e-4)


@needs_bitsandbytes
def test_states_have_eight_bits_where_tensors_are_large():
    fleet = Fleet(backbone(), [full("adamw_8bit", max_steps=1)], DATA)
    list(fleet.train())
    optimizer = fleet.trials[0].optimizer.optimizer
    kinds = {
        name: optimizer.state[tensor]["state1"].dtype for name, tensor in fleet.trials[0].parameters.tensors.items()
    }
    large = {name for name, tensor in fleet.trials[0].parameters.tensors.items() if tensor.numel() >= 4096}
    assert {name for name, kind in kinds.items() if kind == torch.uint8} == large != set()
    assert all(kinds[name] == torch.float32 for name in kinds.keys() - large)


def test_rates_of_groups_and_neighbours():
    """Each trial has its own optimizer, and each group of tensors its own learning rate."""
    settings = {"rank": 2, "loraplus_lr_ratio": 8.0}
    kinds = ["adamw", "sgd", "adafactor", *(["adamw_8bit"] if has_bitsandbytes else [])]
    specs = [spec("lora", seed, settings, optimizer=kind) for seed, kind in enumerate(kinds)]
    together = losses_of(Fleet(tiny_backbone("bert"), specs, DATA))
    for one in specs:
        assert losses_of(Fleet(tiny_backbone("bert"), [one], DATA))[one.id] == together[one.id]
    plain = {"warmup_steps": 0, "schedule": "constant", "weight_decay": 0.0, "max_grad_norm": 0.0, "max_steps": 1}
    moved = {}
    for ratio in (1.0, 8.0):
        one = spec("lora", 0, {"rank": 2, "loraplus_lr_ratio": ratio}, optimizer="sgd", **plain)
        fleet = Fleet(tiny_backbone("bert"), [one], DATA)
        before = fleet.trials[0].parameters.state()
        list(fleet.train())
        after = fleet.trials[0].parameters.state()
        moved[ratio] = {name: after[name] - before[name] for name in after}
    for name, change in moved[1.0].items():
        factor = 8.0 if name.endswith("lora_B") else 1.0
        assert torch.allclose(moved[8.0][name], factor * change, rtol=1e-9)


def test_a_paged_optimizer_without_a_gpu_says_so(write_recipe, tmp_path, monkeypatch):
    path = write_recipe(training={"optimizer": "paged_adamw_32bit", "epochs": 1, "seeds": 1, "metric": "accuracy"})
    monkeypatch.setattr(importlib.util, "find_spec", _without_bitsandbytes(importlib.util.find_spec))
    assert any("runs unpaged" in line for line in check(load_recipe(path)).warnings)
    said: list[str] = []
    run(
        load_recipe(path),
        tmp_path / "run",
        lambda notice: said.append(str(notice)) if isinstance(notice, Said) else None,
    )
    assert sum("runs unpaged" in line for line in said) == 1
    facts = facts_of(tiny_backbone("bert"), [spec("lora", optimizer="paged_adamw_32bit")])
    assert any("runs unpaged" in note for note in facts.notes)
    assert not any("unpaged" in note for note in facts_of(tiny_backbone("bert"), [spec("lora")]).notes)


def _without_bitsandbytes(find: Callable[..., Any]) -> Callable[..., Any]:
    return lambda name, *more: None if name == "bitsandbytes" else find(name, *more)


def test_a_missing_package_is_named(write_recipe, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", _without_bitsandbytes(importlib.util.find_spec))
    with pytest.raises(MissingExtraError, match=r"pip install 'fleetune\[qlora\]'"):
        gather_inputs(load_recipe(write_recipe(training={"optimizer": ["adamw", "adamw_8bit"]})))
    with pytest.raises(MissingExtraError, match='optimizer = "adamw_8bit" needs'):
        Fleet(tiny_backbone("bert"), [spec("lora", optimizer="adamw_8bit")], DATA)
    gather_inputs(load_recipe(write_recipe(training={"optimizer": ["adamw", "adafactor", "sgd"]})))


def test_settings_of_other_optimizers_are_mistakes(write_recipe):
    with pytest.raises(RecipeError, match='momentum is a setting of optimizer = "sgd"'):
        load_recipe(write_recipe(training={"momentum": 0.9}))
    with pytest.raises(RecipeError, match="did you mean 'adafactor'"):
        load_recipe(write_recipe(training={"optimizer": "adafacter"}))
    load_recipe(write_recipe(training={"momentum": 0.9, "optimizer": "sgd"}))


def test_forecasts_know_what_states_take():
    shape = tiny_backbone("bert").shape
    kinds = ["adamw", "sgd", "adamw_8bit", "adafactor"]
    needed = [trained_bytes(shape, get("full")(), TrainingConfig.model_validate({"optimizer": kind})) for kind in kinds]
    assert needed == sorted(needed, reverse=True) and len(set(needed)) == 4
