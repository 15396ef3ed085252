"""Each method's training follows a plain loop over the Hugging Face model (or PEFT's) on the same batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import pytest
import torch

from fleetune.engine.config import TrainingConfig
from fleetune.engine.events import Evaluated, Finished, Stepped
from fleetune.engine.fleet import Fleet, FleetData
from fleetune.engine.trial import TrialSpec
from fleetune.methods import all_methods, get
from fleetune.runtime import random_stream
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
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "alpha": 8},
    "ia3": {"target_modules": ("key", "value", "intermediate.dense"), "feedforward_modules": ("intermediate.dense",)},
}
PRECISIONS = {"fp32": (torch.float32, 1e-4), "float64": (torch.float64, 1e-8)}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", sorted(all_methods()))
def test_losses_follow_the_plain_loop(kind: str, precision: str) -> None:
    dtype, tolerance = PRECISIONS[precision]
    data = random_data()
    fleet = _fleet(kind, precision, data)
    model = _plain(kind, dtype, fleet)
    expected = _plain_loop(model, data, seed=7)
    got = [event.loss for event in fleet.train() if isinstance(event, Stepped)]
    assert len(got) == STEPS
    assert expected[0] != pytest.approx(expected[-1], rel=0.05), "nothing was learned, so nothing was compared"
    np.testing.assert_allclose(got, expected, rtol=tolerance)


def _fleet(kind: str, precision: str, data: FleetData) -> Fleet:
    spec = TrialSpec("trial", get(kind)(**SETTINGS.get(kind, {})), TrainingConfig.model_validate(TRAINING), 7)
    return Fleet(tiny_backbone("bert", precision=precision), [spec], data)


def _plain(kind: str, dtype: torch.dtype, fleet: Fleet) -> Any:
    """Returns the plain model set up for `kind`, with the trial's own starting values."""
    model = plain_model("bert", dtype=dtype)
    start = fleet.trials[0].parameters.state()
    if kind in ("lora", "ia3", "peft"):
        return _peft_model(kind, model, start)
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.startswith("classifier"):
            parameter.data.copy_(start[name])
        parameter.requires_grad_(name.startswith("classifier") or _is_trained(kind, name))
    return model


def _is_trained(kind: str, name: str) -> bool:
    return {"head": False, "full": True, "bitfit": name.endswith("bias"), "norm": "LayerNorm" in name}[kind]


def _peft_model(kind: str, model: Any, start: dict[str, torch.Tensor]) -> Any:
    if kind == "lora":
        config: Any = peft.LoraConfig(
            task_type="SEQ_CLS", r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["query", "value"]
        )
    elif kind == "peft":
        config = peft.LoHaConfig(task_type="SEQ_CLS", target_modules=["query", "value"])
    else:
        config = peft.IA3Config(
            task_type="SEQ_CLS",
            target_modules=["key", "value", "intermediate.dense"],
            feedforward_modules=["intermediate.dense"],
        )
    wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    copied = 0
    for name, parameter in wrapped.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        own = plain.replace(".ia3_l.default", "::ia3_l").replace(".hada_", "::hada_").removesuffix(".default")
        own = own.replace(".lora_A.default.weight", "::lora_A").replace(".lora_B.default.weight", "::lora_B")
        parameter.data = start[own].to(parameter.dtype).view(parameter.shape).clone()
        copied += 1
    assert copied == len(start)
    return wrapped


def _plain_loop(model: Any, data: FleetData, seed: int) -> list[float]:
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    plain = [parameter for name, parameter in trained if not _decays(name)]
    groups = [
        {"params": [parameter for name, parameter in trained if _decays(name)], "weight_decay": 0.1},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
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
        loss.backward()
        torch.nn.utils.clip_grad_norm_([parameter for _, parameter in trained], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


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
