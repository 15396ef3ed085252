"""What each trial and each fleet of a plan is expected to take: a few steps of every kind of trial are made to see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fleetune.data.tokens import Tokens
from fleetune.engine.backbone import Backbone, load_backbone
from fleetune.engine.fleet import FleetData, is_out_of_memory
from fleetune.engine.forecast import Forecast, forecast_trial, trained_bytes
from fleetune.engine.probe import Probe, probe, side_by_side
from fleetune.errors import BackboneError
from fleetune.lab.executors.base import BackboneFacts
from fleetune.lab.executors.local import facts_of
from fleetune.lab.inputs import Inputs
from fleetune.lab.plan import FleetPlan, Trial
from fleetune.memory import begin_peak, peak_bytes

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


def forecast_fleets(inputs: Inputs, tokens: Mapping[tuple[str, str], Tokens], say: Say) -> tuple[FleetForecast, ...]:
    """Returns what each fleet of the plan is expected to take; tells `say` what it looks at.

    Args:
        inputs: The plan and its data.
        tokens: The texts of each data set for each backbone.
        say: Is told what is under way.
    """
    found: dict[int, FleetForecast] = {}
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, fleet in enumerate(inputs.plan.fleets):
        groups.setdefault((fleet.data.name, fleet.backbone, fleet.precision), []).append(number)
    # One backbone after another, so that two never lie in memory together.
    for numbers in groups.values():
        fleets = [inputs.plan.fleets[number] for number in numbers]
        data = _data(inputs, tokens, fleets[0])
        found |= zip(numbers, _forecast_group(inputs, fleets, data, say), strict=True)
    return tuple(found[number] for number in range(len(inputs.plan.fleets)))


def _data(inputs: Inputs, tokens: Mapping[tuple[str, str], Tokens], fleet: FleetPlan) -> FleetData:
    dataset = inputs.prepared[fleet.data.name].dataset
    return FleetData(tokens[fleet.data.name, fleet.backbone.name], dataset.labels, dataset.splits)


def _forecast_group(inputs: Inputs, fleets: list[FleetPlan], data: FleetData, say: Say) -> list[FleetForecast]:
    """Returns the forecasts of fleets that share data, backbone and precision."""
    begin_peak()
    num_labels = inputs.prepared[fleets[0].data.name].dataset.num_labels
    backbone = load_backbone(fleets[0].backbone, num_labels, fleets[0].precision)
    loading = peak_bytes()
    probes: dict[tuple[object, ...], Probe] = {}
    return [_forecast_fleet(fleet, backbone, data, probes, loading, say) for fleet in fleets]


def _forecast_fleet(
    fleet: FleetPlan,
    backbone: Backbone,
    data: FleetData,
    probes: dict[tuple[object, ...], Probe],
    loading: int,
    say: Say,
) -> FleetForecast:
    together = side_by_side(backbone, len(fleet.trials))
    trials: dict[str, Forecast] = {}
    for trial in fleet.trials:
        key = _kind(trial, backbone, together)
        if key not in probes:
            say(f"trying a few steps of {trial.name} on {fleet.backbone.name}")
            probes[key] = _probe(trial, backbone, data, together)
        one = forecast_trial(probes[key], together, backbone.shape, trial.method, trial.training, data)
        trials[trial.id] = Forecast(one.seconds, max(one.peak_bytes, loading))
    own = {trial.id: trained_bytes(backbone.shape, trial.method, fleet.precision) for trial in fleet.trials}
    peak = max(one.peak_bytes - own[name] for name, one in trials.items()) + sum(own.values())
    whole = Forecast(sum(one.seconds for one in trials.values()), peak)
    return FleetForecast(facts_of(backbone), trials, whole)


def _probe(trial: Trial, backbone: Backbone, data: FleetData, together: int) -> Probe:
    begin_peak()
    try:
        return probe(backbone, trial.method, trial.training, data, together)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise BackboneError(
            f"'{trial.name}' on {trial.backbone.name}: memory does not suffice for a step, not even text by text.\n"
            "A smaller max_tokens, a smaller model, or a method with fewer parameters needs less"
        ) from None


def _kind(trial: Trial, backbone: Backbone, together: int) -> tuple[object, ...]:
    """Returns what decides the cost of a step: ranks and rates hardly do."""
    sites = tuple(site.name for site in trial.method.sites(backbone.shape))
    return trial.method.kind, sites, trial.training.batch_size, together
