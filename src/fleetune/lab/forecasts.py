"""What each trial and each fleet of a plan is expected to take: a few steps of every kind of trial are made to see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from fleetune.data.tokens import Tokens
from fleetune.engine.backbone import Backbone, load_backbone
from fleetune.engine.fleet import FleetData
from fleetune.engine.footprint import fits, fleet_bytes, trained_bytes
from fleetune.engine.forecast import Forecast, forecast_by_probe, forecast_by_shape, order_bytes, text_bytes
from fleetune.engine.probe import Probe, probe, side_by_side
from fleetune.lab.baseline_forecasts import FleetForecast, Say, forecast_baseline
from fleetune.lab.executors.local import facts_of
from fleetune.lab.inputs import Inputs, candidate_of
from fleetune.lab.plan import FleetPlan, Trial
from fleetune.memory import available_bytes, begin_peak, is_out_of_memory, peak_bytes, used_bytes
from fleetune.runtime import device


def forecast_fleets(
    inputs: Inputs, tokens: Mapping[tuple[str, str], Tokens], say: Say, preparing: int = 0
) -> tuple[FleetForecast, ...]:
    """Returns what each fleet of the plan is expected to take; tells `say` what it looks at.

    Args:
        inputs: The plan and its data.
        tokens: The texts of each data set for each backbone.
        say: Is told what is under way.
        preparing: Peak of memory while the data was read and made tokens, which a run does, too.
    """
    found: dict[int, FleetForecast] = {}
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, fleet in enumerate(inputs.plan.fleets):
        groups.setdefault((fleet.data.name, fleet.backbone, fleet.precision, fleet.reads_model), []).append(number)
    # One backbone after another, so that two never lie in memory together.
    for numbers in groups.values():
        fleets = [inputs.plan.fleets[number] for number in numbers]
        data = {fleet.train_share: _data(inputs, tokens, fleet) for fleet in fleets}
        group = _forecast_group(inputs, fleets, data, say)
        found |= zip(numbers, (_at_least(one, preparing) for one in group), strict=True)
    return tuple(found[number] for number in range(len(inputs.plan.fleets)))


def _at_least(fleet: FleetForecast, peak: int) -> FleetForecast:
    trials = {name: replace(one, peak_bytes=max(one.peak_bytes, peak)) for name, one in fleet.trials.items()}
    return replace(fleet, trials=trials, whole=replace(fleet.whole, peak_bytes=max(fleet.whole.peak_bytes, peak)))


def _data(inputs: Inputs, tokens: Mapping[tuple[str, str], Tokens], fleet: FleetPlan) -> FleetData:
    dataset = inputs.dataset(fleet)
    return FleetData(tokens[fleet.data.name, fleet.backbone.name], dataset.labels, dataset.splits)


def _forecast_group(
    inputs: Inputs, fleets: list[FleetPlan], data: Mapping[float, FleetData], say: Say
) -> list[FleetForecast]:
    """Returns the forecasts of fleets that share data, backbone and precision."""
    import pyarrow.parquet  # noqa: F401  a run writes predictions, and what that loads takes as much as a small backbone

    begin_peak()
    available, before = available_bytes(), used_bytes()
    if not fleets[0].reads_model:
        return [forecast_baseline(fleet.trials[0], inputs.dataset(fleet), None, say) for fleet in fleets]
    num_labels = inputs.dataset(fleets[0]).num_labels
    backbone = load_backbone(fleets[0].backbone, num_labels, fleets[0].precision)
    group = _Group(backbone, data, num_labels, available, before, loading=peak_bytes(), say=say)
    return [
        forecast_baseline(fleet.trials[0], inputs.dataset(fleet), backbone, say)
        if fleet.is_baseline
        else group.forecast(fleet)
        for fleet in fleets
    ]


@dataclass(frozen=True)
class _Group:
    """Fleets that share data, backbone and precision.

    Attributes:
        backbone: The backbone.
        data: The data by share of the training texts.
        num_labels: Number of the classifier's outputs.
        available: Bytes that were free before the backbone was loaded.
        before: Bytes that were in use then.
        loading: Peak of memory while it was.
        say: Is told what is under way.
        probes: What was tried so far, by kind of trial; None where it did not fit.
    """

    backbone: Backbone
    data: Mapping[float, FleetData]
    num_labels: int
    available: int
    before: int
    loading: int
    say: Say
    probes: dict[tuple[object, ...], Probe | None] = field(default_factory=dict)

    def forecast(self, fleet: FleetPlan) -> FleetForecast:
        """Returns what the fleet and its trials are expected to take."""
        together, shape = side_by_side(self.backbone, len(fleet.trials)), self.backbone.shape
        trials = {trial.id: self._forecast_trial(trial, together) for trial in fleet.trials}
        own = {
            trial.id: trained_bytes(shape, trial.method, trial.training) + self._order_bytes(trial)
            for trial in fleet.trials
        }
        peak = max(one.peak_bytes - own[name] for name, one in trials.items()) + sum(own.values())
        whole = Forecast(sum(one.seconds for one in trials.values()), peak)
        return FleetForecast(facts_of(self.backbone, fleet.trials), trials, whole)

    def _forecast_trial(self, trial: Trial, together: int) -> Forecast:
        shape, found = self.backbone.shape, self._probe(trial, together)
        if found is None:
            needed = self.before + fleet_bytes(shape, [candidate_of(trial)], self.available)
            return forecast_by_shape(needed, shape, trial.method, trial.training, self.data[trial.train_share])
        one = forecast_by_probe(found, shape, trial.method, trial.training, self.data[trial.train_share])
        return Forecast(one.seconds, max(one.peak_bytes + self._text_bytes(trial), self.loading))

    def _text_bytes(self, trial: Trial) -> int:
        """Returns what all texts take over the few of a probe; on a GPU they lie in the process, and not there."""
        if device().type != "cpu":
            return 0
        return text_bytes(self.data[trial.train_share], self.num_labels) + self._order_bytes(trial)

    def _order_bytes(self, trial: Trial) -> int:
        return order_bytes(self.data[trial.train_share]) if device().type == "cpu" else 0

    def _probe(self, trial: Trial, together: int) -> Probe | None:
        """Returns what a few steps of a trial of this kind took; None where memory does not suffice to try."""
        key = _kind(trial, self.backbone, together)
        if key not in self.probes:
            self.probes[key] = None
            if fits(self.backbone.shape, [candidate_of(trial)], self.available):
                self.say(f"trying a few steps of {trial.name} on {trial.backbone.name}")
                begin_peak()
                with _unless_out_of_memory():
                    most = self.data[max(self.data)]
                    self.probes[key] = probe(self.backbone, trial.method, trial.training, most, together)
        return self.probes[key]


@contextmanager
def _unless_out_of_memory() -> Iterator[None]:
    """Ends the block where memory runs out in it; other errors pass."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise


def _kind(trial: Trial, backbone: Backbone, together: int) -> tuple[object, ...]:
    """Returns what decides how long a step takes: ranks and rates hardly do."""
    training = trial.training
    sites = tuple(site.name for site in trial.method.sites(backbone.shape))
    drops = training.backbone_dropout, bool(trial.method.settings.get("dropout"))
    memory = training.gradient_checkpointing, training.optimizer
    own = trial.method.virtual_tokens, trial.method.prefix_tokens, trial.method.settings.get("dora")
    installed = str(trial.method.settings) if trial.method.installs else ""
    return trial.method.kind, own, installed, sites, training.batch_size, memory, drops, together
