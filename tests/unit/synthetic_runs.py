"""Runs that were never trained: seeded predictions of a wished accuracy, with every field a real trial has."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fleetune.compare.claims import Claim
from fleetune.compare.costs import Cost
from fleetune.compare.held_out import HeldOutTexts, TestUse
from fleetune.compare.pair import PairTest
from fleetune.compare.result import Predictions, TrialResult
from fleetune.compare.summary import Comparison, compare
from fleetune.metrics import evaluate

METHODS: dict[str, tuple[dict[str, Any], int, float, float]] = {
    "lora": ({"rank": 8, "alpha": 16.0, "dropout": 0.0, "target_modules": ["query", "value"]}, 73_728, 0.86, 5e-4),
    "ia3": ({"target_modules": ["key", "value", "feed_forward_out"]}, 13_824, 0.83, 5e-3),
    "bitfit": ({}, 26_496, 0.84, 1e-3),
    "norm": ({}, 9_984, 0.80, 1e-3),
    "head": ({}, 0, 0.70, 5e-3),
    "full": ({}, 22_713_216, 0.87, 5e-5),
}


@dataclass(frozen=True)
class SyntheticRun:
    name: str
    folder: Path
    recipe_text: str
    trials: list[TrialResult]
    audits: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = "fleetune run recipe.toml"
    test_uses: list[TestUse] = field(default_factory=list)
    texts: dict[str, dict[str, HeldOutTexts]] = field(default_factory=dict)
    cost: Cost = "trainable"
    hashes: dict[str, str] = field(default_factory=dict)


def predictions(seed: int, texts: int, num_labels: int, quality: float, multi_label: bool) -> Predictions:
    """Labels depend on the split's size alone, so that every trial sees the same texts."""
    truth_rng, rng = np.random.default_rng(texts), np.random.default_rng(seed)
    if multi_label:
        labels = (truth_rng.random((texts, num_labels)) < np.linspace(0.5, 0.15, num_labels)).astype(np.uint8)
        right = rng.random(labels.shape) < 0.5 + quality / 2
        signs = np.where(right, labels, 1 - labels) * 2.0 - 1.0
        return labels, (signs * rng.gamma(2.0, 1.0, labels.shape)).astype(np.float32)
    shares = np.linspace(2.0, 1.0, num_labels) / np.linspace(2.0, 1.0, num_labels).sum()
    classes = truth_rng.choice(num_labels, texts, p=shares)
    chosen = np.where(rng.random(texts) < quality, classes, rng.integers(0, num_labels, texts))
    logits = rng.normal(size=(texts, num_labels)) * 0.5
    logits[np.arange(texts), chosen] += rng.gamma(4.0, 0.8, texts) + 1.2
    return classes.astype(np.int64), logits.astype(np.float32)


def trial(
    kind: str,
    seed: int,
    label_names: list[str],
    multi_label: bool = False,
    quality: float | None = None,
    evaluations: int = 3,
    variant: int = 0,
    **changes: Any,
) -> TrialResult:
    """One trial; trials of one kind and seed that differ in `variant` have other predictions."""
    settings, adapter, usual, learning_rate = METHODS[kind]
    quality = usual if quality is None else quality
    key = (sum(map(ord, kind)) + 10_000 * variant) * 100 + seed
    rng = np.random.default_rng(key)
    steps, num_labels = 40 * evaluations, len(label_names)
    held = {
        split: predictions(key + offset, texts, num_labels, quality, multi_label)
        for offset, (split, texts) in enumerate((("validation", 150), ("test", 300)))
    }
    curve = 1.1 * np.exp(-np.arange(1, steps + 1) / 35) + (1 - quality) + rng.normal(0, 0.08, steps)
    history = []
    for epoch in range(1, evaluations + 1):
        partial = predictions(key + 7 * epoch, 150, num_labels, quality - 0.25 / epoch, multi_label)
        history.append({"step": epoch * 40, "epoch": float(epoch), "metrics": evaluate(*partial)})
    head = 384 * num_labels + num_labels + 384 * 384 + 384
    made = TrialResult(
        id=f"{key:012x}",
        data="tweets",
        backbone="minilm",
        method=kind,
        kind=kind,
        settings=settings,
        training={"learning_rate": learning_rate, "epochs": 3.0, "batch_size": 16, "weight_decay": 0.01},
        seed=seed,
        status="done",
        metric="f1_macro",
        label_names=label_names,
        multi_label=multi_label,
        predictions=held,
        history=history,
        losses=[(step + 1, float(max(loss, 0.01))) for step, loss in enumerate(curve)],
        parameters={"adapter": adapter, "head": head, "trainable": adapter + head, "total": 22_713_216 + head},
        seconds=31.0 + 20 * rng.random(),
        peak_bytes=int(1.1e9 + 2e8 * rng.random()),
        bundle_bytes=4 * (adapter + head) + 3000,
        best_step=steps,
        entry=kind,
        train_texts=900,
        operations=2.1e13 if adapter else 8.4e12,
        serving_operations=2.9e9 + 2 * 27 * adapter,
        evaluation_texts_per_second=510.0 + 40 * rng.random(),
        texts_per_second=180.0,
        tokens_per_second=4900.0,
        layout="packed",
        layout_reason="the parity probe agrees to 3e-7",
        precision="bf16",
        notes=["classifier.weight, classifier.bias are not in the checkpoint: trained and saved as the head"],
    )
    return replace(made, **changes)


def audit(label_names: list[str]) -> dict[str, Any]:
    counts = {"train": 900, "validation": 150, "test": 300}
    return {
        "name": "tweets",
        "records": 1360,
        "accepted": 1350,
        "quarantined": 10,
        "duplicates": 12,
        "leaks": 0,
        "near_leaks": {"validation": 1, "test": 2},
        "conflicts": 2,
        **counts,
        "labels": label_names,
        "class_counts": {
            split: {name: size // len(label_names) + 5 - 5 * index for index, name in enumerate(label_names)}
            for split, size in counts.items()
        },
        "truncated": 4,
        "max_tokens": 64,
        "token_lengths": {
            "edges": [0, 8, 16, 24, 32, 40, 48, 56, 64, 72],
            "counts": [40, 210, 380, 340, 220, 100, 40, 16, 4],
            "mean": 23.4,
            "median": 22,
            "p95": 46,
            "max": 71,
        },
        "reasons": {"ragged row": 7, "empty text": 3},
        "warnings": ["2 distinct texts stand with more than one label; no classifier can be right on both"],
        "notes": ["a_file_whose_name_has_no_place_to_break_it_and_is_wider_than_a_telephone.csv: read as UTF-8"],
    }


def run(trials: list[TrialResult], name: str = "demo", audits: list[dict[str, Any]] | None = None) -> SyntheticRun:
    return SyntheticRun(
        name=name,
        folder=Path("runs") / name,
        recipe_text='[data]\npath = "embedded:tweets"\n\n[[method]]\nkind = "lora"\nrank = 8\n',
        trials=trials,
        audits=[audit(trials[0].label_names)] if audits is None else audits,
        environment={
            "python": "3.11.2",
            "torch": "2.9.1",
            "processor": "x86_64, 2 cores",
            "device": "cpu",
            "threads": 2,
        },
    )


def multi_class_run(seeds: int = 2) -> SyntheticRun:
    names = ["negative", "neutral", "positive"]
    return run([trial(kind, seed, names) for kind in METHODS for seed in range(seeds)])


def binary_run() -> SyntheticRun:
    """Two trials of one seed each: the smallest comparison there is."""
    return run([trial(kind, 0, ["no", "yes"]) for kind in ("lora", "ia3")], "pair")


GRID: list[tuple[str, dict[str, Any], float]] = [
    *(("lora", {"rank": rank, "learning_rate": rate}, 0.60 + 0.02 * (rank > 4) + gain)
      for rank in (4, 16) for rate, gain in ((1e-4, 0.0), (5e-4, 0.22), (2e-3, 0.16))),
    *(("ia3", {"learning_rate": rate}, quality) for rate, quality in ((1e-3, 0.70), (5e-3, 0.82), (2e-2, 0.78))),
    *(("bitfit", {"learning_rate": rate}, quality) for rate, quality in ((1e-4, 0.62), (1e-3, 0.84), (5e-3, 0.79))),
]  # fmt: skip


def grid_run(seeds: int = 5, evaluations: int = 8) -> SyntheticRun:
    """Twelve configurations, three methods with their learning rates and ranks; 60 trials with five seeds."""
    trials = []
    for variant, (kind, axes, quality) in enumerate(GRID):
        settings, adapter, _, _ = METHODS[kind]
        training = {"learning_rate": axes["learning_rate"], "epochs": float(evaluations), "batch_size": 16}
        grown = adapter * axes.get("rank", 8) // 8
        head = 384 * 2 + 2 + 384 * 384 + 384
        for seed in range(seeds):
            changes = {
                "settings": settings | ({"rank": axes["rank"]} if "rank" in axes else {}),
                "training": training,
                "parameters": {"adapter": grown, "head": head, "trainable": grown + head, "total": 22_713_216 + head},
            }
            trials.append(trial(kind, seed, ["no", "yes"], False, quality, evaluations, variant, **changes))
    return run(trials, "grid")


def with_tests(synthetic: SyntheticRun) -> Comparison:
    """The comparison of a run with a test of each configuration against the best, made up but for the means."""
    comparison = compare(synthetic.trials)
    best, *others = comparison.ranked
    tests = tuple(
        PairTest(
            a=best.name,
            b=other.name,
            data="tweets",
            metric=best.metric,
            seeds=len(best.scores),
            difference=best.mean - other.mean,
            interval=(best.mean - other.mean - 0.03, best.mean - other.mean + 0.03),
            p_seeds=0.0625,
            p_texts=0.0004 * number,
            p=0.0625,
            p_adjusted=min(1.0, 0.0625 * number),
            seeds_needed=9,
        )
        for number, other in enumerate(others, start=1)
    )
    claims = (
        Claim(f"{best.name} scores {best.mean:.3f} on the test texts.", "configurations", {"mean": best.mean}),
        Claim(f"None of {len(tests)} differences is demonstrated; 9 seeds could demonstrate one.", "tests"),
        Claim("The methods had different numbers of settings.", "no-such-section"),
    )
    return replace(comparison, tests=tests, claims=claims, references={"tweets": best.name})


def with_texts(synthetic: SyntheticRun, first: str = "text 0") -> SyntheticRun:
    """The run with the test texts it was scored on."""
    texts = [first, *(f"text {number}" for number in range(1, 300))]
    return replace(synthetic, texts={"tweets": {"test": HeldOutTexts(texts, [""] * len(texts))}})


def multi_label_run(seeds: int = 2) -> SyntheticRun:
    names = ["admiration", "anger", "curiosity", "joy", "sadness"]
    kinds = ("lora", "ia3", "bitfit", "head")
    return run([trial(kind, seed, names, multi_label=True) for kind in kinds for seed in range(seeds)], "emotions")


def troubled_run() -> SyntheticRun:
    """One trial failed, one predicts a single class, one is not started."""
    names = ["no", "yes"]
    trials = [trial(kind, seed, names) for kind in ("lora", "bitfit", "head") for seed in range(3)]
    labels = trials[4].predictions["test"][0]
    constant = np.tile(np.array([2.0, -2.0], dtype=np.float32), (len(labels), 1))
    trials[4] = replace(trials[4], predictions={**trials[4].predictions, "test": (labels, constant)})
    trials[0] = replace(
        trials[0],
        status="failed",
        reason="loss is nan at step 17",
        predictions={},
        history=[],
        losses=trials[0].losses[:17],
        seconds=None,
        peak_bytes=None,
        bundle_bytes=None,
        best_step=None,
    )
    trials[8] = replace(
        trials[8], status="pending", predictions={}, history=[], losses=[], seconds=None, peak_bytes=None
    )
    return run(trials, "troubled")
