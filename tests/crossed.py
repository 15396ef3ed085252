"""Runs whose truth is known: answers drawn from seeds, texts and configurations, each with an effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetune.compare.result import TrialResult

KINDS = ("lora", "ia3", "bitfit", "norm", "houlsby", "pfeiffer", "prompt", "prefix", "vera", "full")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """How much each source makes a text's answer right or wrong, as deviations of a latent normal.

    `shifts` are the configurations' true means; equal ones make a null matrix.
    """

    shifts: Sequence[float]
    seeds: int = 6
    texts: int = 200
    of_text: float = 1.0
    of_seed: float = 0.1
    of_text_and_configuration: float = 0.5
    of_noise: float = 0.7
    mean: float = 1.0

    def right(self, rng: np.random.Generator, seed_effects: Floats, texts: int) -> NDArray[np.bool_]:
        """Returns whether each answer is right `(configurations, seeds, texts)`."""
        shape = (len(self.shifts), self.seeds, texts)
        latent = self.mean + np.asarray(self.shifts)[:, None, None] + seed_effects[:, :, None]
        latent = latent + rng.normal(0, self.of_text, texts)
        latent = latent + rng.normal(0, self.of_text_and_configuration, (shape[0], 1, texts))
        return latent + rng.normal(0, self.of_noise, shape) > 0

    def seed_effects(self, rng: np.random.Generator) -> Floats:
        return rng.normal(0, self.of_seed, (len(self.shifts), self.seeds))

    def deviation(self) -> float:
        """Of the latent value that decides an answer."""
        return float(np.sqrt(self.of_text**2 + self.of_seed**2 + self.of_text_and_configuration**2 + self.of_noise**2))

    def accuracy(self, configuration: int) -> float:
        """Returns the true share of right answers over all seeds and texts."""
        from scipy.stats import norm

        return float(norm.cdf((self.mean + self.shifts[configuration]) / self.deviation()))

    def trials(self, rng: np.random.Generator) -> list[TrialResult]:
        """Returns a run in this world: every configuration with every seed, on validation and test."""
        effects = self.seed_effects(rng)
        right = {split: self.right(rng, effects, self.texts) for split in ("validation", "test")}
        return [
            made(configuration, seed, {split: answers[configuration, seed] for split, answers in right.items()})
            for configuration in range(len(self.shifts))
            for seed in range(self.seeds)
        ]


def made(configuration: int, seed: int, right: dict[str, NDArray[np.bool_]]) -> TrialResult:
    """Returns a trial that answers as told, on texts of two classes in turn."""
    predictions = {}
    for split, answers in right.items():
        labels = np.arange(len(answers)) % 2
        chosen = np.where(answers, labels, 1 - labels)
        predictions[split] = (labels, np.stack([1.0 - chosen, chosen], axis=1).astype(np.float32) * 4)
    return TrialResult(
        id=f"{configuration}-{seed}",
        data="data",
        backbone="model",
        method=KINDS[configuration],
        kind=KINDS[configuration],
        settings={},
        seed=seed,
        status="done",
        metric="accuracy",
        label_names=["no", "yes"],
        predictions=predictions,
        parameters={"adapter": 10 * (configuration + 1), "head": 2, "trainable": 10 * (configuration + 1) + 2},
        seconds=1.0,
    )
