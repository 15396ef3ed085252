"""What else a report finds out about rows: calibration, thresholds for a wish, slices, disagreements, budgets."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tests.recomputed import scores
from tests.recomputed.inference import Row, holm
from tests.recomputed.scores import LOWER_IS_BETTER, draws_of
from tests.recomputed.stored import FLOOR, Texts, Trial

FloatArray = NDArray[np.float64]
FEWEST = 10
WISHES = [(kind, least) for kind in ("precision", "recall") for least in (0.8, 0.9, 0.95)]


def best_first(rows: Sequence[Row]) -> list[Row]:
    """Returns rows on one data set by their means; scores that differ by rounding alone are equal."""
    sign = 1.0 if rows[0].metric in LOWER_IS_BETTER else -1.0
    return sorted(
        rows, key=lambda row: (math.isnan(row.mean), 0.0 if math.isnan(row.mean) else round(sign * row.mean, 12))
    )


def telling(rows: Sequence[Row]) -> list[Row]:
    """Returns the first row, and of the others those whose every seed learned something."""
    return [row for place, row in enumerate(rows) if place == 0 or not row.degenerate]


def usable(row: Row) -> list[Trial]:
    return [one for one in row.scored() if one.has_numbers(row.split)]


@dataclass(frozen=True)
class Calibration:
    """One configuration's confidences before and after temperature."""

    temperatures: list[float]
    error: float
    calibrated_error: float
    bins: dict[str, list[tuple[float, float, int, float, float]]]


@cache
def calibration(row: Row) -> Calibration:
    trials = usable(row)
    temperatures = [one.temperature for one in trials]
    stages = {"as trained": [1.0] * len(trials), "calibrated": temperatures}
    found, errors = {}, {}
    for stage, values in stages.items():
        pairs = [one.judged(row.split).confidences(value) for one, value in zip(trials, values, strict=True)]
        every = [pair for of_trial in pairs for pair in of_trial]
        confidences, right = (np.concatenate(one) for one in zip(*every, strict=True))
        found[stage] = scores.bins(confidences, right)
        by_trial = [statistics.fmean(scores.calibration_error(*pair) for pair in of_trial) for of_trial in pairs]
        errors[stage] = statistics.fmean(by_trial)
    return Calibration(temperatures, errors["as trained"], errors["calibrated"], found)


def operating_point(row: Row, label: str, kind: str, least: float) -> dict[str, float | None]:
    """Returns what thresholds for a wish, found on validation, reach: means over the seeds that know them."""
    trials = usable(row)
    column = row.first.label_names.index(label)
    found: list[tuple[float, float | None, float | None]] = []
    for trial in trials:
        heat = trial.temperature
        pairs = {}
        for split in ("validation", row.split):
            labels, logits = trial.predictions[split]
            chances = scores.probabilities(logits / heat, trial.several)[:, column]
            pairs[split] = (trial.sets(labels)[:, column], chances)
        threshold = scores.wished(*pairs["validation"], kind, least)
        if threshold is not None:
            truth, chances = pairs[row.split]
            given = chances >= threshold
            hits = int((truth & given).sum())
            precision = hits / int(given.sum()) if given.any() else None
            found.append((threshold, precision, hits / int(truth.sum()) if truth.any() else None))
    means = [row.over_seeds(one[place] for one in found) for place in range(3)]
    names = ("threshold", "precision", "recall")
    return {"seeds": len(trials), "reached": len(found), **dict(zip(names, means, strict=True))}


@dataclass(frozen=True)
class Slice:
    """Texts that have something in common, by their places."""

    column: str
    value: str
    texts: NDArray[np.int64]


def slices_of(held: Texts) -> list[Slice]:
    found = _by_length(held.tokens)
    for name, values in held.columns.items():
        counts = Counter(values)
        rare = f"(fewer than {FEWEST} texts each)"
        kept = [value if counts[value] >= FEWEST else rare for value in values]
        column = f"{name} (column)" if name in ("length", "label") else name
        parts = [Slice(column, value, _where(kept, value)) for value in sorted(set(kept) - {rare})]
        parts += [Slice(column, rare, _where(kept, rare))] if rare in kept else []
        found += parts if len(parts) > 1 else []
    return found


def _where(values: Sequence[str], value: str) -> NDArray[np.int64]:
    return np.array([place for place, one in enumerate(values) if one == value])


def _by_length(lengths: Sequence[int]) -> list[Slice]:
    """Returns up to four parts of like size, cut at quantiles that are lengths of texts."""
    count = min(4, len(lengths) // FEWEST)
    if count < 2:
        return []
    ordered = sorted(lengths)
    cuts = sorted({ordered[math.ceil(len(lengths) * part / count - 1e-9) - 1] for part in range(1, count)})
    owners = np.array([sum(length > cut for cut in cuts) for length in lengths])
    parts = []
    for owner in np.unique(owners):
        texts = np.flatnonzero(owners == owner)
        low, high = min(lengths[place] for place in texts.tolist()), max(lengths[place] for place in texts.tolist())
        words = f"{low:,} tokens" if low == high else f"{low:,} to {high:,} tokens"
        parts.append(Slice("length", words, texts))
    return parts if len(parts) > 1 else []


@dataclass(frozen=True)
class Gap:
    """How far one mean lies from another on the same texts drawn anew."""

    one: float
    other: float
    interval: tuple[float, float] | None
    p: float

    @property
    def difference(self) -> float:
        return self.one - self.other


@dataclass(frozen=True)
class Drawn:
    """A mean over seeds, as it is and by draw; nan where a draw has none of the texts."""

    mean: float
    draws: FloatArray


def drawn_on(row: Row, metric: str, part: NDArray[np.int64] | None) -> Drawn:
    draws = draws_of(row.texts)[: 150 if metric == "roc_auc" else 500]
    inside = draws if part is None else draws[:, part]
    found, own = [], []
    with np.errstate(invalid="ignore", divide="ignore"):
        for trial in row.scored():
            judged = trial.judged(row.split, part)
            found.append(judged.drawn(metric, inside))
            own.append(float(judged.drawn(metric, np.ones((1, inside.shape[1])))[0]))
    mean = np.where(inside.sum(axis=1) == 0, np.nan, np.mean(found, axis=0))
    return Drawn(statistics.fmean(own), mean)


def label_drawn(row: Row, label: int) -> Drawn:
    """Returns F1 of one label against the rest."""
    draws = draws_of(row.texts)[:500]
    found, own = [], []
    for trial in row.scored():
        truth = trial.sets(trial.predictions[row.split][0])[:, label]
        chosen = trial.sets(trial.decided(row.split))[:, label]
        if not trial.has_numbers(row.split):
            return Drawn(math.nan, np.full(500, np.nan))
        hits, named = (truth & chosen) * 2.0, truth * 1.0 + chosen * 1.0
        own.append(float(hits.sum() / named.sum()) if named.any() else 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(np.where(draws @ named > 0, draws @ hits / (draws @ named), 0.0))
    return Drawn(statistics.fmean(own), np.mean(found, axis=0))


def gap(one: Drawn, other: Drawn, texts: int) -> Gap:
    """Returns the difference with Student's interval, of the draws' deviation and as many texts as there are."""
    apart = one.draws - other.draws
    known = apart[np.isfinite(apart)]
    difference = one.mean - other.mean
    if not math.isfinite(difference) or 2 * len(known) < len(apart) or texts < 2:
        return Gap(one.mean, other.mean, None, 1.0)
    deviation = statistics.stdev(known.tolist()) * math.sqrt(texts / (texts - 1))
    if deviation == 0.0:
        return Gap(one.mean, other.mean, (difference, difference), 1.0)
    half = float(stats.t.isf(0.025, texts - 1)) * deviation
    p = 2 * float(stats.t.sf(abs(difference) / deviation, texts - 1))
    return Gap(one.mean, other.mean, (difference - half, difference + half), p)


def _holds(wanted: float, p: float, texts: int) -> bool:
    return wanted > 0 and p < 0.05 and texts >= FEWEST


def slice_scores(row: Row, held: Texts) -> list[tuple[Slice, Gap, bool]]:
    """Returns each slice with its gap to the whole, and whether it is weak."""
    parts, whole = slices_of(held), drawn_on(row, row.metric, None)
    gaps = [gap(drawn_on(row, row.metric, part.texts), whole, len(part.texts)) for part in parts]
    sign = 1.0 if row.metric in LOWER_IS_BETTER else -1.0
    adjusted = holm([one.p for one in gaps])
    return [
        (part, one, _holds(sign * one.difference, p, len(part.texts)))
        for part, one, p in zip(parts, gaps, adjusted, strict=True)
    ]


def weak_spots(chosen: Row, others: Sequence[Row], held: Texts | None) -> list[tuple[Slice, str, str, Gap, bool]]:
    """Returns slice, metric, other row, gap and whether it holds, wherever another row is better."""
    looks: list[tuple[Slice, str, str, Gap]] = []
    rows = [row for row in others if row.scored()]
    for part in slices_of(held) if held is not None else []:
        own = drawn_on(chosen, chosen.metric, part.texts)
        for row in rows:
            found = gap(drawn_on(row, chosen.metric, part.texts), own, len(part.texts))
            looks.append((part, chosen.metric, row.name, found))
    first = chosen.scored()[0]
    truth = first.sets(first.predictions[chosen.split][0])
    for label, name in enumerate(first.label_names):
        texts = np.flatnonzero(truth[:, label])
        if len(texts):
            own = label_drawn(chosen, label)
            looks += [
                (Slice("label", name, texts), "f1", row.name, gap(label_drawn(row, label), own, len(texts)))
                for row in rows
            ]
    found_spots = []
    for (part, metric, other, one), p in zip(looks, holm([one.p for *_, one in looks]), strict=True):
        gain = one.difference * (-1.0 if metric in LOWER_IS_BETTER else 1.0)
        if one.interval is not None and gain > 0:
            found_spots.append((part, metric, other, one, _holds(gain, p, len(part.texts))))
    return found_spots


def divided_texts(rows: Sequence[Row]) -> list[tuple[int, float, dict[str, list[str]]]]:
    """Returns place, share of rows that are right and each row's labels, for texts that rows decide differently."""
    split = rows[0].split
    voters: list[tuple[Row, list[Trial]]] = []
    for row in rows:
        trials = [one for one in usable(row) if one.row["seed"] not in row.degenerate]
        if trials and row.first.row["kind"] != FLOOR:
            voters.append((row, trials))
    if len(voters) < 2:
        return []
    names = voters[0][1][0].label_names
    decided = np.stack([_vote(trials, split) for _, trials in voters])
    truth = voters[0][1][0].sets(voters[0][1][0].predictions[split][0])
    apart = np.mean([(a != b).sum(axis=1) for a, b in combinations(decided, 2)], axis=0)
    right = (decided == truth).all(axis=2).mean(axis=0)
    order = sorted(range(len(truth)), key=lambda place: (-round(apart[place], 9), round(right[place], 9), place))
    return [
        (
            place,
            float(right[place]),
            {row.name: [name for name, given in zip(names, of_row[place], strict=True) if given]
             for (row, _), of_row in zip(voters, decided, strict=True)},
        )
        for place in order[:50]
        if apart[place] > 0
    ]  # fmt: skip


def _vote(trials: Sequence[Trial], split: str) -> NDArray[np.bool_]:
    """Returns what most seeds decide; where they are even, what their mean probability does."""
    votes = np.mean([one.sets(one.decided(split)) for one in trials], axis=0)
    sure = np.mean([one.probabilities(split) for one in trials], axis=0)
    if trials[0].several:
        needed = np.mean([one.thresholds_on(split) for one in trials], axis=0)
        return np.where(np.isclose(votes, 0.5), sure >= needed, votes > 0.5)
    winners = [max(range(votes.shape[1]), key=lambda label: (round(vote[label], 9), chance[label]))
               for vote, chance in zip(votes, sure, strict=True)]  # fmt: skip
    return np.asarray(np.arange(votes.shape[1]) == np.array(winners)[:, None])


def expected_best(rows: Sequence[Row]) -> list[tuple[int, float, float]]:
    """Returns for each number of settings the mean validation and score of the best on validation of so many of them.

    Every choice of so many settings is looked at; where that would be too many, their shares are counted.
    """
    sign = -1.0 if rows[0].metric in LOWER_IS_BETTER else 1.0
    known = [(row.validation, row.mean) for row in rows if math.isfinite(row.validation) and math.isfinite(row.mean)]
    ranked = sorted(known, key=lambda one: -sign * round(one[0], 12))
    found = []
    for tried in range(1, len(ranked) + 1):
        if len(ranked) <= 12:
            # In the order of the ranks the first of a choice is the best of it.
            best = [choice[0] for choice in combinations(ranked, tried)]
            validation, scored = (statistics.fmean(one[place] for one in best) for place in (0, 1))
        else:
            ways = [math.comb(len(ranked) - 1 - rank, tried - 1) for rank in range(len(ranked))]
            sums = (math.fsum(n * one[place] for n, one in zip(ways, ranked, strict=True)) for place in (0, 1))
            validation, scored = (one / math.comb(len(ranked), tried) for one in sums)
        found.append((tried, validation, scored))
    return found


@cache
def label_records(row: Row) -> list[dict[str, Any]]:
    """Returns each label's scores against the rest, means over seeds."""
    trials = usable(row)
    records = []
    for place, label in enumerate(row.first.label_names):
        found: dict[str, list[float]] = {name: [] for name in ("precision", "recall", "f1", "roc_auc")}
        support = 0
        for one in trials:
            truth = one.sets(one.predictions[row.split][0])[:, place]
            chosen = one.sets(one.decided(row.split))[:, place]
            support, hits = int(truth.sum()), int((truth & chosen).sum())
            found["precision"].append(hits / int(chosen.sum()) if chosen.any() else 0.0)
            found["recall"].append(hits / support if support else 0.0)
            found["f1"].append(2 * hits / (support + int(chosen.sum())) if support or chosen.any() else 0.0)
            found["roc_auc"].append(_area(one, row.split, place))
        record: dict[str, Any] = {"label": label, "support": support, "configuration": row.name, "seeds": len(trials)}
        record |= {name: statistics.fmean(values) for name, values in found.items()}
        record["roc auc"] = record["roc_auc"]
        record |= {"f1 lowest": min(found["f1"]), "f1 highest": max(found["f1"])}
        if row.first.several:
            own = [float(one.thresholds[place]) for one in trials]
            record |= {"threshold": statistics.fmean(own), "threshold lowest": min(own), "threshold highest": max(own)}
        records.append(record)
    return records


def _area(trial: Trial, split: str, label: int) -> float:
    return float(trial.judged(split).areas()[label])


def majority(row: Row) -> float | None:
    """Returns what always giving the most frequent answer scores, where that says something."""
    labels = row.scored()[0].predictions[row.split][0]
    if row.first.several:
        if row.metric != "exact_match":
            return None
        return float(np.unique(labels, axis=0, return_counts=True)[1].max() / len(labels))
    if not row.metric.startswith(("accuracy", "f1", "precision", "recall")):
        return None
    most = np.bincount(labels).argmax()
    logits = np.tile(np.eye(len(row.first.label_names))[most], (len(labels), 1))
    return scores.Judged(labels, logits, np.full(len(labels), most), False).score(row.metric)
