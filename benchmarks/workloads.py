"""What is measured: trials, texts, and the targets that hold for them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from fleetune.engine.config import TrainingConfig
from fleetune.engine.trial import TrialSpec
from fleetune.methods import get

BATCH_SIZE = 16
MAX_TOKENS = 128
GIB = 2**30
LORA = {"alpha": 16.0, "dropout": 0.1}

Device = Literal["cpu", "cuda"]
Corpus = Literal["tweets", "bbc"]


@dataclass(frozen=True)
class Target:
    """A bound on one measure: at least `bound`, or at most where `at_most`; it holds on `device` alone."""

    measure: str
    bound: float
    at_most: bool = False
    device: Device = "cpu"


@dataclass(frozen=True)
class Workload:
    """Trials over one backbone and the texts they see.

    Attributes:
        name: What it is asked for by.
        title: What it is, in a few words.
        model: `embedded:…`, or a shape of `benchmarks.models` with random weights.
        trials: What is trained: one epoch each, evaluated once at its end.
        texts: Training texts of each trial.
        evaluated: Validation texts.
        targets: What is to be reached.
        corpus: The embedded data set that the texts come from.
        device: What it needs; every device will do for `cpu`.
        quantize: Storage of the frozen weights.
        contenders: Who can run it.
    """

    name: str
    title: str
    model: str
    trials: tuple[TrialSpec, ...]
    texts: int
    evaluated: int
    targets: tuple[Target, ...] = ()
    corpus: Corpus = "tweets"
    device: Device = "cpu"
    quantize: str = "none"
    contenders: tuple[str, ...] = ("A", "B", "C", "D")


def _trial(kind: str, learning_rate: float, seed: int, batch_size: int = BATCH_SIZE, **settings: Any) -> TrialSpec:
    """Returns one epoch of a method; all else as `TrainingConfig` has it, which is as Trainer has it."""
    training = TrainingConfig(epochs=1.0, batch_size=batch_size, learning_rate=learning_rate, weight_decay=0.01)
    name = "-".join([kind, *(f"{key}{value}" for key, value in settings.items()), f"{learning_rate:g}", str(seed)])
    settings = {**LORA, **settings} if kind == "lora" else settings
    return TrialSpec(name, get(kind)(**settings), training, seed)


def _lora_grid(ranks: tuple[int, ...], rates: tuple[float, ...], seeds: int, batch_size: int = BATCH_SIZE) -> Any:
    return tuple(
        _trial("lora", rate, seed, batch_size, rank=rank) for rank, rate, seed in product(ranks, rates, range(seeds))
    )


def _mixed(seeds: int) -> tuple[TrialSpec, ...]:
    rates = {"lora": 5e-3, "ia3": 5e-2, "bitfit": 5e-3, "norm": 1e-2, "head": 5e-2, "full": 2e-4}
    return tuple(_trial(kind, rate, seed) for kind, rate in rates.items() for seed in range(seeds))


_ALL = (
    Workload(
        name="w1",
        title="12 LoRA trials on MiniLM",
        model="embedded:minilm",
        trials=_lora_grid(ranks=(4, 8, 16), rates=(5e-4, 1e-3), seeds=2),
        texts=2000,
        evaluated=400,
        targets=(Target("A/C", 5.0), Target("B/C", 4.0), Target("D/C", 3.0), Target("utilisation of C", 0.60)),
    ),
    Workload(
        name="w2",
        title="6 methods × 2 seeds on MiniLM",
        model="embedded:minilm",
        trials=_mixed(seeds=2),
        texts=2000,
        evaluated=400,
    ),
    Workload(
        name="w3",
        title="one LoRA trial alone on MiniLM",
        model="embedded:minilm",
        trials=_lora_grid(ranks=(8,), rates=(1e-3,), seeds=1),
        texts=2000,
        evaluated=400,
        targets=(Target("A/C", 3.5),),
        contenders=("A", "B", "C"),  # one trial cannot be divided between processes
    ),
    Workload(
        name="w4",
        title="4 LoRA trials on the shape of BERT-base",
        model="bert-base",
        trials=_lora_grid(ranks=(8,), rates=(5e-4,), seeds=4),
        texts=400,
        evaluated=80,
        targets=(Target("A/C", 3.5),),
    ),
    Workload(
        name="w5",
        title="2 LoRA trials on SmolLM2-135M",
        model="embedded:smollm2",
        trials=_lora_grid(ranks=(8,), rates=(5e-4,), seeds=2),
        texts=200,
        evaluated=40,
    ),
    Workload(
        name="w6",
        title="32 LoRA trials on the shape of BERT-base",
        model="bert-base",
        trials=_lora_grid(ranks=(4, 8, 16, 32), rates=(2e-4, 5e-4), seeds=4),
        texts=4000,
        evaluated=800,
        targets=(Target("B/C", 15.0, device="cuda"), Target("utilisation of C", 0.35, device="cuda")),
        device="cuda",
    ),
    Workload(
        name="w7",
        title="8 QLoRA trials on the shape of Qwen2-7B",
        model="qwen2-7b",
        # Articles are longer than 128 tokens: four of them, cut there, are 512 tokens a step.
        trials=_lora_grid(ranks=(8, 16), rates=(1e-4, 2e-4), seeds=2, batch_size=4),
        texts=160,
        evaluated=32,
        targets=(
            Target("GiB of one trial", 24.0, at_most=True, device="cuda"),
            Target("GiB of each further trial", 2.0, at_most=True, device="cuda"),
        ),
        corpus="bbc",
        device="cuda",
        quantize="nf4",
        contenders=("C", "C1"),
    ),
)
WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in _ALL}
