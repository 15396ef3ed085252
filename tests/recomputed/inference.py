"""What follows from scores: intervals, tests, and what was learned; written from the documented definitions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tests.recomputed.scores import draws_of, stream
from tests.recomputed.stored import FLOOR, PLAIN_LOSS, Trial

FloatArray = NDArray[np.float64]
TINY = 1e-12
MOST_GUESSED = 1.645
"""Of a standard normal, what one guess in twenty exceeds."""


@dataclass(frozen=True)
class Variance:
    """Of a mean: what seeds bring and what texts bring, each with its degrees of freedom."""

    seeds: float
    seeds_degrees: int
    texts: float
    texts_degrees: int

    def width(self, tail: float) -> float:
        """Returns Student's quantiles of both, weighted by their shares of the variance (Cochran and Cox)."""
        total = self.seeds + self.texts
        if total <= 0:
            return 0.0
        of_seeds = self.seeds / total * stats.t.ppf(1 - tail / 2, max(self.seeds_degrees, 1)) if self.seeds > 0 else 0.0
        of_texts = self.texts / total * stats.t.ppf(1 - tail / 2, max(self.texts_degrees, 1)) if self.texts > 0 else 0.0
        return float(of_seeds + of_texts)

    def ends(self, mean: float, tail: float = 0.05) -> tuple[float, float]:
        half = self.width(tail) * math.sqrt(self.seeds + self.texts)
        return mean - half, mean + half

    def p_value(self, mean: float) -> float:
        """Returns the tail whose interval just meets 0, found by halving."""
        deviation = math.sqrt(self.seeds + self.texts)
        if abs(mean) <= TINY:
            return 1.0
        if deviation <= TINY:
            return 0.0
        low, high = math.log(1e-15), 0.0
        if self._upper(1e-15) <= abs(mean) / deviation:
            return 1e-15
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if self._upper(math.exp(middle)) > abs(mean) / deviation else (low, middle)
        return math.exp((low + high) / 2)

    def _upper(self, tail: float) -> float:
        """Returns `width`, exact where `1 - tail / 2` would round to 1."""
        total = self.seeds + self.texts
        pairs = ((self.seeds, self.seeds_degrees), (self.texts, self.texts_degrees))
        return sum(
            share / total * float(stats.t.isf(tail / 2, max(degrees, 1))) for share, degrees in pairs if share > 0
        )


def variance(scores: Sequence[float], draws: FloatArray, texts: int) -> Variance | None:
    """Returns the variance of the mean of S scores: var(scores) / S, and the mean covariance of different seeds.

    The covariance is over draws, enlarged by N / (N - 1); it is no less than half of a seed's own variance over S, less
    what the seeds bring. Draws on which some score is not defined are left out; None where they are half or more.
    """
    seeds = len(scores)
    defined = draws[:, [bool(np.isfinite(column).all()) for column in draws.T]]
    if defined.shape[1] <= draws.shape[1] / 2:
        return None
    covariances = np.atleast_2d(np.cov(defined, ddof=1)) * texts / (texts - 1)
    own = float(np.trace(covariances)) / seeds
    if seeds == 1:
        return Variance(0.0, 0, own, texts - 1)
    between = float(covariances.sum() - np.trace(covariances)) / (seeds * (seeds - 1))
    of_seeds = statistics.variance(scores) / seeds
    return Variance(of_seeds, seeds - 1, max(between, own / seeds / 2 - of_seeds, 0.0), texts - 1)


def interval(mean: float, known: Variance, metric: str, texts: int) -> tuple[float, float] | None:
    """Returns the 95 % interval of a mean: Wilson's of a share of texts, else within its range; of ece none."""
    if metric == "ece":
        return None
    flat = known.seeds + known.texts <= TINY**2 and mean in (0, 1) and metric not in ("loss", "log_loss", "matthews")
    if metric in ("accuracy", "exact_match") or flat:
        total = known.seeds + known.texts
        trials = mean * (1 - mean) / total if total > TINY**2 else texts
        z = known.width(0.05) or float(stats.t.ppf(0.975, max(texts - 1, 1)))
        # The ends solve (share - mean)^2 = z^2 share (1 - share) / trials.
        a, b, c = 1 + z**2 / trials, -(2 * mean + z**2 / trials), mean**2
        root = math.sqrt(max(b**2 - 4 * a * c, 0.0))
        return max((-b - root) / (2 * a), 0.0), min((-b + root) / (2 * a), 1.0)
    low, high = known.ends(mean)
    lowest, highest = (-1.0 if metric == "matthews" else 0.0), (math.inf if metric in ("loss", "log_loss") else 1.0)
    return max(low, lowest), min(high, highest)


def within(ends: tuple[float, float], metric: str) -> tuple[float, float]:
    """Returns the ends of a difference's interval, no wider than two scores can lie apart."""
    widest = math.inf if metric in ("loss", "log_loss") else 2.0 if metric == "matthews" else 1.0
    return max(ends[0], -widest), min(ends[1], widest)


@dataclass(eq=False)
class Row:
    """One configuration's trials, and what follows from them on one split by one metric."""

    name: str
    trials: list[Trial]
    split: str
    metric: str

    @property
    def first(self) -> Trial:
        return self.trials[0]

    @property
    def data(self) -> str:
        return str(self.first.row["data"])

    @property
    def is_baseline(self) -> bool:
        return self.first.is_baseline

    @cached_property
    def done(self) -> list[Trial]:
        return [one for one in self.trials if one.is_done]

    @property
    def failed(self) -> list[Trial]:
        return [one for one in self.trials if one.row["status"] == "failed"]

    def scored(self, split: str | None = None) -> list[Trial]:
        return [one for one in self.done if one.texts(split or self.split)]

    @cached_property
    def scores(self) -> dict[int, float]:
        return {one.row["seed"]: one.score(self.split, self.metric) for one in self.scored()}

    @cached_property
    def mean(self) -> float:
        return statistics.fmean(self.scores.values()) if self.scores else math.nan

    @property
    def spread(self) -> float | None:
        values = list(self.scores.values())
        return statistics.stdev(values) if len(values) > 1 and math.isfinite(self.mean) else None

    @cached_property
    def validation(self) -> float:
        found = [one.score("validation", self.metric) for one in self.scored("validation")]
        return statistics.fmean(found) if found else math.nan

    @cached_property
    def texts(self) -> int:
        return self.scored()[0].texts(self.split) if self.scored() else 0

    @cached_property
    def draws(self) -> dict[int, FloatArray]:
        return {
            one.row["seed"]: one.judged(self.split).drawn(self.metric, draws_of(self.texts)) for one in self.scored()
        }

    @cached_property
    def known(self) -> Variance | None:
        if not math.isfinite(self.mean) or self.texts < 2:
            return None
        return variance(list(self.scores.values()), np.stack(list(self.draws.values())), self.texts)

    @property
    def interval(self) -> tuple[float, float] | None:
        return interval(self.mean, self.known, self.metric, self.texts) if self.known else None

    @cached_property
    def degenerate(self) -> dict[int, tuple[float, ...]]:
        """By seed that shows nothing learned, the numbers that say so."""
        found = {one.row["seed"]: shows_nothing(one, self.split) for one in self.scored()}
        return {seed: numbers for seed, numbers in found.items() if numbers is not None}

    @cached_property
    def unlearned(self) -> int:
        """How many seeds show nothing learned on validation."""
        return sum(shows_nothing(one, "validation") is not None for one in self.scored("validation"))

    @cached_property
    def is_judged(self) -> bool:
        """Whether more than half of the scored seeds learned something, and left a loss at chance."""
        if not math.isfinite(self.mean) or self.first.row["kind"] == FLOOR:
            return False
        telling = [one for one in self.scored() if one.row["seed"] not in self.degenerate and not loss_at_chance(one)]
        return len(telling) > len(self.scores) / 2

    @property
    def is_waiting(self) -> bool:
        return any(one.row["status"] in ("pending", "running") for one in self.trials)

    @property
    def has_known_spread(self) -> bool:
        return math.isfinite(self.mean) and (len(self.scores) > 1 or self.is_baseline)

    def over_seeds(self, values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None

    @property
    def seconds(self) -> float | None:
        return self.over_seeds(one.row["seconds"] for one in self.done)

    def cost(self, cost: str) -> float:
        """Returns what it costs by one measure; infinite where that is not known."""
        sizes = [one.row["bundle_bytes"] for one in self.done if one.row["bundle_bytes"] is not None]
        known = {
            "trainable": self.first.parameters.get("trainable"),
            "bundle_bytes": max(sizes, default=None),
            "seconds": self.seconds,
            "serving": self.first.row.get("serving_operations"),
        }
        value = known[cost]
        return math.inf if value is None else float(value)


def shows_nothing(trial: Trial, split: str) -> tuple[float, ...] | None:
    """Returns the numbers that show a trial to have learned nothing; None where it shows something."""
    if trial.row["kind"] == FLOOR:
        return None
    labels = trial.predictions[split][0]
    if not trial.has_numbers(split):
        return ()
    decided, right = trial.decided(split), float(trial.right(split).mean())
    if len(np.unique(labels, axis=0)) == 1:
        return None
    if len(np.unique(decided, axis=0)) == 1:
        return ()
    most = float(np.unique(labels, axis=0, return_counts=True)[1].max() / len(labels))
    if not trial.several and not trial.is_baseline and right <= most and _guesses(trial, split):
        return right, most
    area = trial.score(split, "roc_auc") if trial.several else math.nan
    if area <= 0.5:
        return (area,)
    half_way = area >= 0.75 if trial.several else right >= most + 0.5 * (1.0 - most)
    at_chance = loss_at_chance(trial)
    return at_chance if at_chance and not half_way else None


def _guesses(trial: Trial, split: str) -> bool:
    """Returns whether guesses would correlate so with the labels once in twenty times (Pearson's chi-squared)."""
    return trial.score(split, "matthews") * math.sqrt(trial.texts(split)) <= MOST_GUESSED


def validation_losses(trial: Trial) -> list[float]:
    found = [values.get("loss", values.get("log_loss", math.nan)) for _, _, values in trial.history]
    return [loss for loss in found if math.isfinite(loss)]


def chance(trial: Trial) -> float | None:
    """Returns the entropy of the labels' shares on validation, in nats; where several, the mean of each label's."""
    if not trial.texts("validation"):
        return None
    labels = trial.predictions["validation"][0]
    columns = labels.T if trial.several else [labels]
    entropies = [stats.entropy(np.unique(column, return_counts=True)[1]) for column in columns]
    return float(np.mean(entropies)) or None


def loss_at_chance(trial: Trial) -> tuple[float, float] | None:
    """Returns the lowest validation loss and chance where the loss never left it; None where it did."""
    losses, guessed = validation_losses(trial), chance(trial)
    if trial.is_baseline or not losses or not guessed or min(losses) < 0.98 * guessed:
        return None
    steps = [loss for _, loss in trial.losses if math.isfinite(loss)]
    plain = all(trial.training.get(key, value) == value for key, value in PLAIN_LOSS.items())
    if plain and steps:
        last = statistics.fmean(steps[len(steps) - math.ceil(len(steps) / 5) :])
        return None if last < 0.97 * guessed else (min(losses), guessed)
    return None if min(losses) > 1.02 * guessed else (min(losses), guessed)


def has_diverged(trial: Trial) -> bool:
    """Returns whether a loss at chance lies above it and is no lower than where it began.

    It began at its first evaluation; of a single one nothing is known but what even guesses have.
    """
    losses, guessed = validation_losses(trial), chance(trial) or math.inf
    began = losses[0] if len(losses) > 1 else math.log(2 if trial.several else len(trial.label_names))
    return min(losses) > 1.02 * guessed and losses[-1] >= began


def still_falling(trial: Trial) -> tuple[float, float] | None:
    """Returns the last two validation losses where the last is the best, by more than 2 %; None elsewhere."""
    losses = validation_losses(trial)
    if trial.is_baseline or len(losses) < 2 or trial.row["stopped_early"] or losses[-1] > min(losses):
        return None
    if trial.row["best_step"] is not None and trial.row["best_step"] != trial.history[-1][0]:
        return None
    before, last = losses[-2:]
    return (before, last) if before - last > 0.02 * max(before, chance(trial) or 0.0) else None


@dataclass(frozen=True)
class Pair:
    """The test of one row against another."""

    a: Row
    b: Row
    seeds: int
    difference: float
    interval: tuple[float, float] | None
    simultaneous: tuple[float, float] | None
    p_seeds: float | None
    p_texts: float | None
    p: float | None


def difference_of(a: Row, b: Row) -> tuple[list[float], Variance, list[tuple[int, int]]] | None:
    """Returns the differences of common seeds, their variance, and which seeds they are of."""
    if a.is_baseline or b.is_baseline:
        seeds = list(product(a.scores, b.scores))
    else:
        seeds = [(seed, seed) for seed in a.scores if seed in b.scores]
    found = [a.scores[one] - b.scores[other] for one, other in seeds]
    if a.texts != b.texts or a.texts < 2 or not found or not all(map(math.isfinite, found)):
        return None
    draws = np.stack([a.draws[one] - b.draws[other] for one, other in seeds])
    known = variance(found, draws, a.texts)
    return None if known is None else (found, known, seeds)


def tested(a: Row, b: Row, pairs: int) -> Pair:
    """Returns the test of one of so many pairs that could be asked about."""
    found = difference_of(a, b)
    if found is None:
        return Pair(a, b, 0, a.mean - b.mean, None, None, None, None, None)
    differences, known, seeds = found
    mean, several = statistics.fmean(differences), len(differences) > 1
    p_seeds = sign_flips(differences)
    p = max(p_seeds, known.p_value(mean)) if several else p_seeds
    right = [{one.row["seed"]: one.right(row.split) for one in row.scored()} for row in (a, b)]
    p_texts = mcnemar([(right[0][one], right[1][other]) for one, other in seeds])
    ends = within(known.ends(mean), a.metric)
    together = within(known.ends(mean, 0.05 / pairs), a.metric) if several else None
    return Pair(a, b, len(differences), mean, ends, together, p_seeds, p_texts, p)


def sign_flips(differences: Sequence[float]) -> float:
    """Returns the share of all patterns of signs whose sum lies at least as far from 0; drawn ones beyond 18 seeds."""
    values = np.array(differences)
    size = float(abs(values).sum())
    if size <= TINY:
        return 1.0
    seen = abs(float(values.sum())) - TINY * size
    if len(values) <= 18:
        sums = np.array(list(product((1.0, -1.0), repeat=len(values)))) @ values
        return float((abs(sums) >= seen).mean())
    signs = stream("flips", len(values)).choice(np.array([-1.0, 1.0]), size=(200_000, len(values)))
    return float((1 + (abs(signs @ values) >= seen).sum()) / 200_001)


def mcnemar(pairs: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> float:
    """Returns McNemar's exact p of one seed; of several, with each text's seeds as one cluster (Durkalski)."""
    gained = sum(one.astype(int) - other.astype(int) for one, other in pairs)
    wins, losses = int(np.sum(gained > 0)), int(np.sum(gained < 0))
    if wins + losses == 0:
        return 1.0
    if len(pairs) == 1:
        return float(min(1.0, 2 * stats.binom.cdf(min(wins, losses), wins + losses, 0.5)))
    return float(stats.chi2.sf(np.sum(gained) ** 2 / np.sum(np.square(gained)), 1))


def holm(values: Sequence[float], among: int = 0) -> list[float]:
    """Returns p-values after Holm's correction: the largest of (m - rank) p among those no larger.

    Where they are some of `among` tests, m is that, as if the others all had larger p-values.
    """
    order = sorted(range(len(values)), key=lambda one: values[one])
    steps = [min(1.0, (max(among, len(values)) - rank) * values[place]) for rank, place in enumerate(order)]
    return [max(steps[: order.index(place) + 1]) for place in range(len(values))]


def seeds_needed(tests: int) -> int:
    return next(seeds for seeds in range(1, 60) if 2 / 2**seeds * max(tests, 1) < 0.05)
