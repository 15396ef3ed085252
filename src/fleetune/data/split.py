"""Stratified samples and splits that keep duplicates on one side; the same for the same seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleetune.data.config import SplitConfig
from fleetune.data.dataset import SplitName

Labels = NDArray[np.int64] | NDArray[np.uint8]
Indices = NDArray[np.int64]

# A class with fewer distinct texts than splits cannot stand in each of them; its texts then train.
SMALLEST_SHARED_CLASS = 3


def draw(labels: Labels, number: int, seed: int) -> Indices:
    """Returns sorted indices of `number` texts in which the labels have the shares they have in all."""
    random = np.random.default_rng(seed)
    if number >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    if labels.ndim == 2:
        share = number / len(labels)
        sides = _iterative(labels, np.ones(len(labels), dtype=np.int64), np.array([share, 1.0 - share]), random)
        return _of_exact_size(np.flatnonzero(sides == 0), np.flatnonzero(sides == 1), number, random)
    counts = np.bincount(labels)
    seats = _seats(np.float64(number / len(labels)) * counts, limits=counts, at_least_one=counts > 0)
    for absent in np.flatnonzero((seats == 0) & (counts > 0)):
        richest = int(seats.argmax())
        if seats[richest] > 1:
            seats[richest] -= 1
            seats[absent] = 1
    order = np.lexsort((random.random(len(labels)), labels))
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[rank < seats[labels[order]]]).astype(np.int64)


def nested_subset(labels: Labels, number: int, seed: int) -> Indices:
    """Returns sorted indices of `number` texts, stratified; those of a smaller number are among them.

    Each label has a text in it before any has a second, where texts have one label.

    Args:
        labels: `(texts,)` class indices or `(texts, num_labels)` 0/1.
        number: How many.
        seed: Of the order that they are the beginning of.
    """
    if labels.ndim == 2:
        return np.sort(_by_halves(labels, np.arange(len(labels), dtype=np.int64), number, seed))
    random = np.random.default_rng(seed)
    shuffled = np.lexsort((random.random(len(labels)), labels))
    counts = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Divisors 1, 3, 5 … share seats out by Webster's method, in which a larger house takes none away.
    turn = np.where(rank == 0, 0.0, (2 * rank + 1) / counts[labels[shuffled]])
    return np.sort(shuffled[np.lexsort((random.random(len(labels)), turn))[:number]]).astype(np.int64)


def _by_halves(labels: Labels, texts: Indices, number: int, seed: int) -> Indices:
    """Returns the first `number` of `texts` in an order in which each half of a half has the labels' shares."""
    if number >= len(texts):
        return texts
    if number <= 0:
        return texts[:0]
    first = draw(labels[texts], -(-len(texts) // 2), seed)
    others = np.setdiff1d(np.arange(len(texts)), first)
    if number <= len(first):
        return _by_halves(labels, texts[first], number, seed)
    return np.concatenate([texts[first], _by_halves(labels, texts[others], number - len(first), seed)])


def split_texts(labels: Labels, groups: Indices, config: SplitConfig) -> dict[SplitName, Indices]:
    """Returns sorted indices of training, validation and test texts.

    Args:
        labels: `(texts,)` class indices or `(texts, num_labels)` 0/1.
        groups: `(texts,)` number of the group of duplicates a text belongs to, counted from 0; a group is not split.
        config: Shares and seed.
    """
    random = np.random.default_rng(config.seed)
    sizes = np.bincount(groups)
    first = np.full(len(sizes), -1, dtype=np.int64)
    first[groups[::-1]] = np.arange(len(groups) - 1, -1, -1)
    group_labels = labels[first]
    if not config.stratify:
        sides = _by_class(np.zeros(len(sizes), dtype=np.int64), sizes, config, random)
    elif labels.ndim == 2:
        shares = np.array([1.0 - config.validation - config.test, config.validation, config.test])
        sides = _iterative(group_labels, sizes, shares, random)
    else:
        sides = _by_class(group_labels, sizes, config, random)
    _leave_each_label_a_training_text(sides, labels, groups)
    by_text = sides[groups]
    names: tuple[SplitName, ...] = ("train", "validation", "test")
    return {name: np.flatnonzero(by_text == side).astype(np.int64) for side, name in enumerate(names)}


def _by_class(classes: Labels, sizes: Indices, config: SplitConfig, random: np.random.Generator) -> Indices:
    """Returns the side (0 train, 1 validation, 2 test) of each group, class by class."""
    counts = np.bincount(classes, weights=sizes).astype(np.int64)
    texts, distinct = int(sizes.sum()), np.bincount(classes)
    shared = distinct >= SMALLEST_SHARED_CLASS
    limits = np.where(distinct > 1, counts - 1, 0)
    share = counts / texts
    wanted_test, wanted_validation = (_target(part, texts, len(sizes)) for part in (config.test, config.validation))
    test = _seats(share * wanted_test, limits, at_least_one=shared)
    validation = _seats(share * wanted_validation, limits - test, at_least_one=shared, last=test - share * wanted_test)
    fewest = np.maximum(
        1, np.minimum(np.where(test > 0, test, texts), np.where(validation > 0, validation, texts)) // 2
    )
    # Groups too large for their class's seats come last, where training takes them.
    order = np.lexsort((random.random(len(sizes)), sizes > fewest[classes], classes))
    ordered, ordered_sizes = classes[order], sizes[order]
    before = np.cumsum(ordered_sizes) - ordered_sizes
    starts = np.cumsum(counts) - counts
    middle = before - starts[ordered] + (ordered_sizes - 1) / 2
    sides = np.zeros(len(sizes), dtype=np.int64)
    sides[order[middle < (test + validation)[ordered]]] = 1
    sides[order[middle < test[ordered]]] = 2
    return sides


def _target(share: float, texts: int, distinct: int) -> int:
    wanted = round(share * texts)
    return max(wanted, 1) if share > 0 and distinct >= SMALLEST_SHARED_CLASS else wanted


def _seats(
    ideal: NDArray[np.float64],
    limits: Indices,
    at_least_one: NDArray[np.bool_],
    last: NDArray[np.float64] | None = None,
) -> Indices:
    """Returns whole numbers near `ideal` and of the same sum: by largest remainder, classes without any first.

    Of equal remainders those are rounded up last where `last` is greatest: where the test split was, for validation.
    """
    limits = np.maximum(limits, 0)
    seats: Indices = np.clip(np.floor(ideal + 1e-9).astype(np.int64), 0, limits)
    poor = (seats == 0) & at_least_one
    order = np.lexsort((np.zeros(len(ideal)) if last is None else last, np.round(seats - ideal, 9), ~poor))
    left = round(float(ideal.sum())) - int(seats.sum())
    while left > 0:
        takers = order[seats[order] < limits[order]][:left]
        if not len(takers):
            break
        seats[takers] += 1
        left -= len(takers)
    return seats


def _iterative(labels: Labels, sizes: Indices, shares: NDArray[np.float64], random: np.random.Generator) -> Indices:
    """Returns the side of each group by iterative stratification (Sechidis et al., 2011, ECML PKDD, algorithm 1).

    The label with the fewest groups left is dealt out first, each group to the side that lacks most of it.
    """
    order = random.permutation(len(labels))
    groups, names = np.nonzero(labels[order])
    groups = order[groups]
    labels_of: list[list[int]] = [[] for _ in range(len(labels))]
    groups_of: list[list[int]] = [[] for _ in range(labels.shape[1])]
    for group, name in zip(groups.tolist(), names.tolist(), strict=True):
        labels_of[group].append(name)
        groups_of[name].append(group)
    weights = sizes.tolist()
    lacking = (shares[:, None] * (sizes @ labels.astype(np.int64))[None, :]).tolist()
    room = (shares * int(sizes.sum())).tolist()
    side_of = [-1] * len(labels)
    left = [len(members) for members in groups_of]
    sides = [side for side, share in enumerate(shares) if share > 0]

    def place(group: int, side: int) -> None:
        side_of[group] = side
        room[side] -= weights[group]
        for name in labels_of[group]:
            lacking[side][name] -= weights[group]
            left[name] -= 1

    while any(left):
        rarest = min((name for name in range(len(left)) if left[name]), key=left.__getitem__)
        for group in groups_of[rarest]:
            if side_of[group] < 0:
                place(group, max(sides, key=lambda side: (lacking[side][rarest], room[side])))
    for group in order.tolist():
        if side_of[group] < 0:
            place(group, max(sides, key=room.__getitem__))
    return np.array(side_of, dtype=np.int64)


def _of_exact_size(chosen: Indices, others: Indices, number: int, random: np.random.Generator) -> Indices:
    if len(chosen) > number:
        chosen = random.choice(chosen, number, replace=False)
    elif len(chosen) < number:
        chosen = np.concatenate([chosen, random.choice(others, number - len(chosen), replace=False)])
    return np.sort(chosen).astype(np.int64)


def _leave_each_label_a_training_text(sides: Indices, labels: Labels, groups: Indices) -> None:
    """Moves the smallest group that has a label to training, for each label that has no training text."""
    for name in range(labels.shape[1] if labels.ndim == 2 else int(labels.max(initial=-1)) + 1):
        members = groups[np.flatnonzero(labels[:, name] if labels.ndim == 2 else labels == name)]
        if len(members) and not (sides[members] == 0).any():
            present, sizes = np.unique(members, return_counts=True)
            sides[present[np.argmin(sizes)]] = 0
