"""One trial as `peft` and `transformers.Trainer` train it: contenders A, B and D."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import peft
import torch
import transformers

from benchmarks.inputs import Inputs
from fleetune.data.dataset import SplitName
from fleetune.engine.backbone import load_tokenizer
from fleetune.engine.source import find_folder
from fleetune.engine.trial import TrialSpec
from fleetune.metrics import evaluate
from fleetune.runtime import device

EVALUATION_BATCH_SIZE = 64


@dataclass(frozen=True)
class Habits:
    """How a practitioner runs Trainer: in which precision, and whether each epoch's checkpoint is written."""

    bf16: bool
    saves: bool


@dataclass(frozen=True)
class Trained:
    """What one trial took, to its first optimizer step and in all, and its log loss on validation."""

    seconds: float
    first_step_seconds: float
    loss: float


class TrainerSide:
    """What is loaded before the clock starts: the model in fp32, the rows, the tokenizer.

    Args:
        inputs: Texts and model.
        habits: How Trainer is run.
    """

    def __init__(self, inputs: Inputs, habits: Habits) -> None:
        _quiet()
        self.inputs = inputs
        self.habits = habits
        self.tokenizer = load_tokenizer(inputs.backbone)
        self.rows: dict[SplitName, list[dict[str, Any]]] = {
            "train": _rows(inputs, "train"),
            "validation": _rows(inputs, "validation"),
        }
        self.model = _load(inputs, self.tokenizer.pad_token_id)

    def train(self, spec: TrialSpec) -> Trained:
        """Returns what the trial took; the model stays as it was loaded."""
        transformers.set_seed(spec.seed)
        model = trial_model(self.model, spec, self.inputs)
        clock = _FirstStep()
        with tempfile.TemporaryDirectory() as folder:
            trainer = transformers.Trainer(
                model,
                self._arguments(spec, folder),
                train_dataset=self.rows["train"],
                eval_dataset=self.rows["validation"],
                data_collator=transformers.DataCollatorWithPadding(self.tokenizer),
                compute_metrics=_metrics,
                callbacks=[clock],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            self._check_precision(trainer)
            started = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - started
        (loss,) = [entry["eval_log_loss"] for entry in trainer.state.log_history if "eval_log_loss" in entry]
        return Trained(seconds, clock.ended - started, loss)

    def _arguments(self, spec: TrialSpec, folder: str) -> transformers.TrainingArguments:
        training = spec.training
        on_cpu = device().type == "cpu"
        return transformers.TrainingArguments(
            folder,
            num_train_epochs=training.epochs,
            per_device_train_batch_size=training.batch_size,
            per_device_eval_batch_size=EVALUATION_BATCH_SIZE,
            learning_rate=training.learning_rate,
            lr_scheduler_type=training.schedule,
            warmup_steps=0,
            weight_decay=training.weight_decay,
            adam_beta1=training.betas[0],
            adam_beta2=training.betas[1],
            adam_epsilon=training.adam_epsilon,
            max_grad_norm=training.max_grad_norm,
            eval_strategy="epoch",
            save_strategy="epoch" if self.habits.saves else "no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            bf16=self.habits.bf16,
            use_cpu=on_cpu,
            dataloader_pin_memory=not on_cpu,
            seed=spec.seed,
        )

    def _check_precision(self, trainer: transformers.Trainer) -> None:
        # Accelerate keeps its state for the whole process, and contenders of both kinds take turns in it.
        wanted = "bf16" if self.habits.bf16 else "no"
        found = trainer.accelerator.mixed_precision
        if found != wanted:
            raise RuntimeError(f"Trainer runs with mixed precision {found!r}, expected {wanted!r}")


def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _load(inputs: Inputs, padding: int) -> Any:
    transformers.set_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        find_folder(inputs.backbone), num_labels=inputs.num_labels, dtype="float32"
    )
    model.config.pad_token_id = padding
    model.config.use_cache = False
    return model.requires_grad_(False)


def _rows(inputs: Inputs, split: SplitName) -> list[dict[str, Any]]:
    tokens, labels = inputs.data.tokens, inputs.data.labels
    return [
        {
            "input_ids": tokens.input_ids[tokens.offsets[text] : tokens.offsets[text + 1]].tolist(),
            "labels": int(labels[text]),
        }
        for text in inputs.data.splits[split]
    ]


def trial_model(base: Any, spec: TrialSpec, inputs: Inputs) -> Any:
    """Returns a model whose trained parameters are the trial's own, its head drawn from torch's generator.

    The frozen ones it shares with `base`.
    """
    trained = trained_names(base, spec, inputs)
    shared = {id(value): value for name, value in base.named_parameters() if name not in trained}
    model = copy.deepcopy(base, shared)
    for name in trained:
        model.get_parameter(name).requires_grad_(True)
    for name in inputs.shape.head:
        if model.get_parameter(name).dim() > 1:
            torch.nn.init.normal_(model.get_parameter(name), std=model.config.initializer_range)
    adapter = adapter_config(spec, inputs)
    if adapter is not None:
        model = peft.get_peft_model(model, adapter)
    check_trained(model, spec, inputs)
    return model


def trained_names(model: Any, spec: TrialSpec, inputs: Inputs) -> set[str]:
    """Returns the names of the plain model's own parameters that the trial trains: the head, and the method's."""
    names = {name for name, _ in model.named_parameters()}
    norms = {site.name for site in inputs.shape.sites if site.kind == "norm"}
    own = {
        "bitfit": {name for name in names if name.endswith(".bias")},
        "norm": {name for name in names if name.rpartition(".")[0] in norms},
        "full": names,
    }
    return set(inputs.shape.head) | own.get(spec.method.kind, set())


def adapter_config(spec: TrialSpec, inputs: Inputs) -> peft.PeftConfig | None:
    """Returns PEFT's configuration of the trial, None for a method that PEFT is not needed for.

    Modules are named in full: the suffix `output.dense` of IA3's default would take attention's output as well.
    """
    sites = spec.method.sites(inputs.shape)
    common: dict[str, Any] = {
        "task_type": "SEQ_CLS",
        "target_modules": [site.name for site in sites],
        "modules_to_save": sorted({name.rpartition(".")[0] for name in inputs.shape.head}),
    }
    settings = spec.method.settings
    if spec.method.kind == "lora":
        return peft.LoraConfig(
            **common, r=settings["rank"], lora_alpha=settings["alpha"], lora_dropout=settings["dropout"], bias="none"
        )
    if spec.method.kind == "ia3":
        rescaled = [site.name for site in sites if site.role == "feed_forward_out"]
        return peft.IA3Config(**common, feedforward_modules=rescaled)
    return None


def check_trained(model: Any, spec: TrialSpec, inputs: Inputs) -> None:
    """Checks that the model trains as many parameters as Fleetune's trial does.

    Raises:
        RuntimeError: If it does not: the contenders would do different work.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    expected = spec.method.expected_parameters(inputs.shape) + inputs.shape.head_parameters
    if trained != expected:
        raise RuntimeError(f"{spec.id}: Trainer would train {trained:,} parameters, Fleetune {expected:,}")


def _metrics(prediction: transformers.EvalPrediction) -> dict[str, float]:
    return evaluate(np.asarray(prediction.label_ids), np.asarray(prediction.predictions))


class _FirstStep(transformers.TrainerCallback):
    """Keeps the time at which the first optimizer step ended."""

    ended = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.ended = self.ended or time.perf_counter()
