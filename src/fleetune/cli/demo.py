"""Tells the whole story: data, trials, comparison, report, bundle, predictions."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fleetune.cli.commands import predictions_of
from fleetune.cli.output import print_json, print_line
from fleetune.cli.tables import describe_prediction, print_comparison
from fleetune.cli.words import duration

if TYPE_CHECKING:
    from fleetune.experiment import ExperimentResult
    from fleetune.lab.export import ExportReport
    from fleetune.lab.recipe import Recipe

BUNDLE = "best"
Say = Callable[[str], None]


def tell(out: Path, as_json: bool) -> None:
    """Runs the demonstration in `out`; with `as_json` it prints one object at the end and nothing before."""
    from fleetune.cli.progress import watching
    from fleetune.experiment import run_recipe
    from fleetune.lab.demo import TEXTS, demo_recipe

    recipe = demo_recipe()
    if not as_json:
        _introduce(recipe, print_line)
    with watching() as watch:
        result = run_recipe(recipe, out, watch, command=f"fleetune demo --out {shlex.quote(str(out))}")
    if not as_json:
        _sum_up(result, print_line)
    bundle = out / BUNDLE
    shutil.rmtree(bundle, ignore_errors=True)
    saved = result.export(bundle)

    from fleetune.classifier import TextClassifier

    predictions = predictions_of(TextClassifier.load(bundle), list(TEXTS))
    if as_json:
        print_json(
            {
                **result.summary.to_json(),
                "report": str(result.report),
                "bundle": str(saved.path),
                "best": saved.name,
                "comparison": result.comparison.to_json(),
                "predictions": predictions,
            }
        )
        return
    _show_bundle(saved, print_line)
    for text, prediction in zip(TEXTS, predictions, strict=True):
        print_line(f"    {describe_prediction(prediction):<16}  {text}")
    print_line(f"\nThe report, one page that works offline: {result.report}")
    print_line("Next:")
    print_line(f'    fleetune predict {shlex.quote(str(bundle))} "your own text"')
    print_line("    fleetune init YOUR_FILE.csv")


def _introduce(recipe: Recipe, say: Say) -> None:
    kinds = [entry.kind for entry in recipe.methods]
    seeds = len(recipe.methods[0].seeds)
    say("Which small fine-tune should be shipped, and is the difference real?")
    say(
        f"{recipe.data[0].sample:,} tweets that are negative, neutral or positive; a frozen MiniLM encoder; "
        f"{len(kinds)} ways to fine-tune it\n({', '.join(kinds)}), each with {seeds} seeds. "
        "Trials that can, train side by side over one frozen backbone."
    )


def _sum_up(result: ExperimentResult, say: Say) -> None:
    summary = result.summary
    trained = f"{summary.done} trials in {duration(summary.seconds)}"
    speed = "" if summary.texts_per_second is None else f", {summary.texts_per_second:,.0f} texts a second"
    say(f"\n{trained}{speed}. The test texts, which no trial has seen:\n")
    print_comparison(result.comparison)


def _show_bundle(saved: ExportReport, say: Say) -> None:
    say(f"\nThe best on validation is {saved.name}; it is saved in {saved.path}, and")
    say(f"reloaded it gives the same logits (to {saved.max_difference:.0e}). It reads:")
