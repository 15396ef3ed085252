"""Trials that differ in nothing but their seed, as one configuration with a name that tells it from the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fleetune.compare.result import TrialResult
from fleetune.methods import is_baseline, reads_model

NOT_SETTINGS = frozenset({"seed", "seeds"})
ABSENT = object()


@dataclass(frozen=True)
class Configuration:
    """All seeds of one way to train.

    Attributes:
        name: Unique among the configurations it was grouped with.
        trials: Its trials, by seed; failed and unfinished ones too.
        varying: Those of its settings that are not the same in all configurations.
    """

    name: str
    trials: tuple[TrialResult, ...]
    varying: dict[str, Any]

    @property
    def first(self) -> TrialResult:
        """The trial of the lowest seed; what it says of all but the seed holds for every trial."""
        return self.trials[0]

    @property
    def done(self) -> tuple[TrialResult, ...]:
        """Its finished trials."""
        return tuple(trial for trial in self.trials if trial.status == "done")

    @property
    def failed(self) -> tuple[TrialResult, ...]:
        """Its failed trials."""
        return tuple(trial for trial in self.trials if trial.status == "failed")


def all_settings(trial: TrialResult) -> dict[str, Any]:
    """Returns the method's and the training's settings of `trial` together, seed excluded.

    A baseline has only what it heeds of the training's.
    """
    return {key: value for key, value in (trial.training | trial.settings).items() if key not in NOT_SETTINGS}


def group(results: Iterable[TrialResult]) -> list[Configuration]:
    """Returns the configurations of `results`, in the order in which each first appears."""
    groups: dict[tuple[str, ...], list[TrialResult]] = {}
    for trial in results:
        groups.setdefault(trial.configuration, []).append(trial)
    trials = [sorted(members, key=lambda trial: trial.seed) for members in groups.values()]
    firsts = [members[0] for members in trials]
    shared = shared_settings(firsts)
    varying = [
        {key: value for key, value in all_settings(first).items() if shared.get(key, ABSENT) != value}
        for first in firsts
    ]
    return [
        Configuration(name, tuple(members), settings)
        for name, members, settings in zip(_names(firsts), trials, varying, strict=True)
    ]


def shared_settings(trials: Sequence[TrialResult]) -> dict[str, Any]:
    """Returns the settings that every one of `trials` has with the same value; baselines, which lack most, aside."""
    trials = [trial for trial in trials if not is_baseline(trial.kind)] or trials
    if not trials:
        return {}
    candidates = all_settings(trials[0])
    others = [all_settings(trial) for trial in trials[1:]]
    return {key: value for key, value in candidates.items() if all(other.get(key, ABSENT) == value for other in others)}


def _names(firsts: Sequence[TrialResult]) -> list[str]:
    """Returns one name each: the method's, with as much of data, backbone and settings as tells them apart."""
    names = [trial.method for trial in firsts]
    for attribute in ("backbone", "data"):
        values = [str(getattr(trial, attribute)) for trial in firsts]
        if len(set(values)) > 1:
            names = [
                f"{name} · {value}" if attribute == "data" or reads_model(first.kind) else name
                for name, value, first in zip(names, values, firsts, strict=True)
            ]
    counts = Counter(names)
    for name in [name for name, count in counts.items() if count > 1]:
        alike = [index for index, other in enumerate(names) if other == name]
        shared = shared_settings([firsts[index] for index in alike])
        for index in alike:
            apart = {k: v for k, v in all_settings(firsts[index]).items() if k not in shared}
            names[index] = f"{name} ({', '.join(f'{key} {_short(value)}' for key, value in apart.items())})"
    return _numbered(names)


def _numbered(names: list[str]) -> list[str]:
    counts, seen = Counter(names), Counter[str]()
    result = []
    for name in names:
        seen[name] += 1
        result.append(f"{name} #{seen[name]}" if counts[name] > 1 else name)
    return result


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
