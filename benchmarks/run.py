"""Training throughput of a fleet against `peft` + `transformers.Trainer`, in turns in one process.

    python -m benchmarks.run [--texts 400] [--trials 6] [--rounds 3] [--json]

Both train LoRA trials (ranks 4, 8, 16; further trials differ by seed) on the same tweets for one epoch in batches of
16, evaluate on the same texts at its end, and save nothing. Trainer trains one trial after another with dynamic
padding, in fp32 (A) and with bf16=True where the processor has it (B); Fleetune trains all of them together (C).
Loading models and tokenising are left out on both sides.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from fleetune.data.config import DataConfig
from fleetune.data.prepare import prepare
from fleetune.data.tokens import Tokens, tokenize
from fleetune.engine.backbone import load_backbone, load_tokenizer
from fleetune.engine.config import BackboneConfig, TrainingConfig
from fleetune.engine.events import Finished
from fleetune.engine.fleet import Fleet, FleetData
from fleetune.engine.source import find_folder
from fleetune.engine.trial import TrialSpec
from fleetune.methods.lora import LoRA
from fleetune.runtime import device, environment, has_fast_bf16

BACKBONE = BackboneConfig(model="embedded:minilm")
RANKS = (4, 8, 16)
BATCH = 16
LEARNING_RATE = 1e-3
EVALUATED = 100


@dataclass(frozen=True)
class Workload:
    """What every contender trains: `trials` LoRA trials on the training texts of `data`."""

    data: FleetData
    trials: int

    @property
    def texts(self) -> int:
        """Training texts of all trials together."""
        return self.trials * len(self.data.splits["train"])

    def rank_and_seed(self, trial: int) -> tuple[int, int]:
        return RANKS[trial % len(RANKS)], trial // len(RANKS)


def main() -> None:
    options = _options()
    workload = _workload(options.texts, options.trials)
    contenders = {"A": lambda: _trainer(workload, bf16=False), "C": lambda: _fleet(workload)}
    if has_fast_bf16():
        contenders["B"] = lambda: _trainer(workload, bf16=True)
    seconds: dict[str, list[float]] = {name: [] for name in sorted(contenders)}
    for _ in range(options.rounds):
        for name in sorted(contenders):
            seconds[name].append(contenders[name]())
    _print(workload, {name: median(times) for name, times in seconds.items()}, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=400, help="training texts")
    parser.add_argument("--trials", type=int, default=6, help="LoRA trials")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender; the median counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def _workload(texts: int, trials: int) -> Workload:
    config = DataConfig.model_validate(
        {
            "path": "embedded:tweets",
            "text": "text",
            "label": "sentiment",
            "where": {"confidence": ">= 0.9"},
            "encoding_errors": "replace",
            "sample": texts + EVALUATED,
            "split": {"validation": EVALUATED / (texts + EVALUATED), "test": 0.0},
        }
    )
    dataset = prepare(config, Path()).dataset
    with tempfile.TemporaryDirectory() as cache:
        tokens = tokenize(dataset, load_tokenizer(BACKBONE), 128, Path(cache), BACKBONE.model)
        held = Tokens(np.array(tokens.input_ids), None, np.array(tokens.offsets), np.array(tokens.full_lengths), Path())
    return Workload(FleetData(held, dataset.labels, dataset.splits), trials)


def _fleet(workload: Workload) -> float:
    """Returns the seconds in which Fleetune trains every trial."""
    backbone = load_backbone(BACKBONE, 3)
    training = TrainingConfig(epochs=1, batch_size=BATCH, learning_rate=LEARNING_RATE)
    specs = []
    for trial in range(workload.trials):
        rank, seed = workload.rank_and_seed(trial)
        specs.append(TrialSpec(f"trial-{trial}", LoRA(rank=rank), training, seed))
    fleet = Fleet(backbone, specs, workload.data)
    started = time.perf_counter()
    finished = sum(isinstance(event, Finished) for event in fleet.train())
    seconds = time.perf_counter() - started
    if finished != workload.trials:
        raise RuntimeError(f"{workload.trials - finished} trials did not finish")
    return seconds


def _trainer(workload: Workload, bf16: bool) -> float:
    """Returns the seconds in which `peft` + `Trainer` train every trial, one after another."""
    return sum(_trainer_trial(workload, *workload.rank_and_seed(trial), bf16) for trial in range(workload.trials))


def _trainer_trial(workload: Workload, rank: int, seed: int, bf16: bool) -> float:
    import peft
    import transformers

    transformers.set_seed(seed)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = find_folder(BACKBONE)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=16, target_modules=["query", "value"])
    with tempfile.TemporaryDirectory() as out:
        arguments = transformers.TrainingArguments(
            out,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=64,
            learning_rate=LEARNING_RATE,
            eval_strategy="epoch",
            save_strategy="no",
            report_to=[],
            logging_strategy="no",
            disable_tqdm=True,
            bf16=bf16,
            use_cpu=device().type == "cpu",
            seed=seed,
        )
        trainer = transformers.Trainer(
            peft.get_peft_model(model, lora),
            arguments,
            train_dataset=_rows(workload.data, "train"),
            eval_dataset=_rows(workload.data, "validation"),
            data_collator=transformers.DataCollatorWithPadding(load_tokenizer(BACKBONE)),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def _rows(data: FleetData, split: Any) -> Any:
    tokens = data.tokens
    return [
        {
            "input_ids": tokens.input_ids[tokens.offsets[text] : tokens.offsets[text + 1]].tolist(),
            "labels": int(data.labels[text]),
        }
        for text in data.splits[split]
    ]


def _print(workload: Workload, seconds: dict[str, float], as_json: bool) -> None:
    rates = {name: workload.texts / value for name, value in seconds.items()}
    ratios = {f"{name}/C": seconds[name] / seconds["C"] for name in seconds if name != "C"}
    if as_json:
        print(json.dumps({"environment": environment(), "seconds": seconds, "texts_per_second": rates, **ratios}))
        return
    machine = environment()
    print(f"{machine['processor']}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{workload.trials} LoRA trials, {len(workload.data.splits['train'])} texts each, batches of {BATCH}")
    names = {"A": "peft + Trainer, fp32", "B": "peft + Trainer, bf16", "C": "Fleetune"}
    for name, value in seconds.items():
        print(f"{name}  {names[name]:22} {value:8.1f} s  {rates[name]:7.1f} texts/s")
    print("   ".join(f"{name} = {value:.2f}" for name, value in ratios.items()))


if __name__ == "__main__":
    main()
