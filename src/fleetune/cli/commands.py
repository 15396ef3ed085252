"""What each command asks for and prints."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fleetune.cli.output import print_error, print_json, print_line, print_note, print_table
from fleetune.cli.tables import describe_prediction, print_check, print_comparison, print_method, run_line
from fleetune.cli.words import count, number, size
from fleetune.errors import UserError

if TYPE_CHECKING:
    from fleetune.lab.recipe import Recipe

SHOWN_TEXT = 60


def init_recipe(
    file: Path | None,
    out: Path,
    text: list[str] | None,
    label: list[str] | None,
    model: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Looks at a data file and writes a recipe."""
    from fleetune.data.sniff import look
    from fleetune.data.writing import write_text
    from fleetune.lab.init import default_model, only_data_file, render_recipe

    if out.exists() and not force:
        raise UserError(f"{out} exists already.\nType --force to overwrite it, or --out for another place")
    seen = look(file or only_data_file(Path()), _one_or_list(text), _one_or_list(label))
    recipe = render_recipe(seen, out, model or default_model())
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, recipe)
    if as_json:
        print_json(
            {
                "recipe": str(out),
                "records": seen.rows,
                "text": seen.text,
                "label": seen.label,
                "labels": seen.audit.labels if seen.audit else [],
                "problems": seen.problems,
            }
        )
        return
    print_line(f"{seen.path}: {count(seen.rows)} records, {seen.format}{_read_as(seen.encoding, seen.delimiter)}")
    print_line(f"text: {_listed(seen.text)}    label: {_listed(seen.label)}")
    if seen.audit:
        print_line(f"{len(seen.audit.labels)} labels: {', '.join(seen.audit.labels[:12])}")
    for problem in seen.problems:
        print_line(f"- {problem}")
    print_line(f"wrote {out}\nNext: fleetune check {shlex.quote(str(out))}, then fleetune run {shlex.quote(str(out))}")


def check_recipe(recipe: Recipe, path: Path, as_json: bool) -> None:
    """Says what a run of the recipe would be."""
    from fleetune.lab.check import check

    result = check(recipe, print_note)
    if as_json:
        print_json(result.to_json())
        return
    print_check(result)
    print_line(f"Next: fleetune run {shlex.quote(str(path))}")


def run_recipe(recipe: Recipe, path: Path, out: Path | None, executor: str, as_json: bool) -> None:
    """Trains a recipe and says what came of it."""
    from fleetune.cli.progress import watching
    from fleetune.experiment import run_recipe as run_experiment
    from fleetune.lab.folder import default_folder

    if executor != "local":
        known = "ray is not in this version" if executor == "ray" else f"there is no executor '{executor}'"
        raise UserError(f"--executor {executor}: {known}.\nType: --executor local")
    folder = out or default_folder(path)
    command = shlex.join(["fleetune", *sys.argv[1:]])
    with watching() as watch:
        result = run_experiment(recipe, folder, watch, command=command)
    if as_json:
        print_json(result.summary.to_json())
    else:
        print_comparison(result.comparison)
        print_line(run_line(result.summary))
        if result.report is not None:
            print_line(f"report: {result.report}")
        if any(row.scores and not row.is_baseline for row in result.comparison.rows):
            names = [data.name for data in recipe.data]
            wanted = "best" if len(names) == 1 else shlex.quote(names[0])
            print_line(f"Next: fleetune export {shlex.quote(str(folder))} {wanted} --to my-classifier")
    if result.summary.failed:
        hint = f"Type: fleetune status {shlex.quote(str(folder))}"
        print_error(f"{result.summary.failed} trials failed\n{hint}")
        raise typer.Exit(1)


def show_status(folder: Path, as_json: bool) -> None:
    """Says how far a run is."""
    from fleetune.lab.status import read_status

    status = read_status(folder)
    if as_json:
        print_json(status.to_json())
        return
    one_metric = len({trial.metric for trial in status.trials}) < 2
    rows = [
        [
            trial.id,
            f"{trial.name} seed {trial.seed}",
            trial.status,
            f"{trial.step}/{trial.total_steps or '?'}",
            number(trial.loss),
            number(trial.value) if one_metric else f"{number(trial.value)} {trial.metric}",
            trial.reason or "",
        ]
        for trial in status.trials
    ]
    score = status.metric if one_metric else "score"
    print_table(["id", "trial", "status", "step", "loss", f"best {score}", "reason"], rows, right=(3, 4, 5))
    counts = ", ".join(f"{value} {word}" for word, value in status.counts.items() if value)
    doing = "a process works on it now" if status.alive else "no process works on it"
    print_line(f"{counts}; {doing}")
    if not status.alive and status.counts["pending"]:
        print_line(f"To go on: fleetune run {shlex.quote(str(folder / 'recipe.toml'))}")


def show_comparison(folder: Path, metric: str | None, as_json: bool) -> None:
    """Says what may be said of a run's configurations."""
    from fleetune.compare.summary import compare
    from fleetune.lab.results import load_results
    from fleetune.metrics import check_metric

    results = load_results(folder)
    if metric is not None and results.trials:
        first = results.trials[0]
        check_metric(metric, len(first.label_names), first.multi_label)
    comparison = compare(results.trials, metric=metric)
    if as_json:
        print_json(comparison.to_json())
    else:
        print_comparison(comparison)


def write_page(folder: Path, as_json: bool) -> None:
    """Writes the report."""
    from fleetune.lab.folder import RunFolder
    from fleetune.lab.results import load_results
    from fleetune.report.html import write_report

    page = write_report(load_results(folder), RunFolder(folder).report)
    if as_json:
        print_json({"run": str(folder), "report": str(page), "bytes": page.stat().st_size})
    else:
        print_line(f"report: {page}")


def write_two_runs(one: Path, other: Path, out: Path | None, as_json: bool) -> None:
    """Writes the page that puts two runs side by side."""
    from fleetune.lab.folder import RunFolder
    from fleetune.lab.results import load_results
    from fleetune.report.side_by_side import write_side_by_side
    from fleetune.report.words import key

    runs = load_results(one), load_results(other)
    page = write_side_by_side(*runs, out or RunFolder(one).report / f"compare-{key(other.resolve().name)}.html")
    if as_json:
        print_json({"runs": [str(one), str(other)], "report": str(page), "bytes": page.stat().st_size})
    else:
        print_line(f"report: {page}")


def export_bundle(folder: Path, trial: str, to: Path, merge: bool, onnx: bool, as_json: bool) -> None:
    """Saves a bundle."""
    from fleetune.lab.export import export_trial

    if onnx:
        raise UserError("--onnx needs the extra 'onnx' and is not in this version.\nExport without --onnx")
    saved = export_trial(folder, trial, to, merge)
    if as_json:
        print_json(
            {
                "trial": saved.trial,
                "name": saved.name,
                "bundle": str(saved.path),
                "bytes": saved.bytes,
                "max_difference": saved.max_difference,
                "remark": saved.remark,
                "note": saved.note,
            }
        )
        return
    remark = f"; {saved.remark}" if saved.remark else ""
    print_line(f"{saved.name} ({saved.trial}) is in {saved.path}, {size(saved.bytes)}{remark}")
    print_line(f"reloaded: logits differ from the trial's by at most {saved.max_difference:.1e}")
    if saved.note is not None:
        print_line(f"note: {saved.note}")
    print_line(f'Next: fleetune predict {shlex.quote(str(saved.path))} "a text"')


def predict_texts(
    bundle: Path, texts: list[str] | None, file: Path | None, columns: list[str] | None, as_json: bool
) -> None:
    """Says which labels texts have."""
    from fleetune.classifier import TextClassifier
    from fleetune.lab.texts import read_texts

    if texts and file:
        raise UserError("texts and --file were both given; give one of them")
    if not texts and file is None and sys.stdin.isatty():
        raise UserError(f'no texts were given.\nType: fleetune predict {bundle} "a text", or --file FILE')
    classifier = TextClassifier.load(bundle)
    given: Any = texts
    if not given:
        given = read_texts(file, columns) if file is not None else [line.rstrip("\n") for line in sys.stdin]
    predictions = [] if not given else predictions_of(classifier, given)
    if as_json:
        print_json({"predictions": predictions})
        return
    for text, prediction in zip(given, predictions, strict=True):
        shown = text if isinstance(text, str) else " | ".join(text)
        shown = shown if len(shown) <= SHOWN_TEXT else shown[: SHOWN_TEXT - 1] + "…"
        print_line(f"{describe_prediction(prediction)}\t{' '.join(shown.split())}")


def show_methods(model: Path | None, num_labels: int, chosen: str | None, as_json: bool) -> None:
    """Lists methods."""
    from fleetune.lab.catalog import list_methods

    found = list_methods(model, num_labels, chosen)
    if as_json:
        print_json({"methods": [method.to_json() for method in found]})
        return
    for method in found:
        print_method(method)


def predictions_of(classifier: Any, texts: Any) -> list[dict[str, Any]]:
    """Returns label (or labels) and probabilities of each text."""
    names = [str(name) for name in classifier.classes_]
    result: list[dict[str, Any]] = []
    for row in classifier.predict_proba(texts).tolist():
        probabilities = dict(zip(names, row, strict=True))
        if classifier.multi_label:
            given = zip(names, row, classifier.thresholds_, strict=True)
            labels = [name for name, probability, threshold in given if probability >= threshold]
            result.append({"labels": labels, "probabilities": probabilities})
        else:
            result.append({"label": max(names, key=probabilities.__getitem__), "probabilities": probabilities})
    return result


def _read_as(encoding: str, delimiter: str) -> str:
    words = [word for word in (encoding, f"fields apart by {delimiter!r}" if delimiter else "") if word]
    return f", {', '.join(words)}" if words else ""


def _one_or_list(names: Sequence[str] | None) -> str | list[str] | None:
    if not names:
        return None
    return names[0] if len(names) == 1 else list(names)


def _listed(names: str | list[str]) -> str:
    return names if isinstance(names, str) else ", ".join(names)
