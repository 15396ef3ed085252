"""What a baseline is expected to take: it is tried on an even sample of the texts."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from fleetune.data.dataset import Dataset
from fleetune.engine.backbone import Backbone, load_tokenizer
from fleetune.engine.baselines import run_baseline
from fleetune.engine.forecast import Forecast
from fleetune.engine.trial import TrialSpec
from fleetune.engine.zero_shot import FrozenModel
from fleetune.lab.executors.base import BackboneFacts
from fleetune.lab.executors.local import NO_MODEL, facts_of
from fleetune.lab.plan import Trial
from fleetune.memory import peak_bytes
from fleetune.methods.baseline import Baseline

Say = Callable[[str], None]


@dataclass(frozen=True)
class FleetForecast:
    """What is known of a fleet before it trains.

    Attributes:
        facts: What loading its backbone found out.
        trials: By trial id.
        whole: Of the fleet: its time, and its memory with all its trials.
    """

    facts: BackboneFacts
    trials: dict[str, Forecast]
    whole: Forecast


def forecast_baseline(trial: Trial, dataset: Dataset, backbone: Backbone | None, say: Say) -> FleetForecast:
    """Returns what a baseline's trial is expected to take: of a sample's time as many times as it is contained.

    Args:
        trial: The trial.
        dataset: Its texts.
        backbone: Its backbone, where it reads one.
        say: Is told what is under way.
    """
    assert isinstance(trial.method, Baseline)
    say(f"trying {trial.name} on some of the texts")
    spec = TrialSpec(trial.id, trial.method, trial.training, trial.seed)
    model = None
    if backbone is not None:
        model = FrozenModel(backbone, load_tokenizer(trial.backbone), trial.data.max_tokens)
    step = max(1, len(dataset) // trial.method.tried_texts)
    sample = replace(dataset, splits={split: rows[::step] for split, rows in dataset.splits.items()})
    # What is loaded at the first call, such as scikit-learn, is not to be counted with every text.
    few = replace(dataset, splits={split: rows[:: step * 16] for split, rows in dataset.splits.items()})
    _try(spec, few, model)
    started = time.monotonic()
    _try(spec, sample, model)
    share = sum(map(len, dataset.splits.values())) / max(1, sum(map(len, sample.splits.values())))
    forecast = Forecast((time.monotonic() - started) * share, peak_bytes())
    return FleetForecast(NO_MODEL if backbone is None else facts_of(backbone), {trial.id: forecast}, forecast)


def _try(spec: TrialSpec, dataset: Dataset, model: FrozenModel | None) -> None:
    """Does what the trial would do with these texts; what the system refuses it is said when it is trained."""
    with suppress(OSError):
        list(run_baseline(spec, dataset, model))
