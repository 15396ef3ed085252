"""`Experiment`: the whole way from a recipe to a comparison and a report, for Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetune.errors import RecipeError, UserError
from fleetune.lab.folder import RunFolder, default_folder
from fleetune.lab.notices import Said, Watch, unwatched
from fleetune.lab.overrides import Document
from fleetune.lab.recipe import Recipe, load_recipe, recipe_from
from fleetune.methods.base import Method

if TYPE_CHECKING:
    import pandas as pd

    from fleetune.compare.summary import Comparison
    from fleetune.lab.check import Check
    from fleetune.lab.executors.base import Executor
    from fleetune.lab.export import ExportReport
    from fleetune.lab.summary import RunSummary

SOURCE = "Experiment"


@dataclass(frozen=True)
class ExperimentResult:
    """What an experiment gave.

    Attributes:
        comparison: Every configuration with its score.
        summary: What was trained, and how fast.
        folder: The run's folder.
        report: The page, None where no trial was finished.
    """

    comparison: Comparison
    summary: RunSummary
    folder: Path
    report: Path | None

    @property
    def frame(self) -> pd.DataFrame:
        """The comparison as a table, best first."""
        return self.comparison.frame()

    def export(
        self,
        to: str | Path,
        trial: str = "best",
        merge: bool = False,
        precision: float | None = None,
        recall: float | None = None,
    ) -> ExportReport:
        """Saves a trial as a bundle with its model card in folder `to`, verified by reloading it; see `export`."""
        return export(self.folder, trial, Path(to), merge, precision, recall)


class Experiment:
    """A comparison of fine-tuning methods.

    Args:
        recipe: A recipe's file, or its tables as a dictionary; all else is then given there.
        data: A data file, the keys of `[data]`, or a data frame, which is kept at once in a file of the run's folder.
        text: Column of the text, or two columns for pairs.
        label: Column of the label, or several 0/1 columns.
        backbone: A folder, hub name or embedded name, or the keys of `[backbone]`.
        methods: Methods such as `LoRA(rank=8)`, or the keys of a `[[method]]` each.
        training: The keys of `[training]`.
        seeds: Number of seeds, or the seeds.
        track: Trackers that show the trials while they train: `wandb`, `mlflow`, `tensorboard`.
        out: The run's folder; `runs/NAME` if absent.

    Raises:
        RecipeError: If a key is unknown or a value is wrong, or a data frame's folder holds other files than a run's.
        DataError: If a data frame has a column that cannot be kept.
        RunError: If the file of a data frame cannot be written, or would be reached by a link.

    Example:
        >>> result = Experiment(data="reviews.csv", text="review", label="sentiment",
        ...                     backbone="embedded:minilm", methods=[LoRA(rank=8), BitFit()]).run()
        >>> result.frame
    """

    def __init__(
        self,
        recipe: str | Path | Mapping[str, Any] | None = None,
        *,
        data: str | Path | Mapping[str, Any] | pd.DataFrame | None = None,
        text: str | Sequence[str] | None = None,
        label: str | Sequence[str] | None = None,
        backbone: str | Path | Mapping[str, Any] = "embedded:minilm",
        methods: Sequence[Method | Mapping[str, Any]] = (),
        training: Mapping[str, Any] | None = None,
        seeds: int | Sequence[int] | None = None,
        track: str | Sequence[str] = (),
        out: str | Path | None = None,
    ) -> None:
        if (recipe is None) == (data is None):
            raise RecipeError("Experiment takes a recipe, or data with methods; got both or neither")
        if recipe is not None and (text or label or methods or training or seeds is not None or track):
            raise RecipeError("Experiment takes everything but out from the recipe; write the rest into its tables")
        self.folder = Path(out) if out is not None else Path("runs") / "experiment"
        if isinstance(recipe, str | Path):
            self.recipe = load_recipe(Path(recipe))
            self.folder = Path(out) if out is not None else default_folder(Path(recipe))
        elif recipe is not None:
            self.recipe = recipe_from(_document(recipe), Path.cwd(), SOURCE)
        else:
            table = _data_table(data, text, label, self.folder)
            document = {
                "data": table,
                "backbone": dict(backbone) if isinstance(backbone, Mapping) else {"model": str(backbone)},
                "training": _training_table(training, seeds),
                "method": [_method_table(method) for method in methods],
                "track": track if isinstance(track, str) else list(track),
            }
            self.recipe = recipe_from(document, Path.cwd(), SOURCE)

    def check(self) -> Check:
        """Returns what a run would be: audits, trials, forecasts, warnings; keeps nothing of the steps it tries."""
        from fleetune.lab.check import check

        return check(self.recipe)

    def run(self, watch: Watch = unwatched, executor: Executor | None = None) -> ExperimentResult:
        """Trains what is not trained yet, and returns the comparison.

        Args:
            watch: Is told what happens.
            executor: Trains the fleets; in this process by default.
        """
        return run_recipe(self.recipe, self.folder, watch, executor, seen_by="python")


def run_recipe(
    recipe: Recipe,
    folder: Path,
    watch: Watch = unwatched,
    executor: Executor | None = None,
    command: str | None = None,
    seen_by: str = "run",
) -> ExperimentResult:
    """Trains `recipe` in `folder`, compares and writes the report.

    Args:
        recipe: What to train.
        folder: The run's folder.
        watch: Is told what happens.
        executor: Trains the fleets; in this process by default.
        command: What the report says repeats the run.
        seen_by: What the ledger notes as the one that looks at scores on test.
    """
    from fleetune.compare.summary import compare
    from fleetune.lab.disk import naming_faults
    from fleetune.lab.results import load_results
    from fleetune.lab.runner import run
    from fleetune.lab.signals import StopRequest
    from fleetune.lab.test_uses import log_scores
    from fleetune.memory import give_back
    from fleetune.report.figures.trial import trial_pictures
    from fleetune.report.html import write_report

    summary = run(recipe, folder, watch, executor, command, trial_pictures)
    # The data of the run is let go before the predictions of all its trials are looked at.
    give_back()
    with naming_faults(folder), StopRequest(RunFolder(folder)):
        results = log_scores(load_results(folder), seen_by)
        page = None
        if any(trial.status == "done" for trial in results.trials):
            watch(Said("writing the report"))
            RunFolder(folder).refuse_linked_report()
            page = write_report(results, RunFolder(folder).report)
        return ExperimentResult(compare(results.trials, cost=results.cost), summary, folder, page)


def export(
    run: Path,
    trial: str,
    to: Path,
    merge: bool = False,
    precision: float | None = None,
    recall: float | None = None,
) -> ExportReport:
    """Saves a trial as a bundle in folder `to`, verified by reloading it, and writes its model card.

    Args:
        run: The run's folder.
        trial: `best`, an id or its beginning, or a configuration's name.
        to: The bundle's folder; it must not exist, or be empty.
        merge: Whether the adapter is merged into a copy of the backbone's weights.
        precision: Precision that each label's threshold is to keep on validation.
        recall: Recall that it is to keep there; one of the two, for several labels a text or for two labels.

    Raises:
        UserError: If it cannot be exported like that.
        ExportMismatchError: If the reloaded bundle gives other logits.
    """
    from fleetune.lab.export import export_trial

    report = export_trial(run, trial, to, merge, precision, recall)
    card = describe(run, to)
    return replace(report, bytes=report.bytes + card.stat().st_size)


def describe(run: Path, bundle: Path, trial: str | None = None) -> Path:
    """Writes the model card of a bundle that comes from `run`, and returns its path.

    Args:
        run: The run's folder.
        bundle: The bundle's folder.
        trial: What the bundle is expected to hold: `best`, an id or its beginning, or a configuration's name.

    Raises:
        UserError: If there is no such bundle or trial, or the bundle holds another.
    """
    from fleetune.bundle.manifest import read_manifest
    from fleetune.compare.summary import compare
    from fleetune.lab.export import choose_trial
    from fleetune.lab.results import load_results
    from fleetune.report.card import write_card

    results = load_results(run)
    held = read_manifest(bundle).training.get("trial")
    if trial is not None and (wanted := choose_trial(results, trial).id) != held:
        raise UserError(f"{bundle} holds trial {held}, and '{trial}' is {wanted}.\nLeave it out, or export that one")
    return write_card(bundle, results, compare(results.trials, cost=results.cost))


def _document(recipe: Mapping[str, Any]) -> Document:
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in recipe.items()}


def _data_table(data: Any, text: Any, label: Any, folder: Path) -> Document:
    if isinstance(data, Mapping):
        table = dict(data)
    elif isinstance(data, str | Path):
        table = {"path": str(data)}
    else:
        # The name of the data is not that of the file, which comes from what it holds.
        table = {"path": str(_as_file(data, RunFolder(folder))), "name": "texts"}
    for key, value in (("text", text), ("label", label)):
        if value is not None:
            table[key] = value if isinstance(value, str) else list(value)
    return table


def _as_file(data: Any, place: RunFolder) -> Path:
    """Returns a file in the run's folder that holds a data frame, so that the run can be repeated; writes it if new."""
    from fleetune.data.frames import keep_frame
    from fleetune.lab.disk import naming_faults

    if not hasattr(data, "to_parquet"):
        raise RecipeError(f"data is a path, the keys of [data], or a data frame; got {type(data).__name__}")
    # The outer one names what is refused above the run's folder.
    with naming_faults(None), naming_faults(place.path):
        place.refuse_foreign()
        place.refuse_links()
        return keep_frame(data, place.path / "data")


def _training_table(training: Mapping[str, Any] | None, seeds: int | Sequence[int] | None) -> Document:
    table = dict(training or {})
    if seeds is not None:
        table["seeds"] = seeds if isinstance(seeds, int) else list(seeds)
    return table


def _method_table(method: Method | Mapping[str, Any]) -> Document:
    if isinstance(method, Method):
        settings = {key: value for key, value in method.settings.items() if value is not None}
        return {"kind": method.kind, **settings}
    return dict(method)
