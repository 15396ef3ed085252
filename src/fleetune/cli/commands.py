"""What each command asks for and prints."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from fleetune.cli.output import print_error, print_json, print_line, print_note, print_table
from fleetune.cli.tables import describe_prediction, print_check, print_comparison, print_method, run_line
from fleetune.cli.words import count, number
from fleetune.errors import UserError

if TYPE_CHECKING:
    from fleetune.compare.summary import Comparison
    from fleetune.lab.recipe import Recipe
    from fleetune.lab.results import RunResults

SHOWN_TEXT = 60
Word = TypeVar("Word", bound=str)


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
    from fleetune.lab.init import default_model, in_a_line, only_data_file, render_recipe

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
    # A name with a line break would print lines of its own.
    read_as = f"{seen.format}{_read_as(seen.encoding, seen.delimiter)}"
    print_line(f"{in_a_line(str(seen.path))}: {count(seen.rows)} records, {read_as}")
    print_line(f"text: {_listed(seen.text)}    label: {_listed(seen.label)}")
    if seen.audit:
        print_line(f"{len(seen.audit.labels)} labels: {', '.join(seen.audit.labels[:12])}")
    for problem in seen.problems:
        print_line(f"- {problem}")
    typed = in_a_line(shlex.quote(str(out)))
    print_line(f"wrote {in_a_line(str(out))}\nNext: fleetune check {typed}, then fleetune run {typed}")


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
        for name in _to_ship(result.comparison):
            print_line(f"Next: fleetune export {shlex.quote(str(folder))} {shlex.quote(name)} --to my-classifier")
    if result.summary.failed:
        hint = f"Type: fleetune status {shlex.quote(str(folder))}"
        print_error(f"{result.summary.failed} trials failed\n{hint}")
        raise typer.Exit(1)


def _to_ship(comparison: Comparison) -> list[str]:
    """Returns what `export` takes for the recommended configuration; of several data sets, the name of the first."""
    if comparison.verdict.recommended is not None:
        return [comparison.row(comparison.verdict.recommended).configuration.first.method]
    data = list(dict.fromkeys(row.configuration.first.data for row in comparison.rows if row.is_judged))
    return data[:1] if len(comparison.references) > 1 else []


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
            trial.label,
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


@dataclass(frozen=True)
class Asked:
    """What was asked of a comparison, as it was typed."""

    metric: str | None = None
    cost: str | None = None
    pairs: str = "chosen"

    def comparison(self, results: RunResults) -> Comparison:
        """Returns the comparison.

        Raises:
            UserError: If a word is not known, or the metric is not defined for the labels.
        """
        from fleetune.compare.costs import COSTS
        from fleetune.compare.summary import PAIRS, compare
        from fleetune.metrics import check_metric

        cost, pairs = one_of(self.cost or results.cost, COSTS, "--cost"), one_of(self.pairs, PAIRS, "--pairs")
        if self.metric is not None and results.trials:
            first = results.trials[0]
            check_metric(self.metric, len(first.label_names), first.multi_label)
        return compare(results.trials, metric=self.metric, cost=cost, pairs=pairs)


def show_comparison(folder: Path, asked: Asked, as_json: bool, table: str | None = None) -> None:
    """Says what may be said of a run's configurations; as a `table` for other programs, where one is asked for."""
    if table is not None and as_json:
        raise UserError("--format and --json were both given; --json is a format of its own.\nGive one of them")
    from fleetune.lab.results import load_results
    from fleetune.lab.test_uses import log_scores

    results = load_results(folder)
    comparison = asked.comparison(results)
    log_scores(results, "compare", asked.metric)
    if as_json:
        print_json(comparison.to_json())
    elif table is not None:
        from fleetune.report.tables import as_table

        print_line(as_table(comparison, table).rstrip("\n"))
    else:
        print_comparison(comparison)


def write_page(folder: Path, asked: Asked, as_json: bool) -> None:
    """Writes the report."""
    from fleetune.lab.folder import RunFolder
    from fleetune.lab.results import load_results
    from fleetune.lab.test_uses import log_scores
    from fleetune.report.html import write_report

    results = load_results(folder)
    # Before the look at scores is noted: without a page there is none.
    RunFolder(folder).refuse_linked_report()
    comparison = asked.comparison(results)
    page = write_report(log_scores(results, "report"), RunFolder(folder).report, comparison=comparison)
    if as_json:
        print_json({"run": str(folder), "report": str(page), "bytes": page.stat().st_size})
    else:
        print_line(f"report: {page}")


def write_two_runs(one: Path, other: Path, out: Path | None, as_json: bool) -> None:
    """Writes the page that puts two runs side by side."""
    from fleetune.lab.folder import RunFolder
    from fleetune.lab.results import load_results
    from fleetune.lab.test_uses import log_scores
    from fleetune.report.side_by_side import write_side_by_side
    from fleetune.report.words import key

    if out is None:
        RunFolder(one).refuse_linked_report()
    runs = log_scores(load_results(one), "report"), log_scores(load_results(other), "report")
    page = write_side_by_side(*runs, out or RunFolder(one).report / f"compare-{key(other.resolve().name)}.html")
    if as_json:
        print_json({"runs": [str(one), str(other)], "report": str(page), "bytes": page.stat().st_size})
    else:
        print_line(f"report: {page}")


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
            label = max(names, key=probabilities.__getitem__)
            if classifier.positive_threshold_ is not None:
                label = names[int(row[1] >= classifier.positive_threshold_)]
            result.append({"label": label, "probabilities": probabilities})
    return result


def _read_as(encoding: str, delimiter: str) -> str:
    words = [word for word in (encoding, f"fields apart by {delimiter!r}" if delimiter else "") if word]
    return f", {', '.join(words)}" if words else ""


def one_of(word: str, known: Sequence[Word], option: str) -> Word:
    """Returns the one of the `known` words that was typed.

    Raises:
        UserError: If it is none of them.
    """
    for one in known:
        if one == word:
            return one
    raise UserError(f"{option} {word} is not known; expected one of: {', '.join(known)}")


def _one_or_list(names: Sequence[str] | None) -> str | list[str] | None:
    if not names:
        return None
    return names[0] if len(names) == 1 else list(names)


def _listed(names: str | list[str]) -> str:
    return names if isinstance(names, str) else ", ".join(names)
