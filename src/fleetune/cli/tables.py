"""How comparisons, checks, methods and predictions look in print."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from fleetune.cli.output import print_line, print_table
from fleetune.cli.words import count, duration, number, size

if TYPE_CHECKING:
    from fleetune.compare.row import Row
    from fleetune.compare.summary import Comparison
    from fleetune.lab.catalog import MethodEntry
    from fleetune.lab.check import Check
    from fleetune.lab.executors.base import BackboneFacts
    from fleetune.lab.plan import FleetPlan
    from fleetune.lab.summary import RunSummary


HELP_WIDTH = 100
SHOWN_CLAIMS = 8


def print_comparison(comparison: Comparison) -> None:
    """Prints rows from best to worst, and what may be said."""
    rows = [
        [
            row.name,
            number(row.mean) if comparison.has_one_metric else f"{number(row.mean)} {row.metric}",
            "–" if row.interval is None else f"{row.interval[0]:.4f} to {row.interval[1]:.4f}",
            str(len(row.scores)),
            count(row.trainable),
            duration(row.seconds),
            size(row.bundle_bytes),
            ", ".join(_remarks(row)),
        ]
        for row in comparison.ranked
    ]
    score = f"{comparison.metric if comparison.has_one_metric else 'score'} on {comparison.split}"
    headings = ["configuration", score, "95 % interval", "seeds", "trainable", "time", "size", ""]
    print_table(headings, rows, right=(1, 3, 4, 5, 6))
    print_line(comparison.verdict.reason)
    for claim in comparison.claims[:SHOWN_CLAIMS]:
        print_line(f"- {claim.text}")
    if len(comparison.claims) > SHOWN_CLAIMS:
        print_line(f"- and {len(comparison.claims) - SHOWN_CLAIMS} more in the report")


def print_check(result: Check) -> None:
    """Prints audits, trials with their forecasts, fleets and warnings."""
    audits = [
        [
            audit.name,
            *(
                count(value)
                for value in (
                    audit.records,
                    audit.accepted,
                    audit.quarantined,
                    audit.duplicates,
                    audit.conflicts,
                    audit.leaks,
                    audit.train,
                    audit.validation,
                    audit.test,
                    audit.truncated,
                )
            ),
        ]
        for audit in result.audits.values()
    ]
    headings = ["data", "records", "accepted", "quarantined", "duplicates", "conflicts", "leaks"]
    print_table([*headings, "train", "validation", "test", "truncated"], audits, right=range(1, 11))
    for audit in result.audits.values():
        print_line(f"labels of {audit.name}: {', '.join(audit.labels)}")
    print_line()
    trials = []
    for trial in result.inputs.plan.trials:
        parameters, forecast = result.inputs.parameters[trial.id], result.forecasts[trial.id]
        trials.append(
            [
                trial.id,
                trial.label,
                trial.data.name,
                trial.backbone.name,
                count(parameters["trainable"]),
                count(parameters["head"]),
                duration(forecast.seconds),
                size(forecast.peak_bytes),
            ]
        )
    headings = ["id", "trial", "data", "backbone", "trainable", "of it head", "time", "memory"]
    print_table(headings, trials, right=(4, 5, 6, 7))
    for fleet, known in zip(result.inputs.plan.fleets, result.fleets, strict=True):
        print_line(
            f"{_fleet_words(fleet, known.facts)}, "
            f"about {size(known.whole.peak_bytes)} of {size(result.memory_bytes)} memory, "
            f"{duration(known.whole.seconds)}"
        )
    for warning in result.warnings:
        print_line(f"warning: {warning}")
    if result.curve_trials:
        full = len(trials) - result.curve_trials
        print_line(f"the learning curve over data size adds {result.curve_trials} trials to {full}")
    print_line(f"{len(trials)} trials, about {duration(result.seconds)} together")


def _fleet_words(fleet: FleetPlan, facts: BackboneFacts) -> str:
    if facts.layout is None:
        return f"{fleet.trials[0].name}: no model"
    return f"fleet of {len(fleet.trials)} on {fleet.backbone.name}: {facts.layout}, {facts.precision}"


def print_method(method: MethodEntry) -> None:
    """Prints a method with its options."""
    print_line(f"{method.kind}: {method.summary}")
    print_line(f"    source: {method.source}")
    for option in method.options:
        value = method.settings.get(option.name, option.value)
        words = f"    ({' | '.join(option.choices)})" if option.choices else ""
        print_line(f"    {option.name} = {'(not set)' if value is None else value}{words}")
        for line in textwrap.wrap(option.help, HELP_WIDTH):
            print_line(f"        {line}")
    if method.parameters is not None:
        counts = method.parameters
        print_line(
            f"    trainable: {counts['trainable']:,} = {counts['adapter']:,} + head {counts['head']:,}; "
            f"model: {counts['total']:,}"
        )
    if method.misfit is not None:
        print_line(f"    does not fit this model: {method.misfit.splitlines()[0]}")
    print_line()


def run_line(summary: RunSummary) -> str:
    """Returns what was trained, and how fast."""
    counts = [f"{summary.done} trained", f"{summary.skipped} done before", f"{summary.failed} failed"]
    words = [", ".join(word for word in counts if not word.startswith("0 ")), f"in {duration(summary.seconds)}"]
    if summary.texts_per_second:
        words.append(f"· {summary.texts_per_second:,.0f} texts/s, {summary.tokens_per_second:,.0f} tokens/s")
    return " ".join(words)


def describe_prediction(prediction: dict[str, Any]) -> str:
    """Returns the label with its probability, or the labels with theirs."""
    probabilities = prediction["probabilities"]
    names = prediction["labels"] if "labels" in prediction else [prediction["label"]]
    return ", ".join(f"{name} {probabilities[name]:.3f}" for name in names) or "no label"


def _remarks(row: Row) -> list[str]:
    remarks = ["baseline"] if row.is_baseline else []
    if row.interval_over == "texts" and not row.is_baseline:
        remarks.append("interval over texts alone")
    if row.tied_with_best:
        remarks.append("not told from the best")
    if row.standing == "ahead":
        remarks.append("better, but not chosen")
    if row.degenerate and row.is_baseline:
        remarks.append("gives every text one answer")
    elif row.degenerate:
        remarks.append(f"learned nothing with {len(row.degenerate)} of {len(row.scores)} seeds")
    if row.configuration.failed:
        remarks.append(f"{len(row.configuration.failed)} failed")
    return remarks
