"""Each method's training follows a plain loop over the Hugging Face model (or PEFT's) on the same batches."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import peft
import pytest
import torch

from fleetune.engine.config import TrainingConfig
from fleetune.engine.events import Evaluated, Finished, Stepped
from fleetune.engine.fleet import Fleet, FleetData
from fleetune.engine.trial import TrialSpec
from fleetune.methods import get
from fleetune.runtime import random_stream
from tests.references import NOT_MERGEABLE, Reference
from tests.tiny import padded_inputs, plain_model, random_data, tiny_backbone

STEPS = 50
TRAINING: dict[str, Any] = {
    "batch_size": 8,
    "max_steps": STEPS,
    "learning_rate": 3e-3,
    "weight_decay": 0.1,
    "warmup_steps": 5,
    "head_dropout": 0.0,
    "backbone_dropout": False,
    "metric": "accuracy",
}
PRECISIONS = {"fp32": (torch.float32, 1e-4), "float64": (torch.float64, 1e-8)}
BITS: dict[str, Any] = {"rank": 4, "alpha": 8.0}
PEFT_BITS: dict[str, Any] = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["query", "value"]}


@dataclass(frozen=True)
class Case:
    """A method with its settings, and PEFT's configuration of the same where PEFT has it."""

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    config: Any = None
    loraplus_lr_ratio: float = 1.0


CASES = {
    **{kind: Case(kind) for kind in sorted(NOT_MERGEABLE)},
    "head": Case("head"),
    "full": Case("full"),
    "bitfit": Case("bitfit"),
    "norm": Case("norm"),
    "ia3": Case(
        "ia3",
        {"target_modules": ("key", "value", "intermediate.dense"), "feedforward_modules": ("intermediate.dense",)},
        lambda: peft.IA3Config(
            target_modules=["key", "value", "intermediate.dense"], feedforward_modules=["intermediate.dense"]
        ),
    ),
    "lora": Case("lora", BITS, lambda: peft.LoraConfig(**PEFT_BITS)),
    "rslora": Case("lora", {**BITS, "rslora": True}, lambda: peft.LoraConfig(**PEFT_BITS, use_rslora=True)),
    "dora": Case("lora", {**BITS, "dora": True}, lambda: peft.LoraConfig(**PEFT_BITS, use_dora=True)),
    "loraplus": Case("lora", {**BITS, "loraplus_lr_ratio": 16.0}, lambda: peft.LoraConfig(**PEFT_BITS), 16.0),
    "biases": Case("lora", {**BITS, "bias": "lora_only"}, lambda: peft.LoraConfig(**PEFT_BITS, bias="lora_only")),
    "all biases": Case("lora", {**BITS, "bias": "all"}, lambda: peft.LoraConfig(**PEFT_BITS, bias="all")),
    "pissa": Case("lora", {**BITS, "start": "pissa"}, lambda: peft.LoraConfig(**PEFT_BITS)),
    "olora and dora": Case(
        "lora", {**BITS, "start": "olora", "dora": True}, lambda: peft.LoraConfig(**PEFT_BITS, use_dora=True)
    ),
    "orthogonal": Case("lora", {**BITS, "start": "orthogonal"}, lambda: peft.LoraConfig(**PEFT_BITS)),
    "loha": Case("peft", {}, lambda: peft.LoHaConfig(target_modules=["query", "value"])),
    "vera": Case("vera", {"rank": 16}, lambda: peft.VeraConfig(r=16, target_modules=["query", "value"])),
    "adalora": Case(
        "adalora",
        {"rank": 4, "target_rank": 2, "alpha": 8.0, "initial_share": 0.1, "final_share": 0.3, "allocate_every": 4},
        lambda: peft.AdaLoraConfig(
            init_r=4, target_r=2, lora_alpha=8, lora_dropout=0.0, target_modules=["query", "value"], tinit=5, tfinal=15,
            deltaT=4, total_step=STEPS,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=() if precision == "float64" or name == "lora" else pytest.mark.slow)
        for name in CASES
        for precision in PRECISIONS
    ],
)
def test_losses_follow_the_plain_loop(name: str, precision: str) -> None:
    dtype, tolerance = PRECISIONS[precision]
    data, case = random_data(), CASES[name]
    fleet = _fleet(case, precision, data)
    model = _plain(case, dtype, fleet)
    expected = _plain_loop(model, case, data, seed=7)
    got = [event.loss for event in fleet.train() if isinstance(event, Stepped)]
    assert len(got) == STEPS
    assert expected[0] != pytest.approx(expected[-1], rel=0.05), "nothing was learned, so nothing was compared"
    # PEFT divides AdaLoRA's scale by the rank + 1e-5.
    np.testing.assert_allclose(got, expected, rtol=1e-4 if name == "adalora" else tolerance)


def _fleet(case: Case, precision: str, data: FleetData) -> Fleet:
    spec = TrialSpec("trial", get(case.kind)(**case.settings), TrainingConfig.model_validate(TRAINING), 7)
    return Fleet(tiny_backbone("bert", precision=precision), [spec], data)


def _plain(case: Case, dtype: torch.dtype, fleet: Fleet) -> Any:
    """Returns the plain model set up for the case, with the trial's own starting values."""
    model = plain_model("bert", dtype=dtype)
    start = fleet.trials[0].parameters.state()
    if case.config is not None:
        return _peft_model(case, model, start)
    if case.kind in NOT_MERGEABLE:
        return Trainable(Reference(model, get(case.kind)(**case.settings), fleet.backbone.shape, start))
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.startswith("classifier"):
            parameter.data.copy_(start[name])
        parameter.requires_grad_(name.startswith("classifier") or _is_trained(case.kind, name))
    return model


class Trainable(torch.nn.Module):
    """A reference whose tensors are parameters, as an optimizer wants them."""

    def __init__(self, reference: Reference) -> None:
        super().__init__()
        for name, tensor in reference.tensors.items():
            parameter = torch.nn.Parameter(tensor.detach().clone())
            self.register_parameter(name.replace(".", "/"), parameter)
            reference.tensors[name] = parameter
        self.reference = reference

    def forward(self, **inputs: torch.Tensor) -> Any:
        return self.reference(**inputs)


def _is_trained(kind: str, name: str) -> bool:
    return {"head": False, "full": True, "bitfit": name.endswith("bias"), "norm": "LayerNorm" in name}[kind]


def _peft_model(case: Case, model: Any, start: dict[str, torch.Tensor]) -> Any:
    config = case.config()
    config.task_type = "SEQ_CLS"
    wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    # As a shell, one that trained all biases would have trained the head's frozen twin as well.
    left = {name for name in start if not re.search("::(started|sensitivity|uncertainty|kept|vera_[AB])", name)}
    for name, parameter in wrapped.named_parameters():
        if ".original_module." in name or ".ranknum." in name:
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        own = _own_name(name)
        parameter.data = start[own].to(parameter.dtype).view(parameter.shape).clone()
        left.remove(own)
    assert not left
    for letter in ("A", "B") if case.kind == "vera" else ():
        wrapped.base_model.get_submodule(f"vera_{letter}")["default"].data = start[f"::vera_{letter}"].clone()
    for name in start:
        if name.endswith("::started_A"):
            site = name.removesuffix("::started_A")
            product = start[f"{site}::started_B"] @ start[name] * (8.0 / 4)
            wrapped.base_model.model.get_submodule(site).base_layer.weight.data -= product
    return wrapped


def _own_name(peft_name: str) -> str:
    name = peft_name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
    name = re.sub(r"\.((?:lora|vera|hada)_\w+|ia3_l)\.default(?:\.weight)?$", r"::\1", name)
    own_bias = name.endswith(".bias") and not name.startswith("classifier")
    return re.sub(r"(\.base_layer)?\.bias$", "::bias", name) if own_bias else name


def _plain_loop(model: Any, case: Case, data: FleetData, seed: int) -> list[float]:
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter],
            "weight_decay": 0.1 if _decays(name) else 0.0,
            "lr": 3e-3 * (case.loraplus_lr_ratio if ".lora_B." in name else 1.0),
        }
        for name, parameter in trained
    ]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step / 5 if step < 5 else max(0.0, (STEPS - step) / (STEPS - 5))
    )
    model.eval()  # no dropout
    train, losses = data.splits["train"], []
    for step in range(STEPS):
        epoch, position = divmod(step, 5)
        order = random_stream("order", seed, epoch).permutation(len(train))
        texts = train[order[position * 8 : position * 8 + 8]]
        logits = model(**padded_inputs(data.tokens, texts, 0)).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.labels[texts]))
        (loss + _orthogonality(trained) if case.kind == "adalora" else loss).backward()
        torch.nn.utils.clip_grad_norm_([parameter for _, parameter in trained], 1.0)
        optimizer.step()
        schedule.step()
        if case.kind == "adalora":
            model.base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _orthogonality(trained: list[tuple[str, Any]]) -> torch.Tensor:
    """Returns the term that PEFT's AdaLoRA adds to a loss that the model itself computes."""
    norms = []
    for name, parameter in trained:
        if "lora_A" in name or "lora_B" in name:
            gram = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            norms.append((gram - torch.eye(len(gram), dtype=gram.dtype)).norm(p="fro"))
    return 0.5 * sum(norms) / len(norms)


def _decays(name: str) -> bool:
    return not (name.endswith("bias") or "LayerNorm" in name)


def test_accumulated_steps_are_those_of_the_large_batch() -> None:
    data = random_data(train=37)
    losses = {}
    for size, accumulation in ((8, 1), (2, 4), (3, 3)):
        fields = {**TRAINING, "batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 12}
        spec = TrialSpec("trial", get("lora")(), TrainingConfig.model_validate(fields), 7)
        events = list(Fleet(tiny_backbone(), [spec], data).train())
        losses[size] = [event.loss for event in events if isinstance(event, Stepped)]
    np.testing.assert_allclose(losses[2], losses[8], rtol=1e-10)
    assert losses[3] != pytest.approx(losses[8], rel=1e-6), "nine texts a step are another training"


def test_the_best_checkpoint_is_what_predicts() -> None:
    data = random_data()
    fields = {**TRAINING, "learning_rate": 0.05, "evaluate_every": 5, "metric": "log_loss"}
    spec = TrialSpec("trial", get("lora")(), TrainingConfig.model_validate(fields), 7)
    events = list(Fleet(tiny_backbone(), [spec], data).train())
    evaluations = [event for event in events if isinstance(event, Evaluated)]
    finished = next(event for event in events if isinstance(event, Finished))
    values = [event.metrics["log_loss"] for event in evaluations]
    assert [event.step for event in evaluations] == list(range(5, 51, 5))
    assert finished.best_step == evaluations[int(np.argmin(values))].step != 50
    from fleetune.metrics import evaluate

    labels = data.labels[data.splits["validation"]]
    assert evaluate(labels, finished.predictions["validation"])["log_loss"] == pytest.approx(min(values), rel=1e-5)


def test_early_stopping_counts_evaluations_without_gain() -> None:
    data = random_data()
    fields = {
        **TRAINING,
        "learning_rate": 0.05,
        "evaluate_every": 5,
        "metric": "log_loss",
        "early_stopping_patience": 2,
    }
    spec = TrialSpec("trial", get("lora")(), TrainingConfig.model_validate(fields), 7)
    events = list(Fleet(tiny_backbone(), [spec], data).train())
    evaluations = [event for event in events if isinstance(event, Evaluated)]
    finished = next(event for event in events if isinstance(event, Finished))
    assert finished.stopped_early
    assert [event.best for event in evaluations][-2:] == [False, False]
    assert finished.steps == evaluations[-1].step < STEPS
