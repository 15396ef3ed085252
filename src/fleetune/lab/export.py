"""Chooses a trial of a run, and saves it as a bundle that gives the same logits."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fleetune import methods
from fleetune.data.tokens import open_tokens
from fleetune.errors import BackboneError, RunError, UserError
from fleetune.lab.folder import RunFolder
from fleetune.lab.ledger import LedgerReader
from fleetune.lab.plan import trial_label
from fleetune.lab.recipe import load_recipe
from fleetune.lab.results import RunResults, load_results
from fleetune.lab.test_uses import log_test_use
from fleetune.methods import is_baseline
from fleetune.metrics import MINIMISED

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.compare.result import TrialResult
    from fleetune.engine.config import BackboneConfig

BEST = "best"
SAVED = "parameters/"


@dataclass(frozen=True)
class ExportReport:
    """A saved bundle.

    Attributes:
        trial: The trial it holds.
        name: Name of its configuration and its seed.
        path: The bundle's folder.
        max_difference: Largest difference of a logit between the reloaded bundle and the trial.
        bytes: Size of the folder.
        remark: What is to be said of the choice, None where there is nothing: a baseline is better.
        note: What its weights are, where that may surprise.
    """

    trial: str
    name: str
    path: Path
    max_difference: float
    bytes: int
    remark: str | None = None
    note: str | None = None


def choose_trial(results: RunResults, wanted: str) -> TrialResult:
    """Returns the finished trial that `wanted` names: `best`, an id or its beginning, or a configuration's name.

    The best is the best seed on validation of the configuration with the best mean on validation, baselines left out.
    Where a run has several data sets, the name of one stands for the best trial on it.

    Raises:
        UserError: If there is none, more than one begins like that, they are of several data sets, or it is a baseline.
    """
    trial = _named_trial(results, wanted)
    if is_baseline(trial.kind):
        raise UserError(f"'{trial.method}' is a baseline, there to compare with: it trained no classifier to export")
    return trial


def _named_trial(results: RunResults, wanted: str) -> TrialResult:
    finished = [trial for trial in results.trials if trial.status == "done"]
    # Trials on fewer texts are there for a learning curve; one of them is asked for by its id.
    done = [trial for trial in finished if trial.train_share >= 1.0]
    if not done:
        raise UserError(f"{results.folder} has no finished trial yet.\nType: fleetune status {results.folder}")
    if wanted == BEST:
        trained = [trial for trial in done if not is_baseline(trial.kind)]
        return _best_of_one_data_set(trained or done, wanted)
    named = [trial for trial in done if wanted in (trial.method, f"{trial.method} seed {trial.seed}")]
    named = named or [trial for trial in done if trial.data == wanted and not is_baseline(trial.kind)]
    if named:
        return _best_of_one_data_set(named, wanted)
    matching = [trial for trial in finished if trial.id.startswith(wanted)]
    if len(matching) == 1:
        return matching[0]
    if len(matching) > 1:
        raise UserError(f"{len(matching)} trials begin with '{wanted}': {', '.join(trial.id for trial in matching)}")
    names = [name for trial in finished for name in (trial.id, trial.method)]
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"type: fleetune status {results.folder}"
    raise UserError(f"no finished trial is called '{wanted}'; {hint}")


def export_trial(run: Path, trial_id: str, to: Path, merge: bool = False) -> ExportReport:
    """Saves a trial as a bundle in folder `to`, and reloads it to compare its logits.

    Args:
        run: The run's folder.
        trial_id: What `choose_trial` takes.
        to: The bundle's folder; it must not exist, or be empty.
        merge: Whether the adapter is merged into a copy of the backbone's weights.

    Raises:
        UserError: If there is no such trial, the backbone has changed since, or `to` is taken.
        ExportMismatchError: If the reloaded bundle gives other logits.
    """
    from fleetune.bundle import save_bundle
    from fleetune.engine.backbone import load_backbone, load_tokenizer

    results = load_results(run)
    trial = choose_trial(results, trial_id)
    recipe = load_recipe(RunFolder(run).recipe)
    data = next(config for config in recipe.data if config.name == trial.data)
    with LedgerReader(run) as ledger:
        meta = ledger.meta()
    facts = meta["backbones"][trial.id]
    config = next(config for config in recipe.backbones if config.name == trial.backbone)
    backbone = load_backbone(config, len(trial.label_names), "fp32")
    if backbone.model_hash != facts["model_hash"]:
        raise BackboneError(
            f"{config.model} is not the model that {trial.id} was trained on: its checksum differs.\n"
            "Put the old one back, or train again"
        )
    difference = save_bundle(
        to,
        backbone,
        methods.get(trial.kind)(**trial.settings),
        _best_tensors(RunFolder(run).trials / trial.id),
        trial.label_names,
        multi_label=trial.multi_label,
        pairs=meta["data"][trial.data]["pairs"],
        max_tokens=data.max_tokens,
        long_texts=data.cutting,
        training=_training_summary(results, trial),
        thresholds=None if trial.final_thresholds is None else trial.final_thresholds.tolist(),
        tokenizer=load_tokenizer(config),
        precision=trial.precision,
        probe=open_tokens(run / facts["tokens"]),
        merge=merge,
    )
    if len(trial.predictions.get("test", ((), ()))[0]):
        log_test_use(run, "export", trial.metric, 1)
    size = sum(file.stat().st_size for file in to.rglob("*") if file.is_file())
    name = trial_label(trial.method, trial.seed, trial.train_share)
    remark = _better_baseline(results, trial) if trial_id in (BEST, trial.data) else None
    return ExportReport(trial.id, name, to, difference or 0.0, size, remark, _note(config, merge))


def _note(config: BackboneConfig, merge: bool) -> str | None:
    if config.quantize == "none":
        return None
    if merge:
        return f"the merged weights are those that {config.quantize} rounded, in full precision"
    return f"the adapter belongs to weights rounded by {config.quantize}; whoever loads it has to round them so too"


def validation_score(trial: TrialResult) -> float:
    """Returns the trial's metric at its best evaluation on validation, larger is better; -inf where it has none."""
    sign = -1.0 if trial.metric in MINIMISED else 1.0
    values = [entry["metrics"].get(trial.metric, math.nan) for entry in trial.history if entry["best"]]
    return sign * values[-1] if values and math.isfinite(values[-1]) else -math.inf


def _best_of_one_data_set(trials: list[TrialResult], wanted: str) -> TrialResult:
    """Returns the best trial; scores on different texts, or by different metrics, rank nothing."""
    data = list(dict.fromkeys(trial.data for trial in trials))
    if len(data) > 1:
        raise UserError(
            f"'{wanted}' is of {len(data)} data sets, whose scores cannot be compared.\n"
            f"Name one, for its best trial ({', '.join(data)}), or a trial's id"
        )
    return _best(trials)


def _best(done: list[TrialResult]) -> TrialResult:
    groups: dict[tuple[str, ...], list[TrialResult]] = {}
    for trial in done:
        groups.setdefault(trial.configuration, []).append(trial)
    best_group = max(groups.values(), key=lambda group: fmean(validation_score(trial) for trial in group))
    return max(best_group, key=validation_score)


def _better_baseline(results: RunResults, chosen: TrialResult) -> str | None:
    """Returns a remark where a baseline on the same data is better on validation than the chosen seeds' mean."""
    done = [
        trial
        for trial in results.trials
        if trial.status == "done" and trial.data == chosen.data and trial.train_share == chosen.train_share
    ]
    own = fmean(validation_score(trial) for trial in done if trial.configuration == chosen.configuration)
    best = max((trial for trial in done if is_baseline(trial.kind)), key=validation_score, default=None)
    if best is None or validation_score(best) <= own:
        return None
    against = f"{abs(validation_score(best)):.4f} against {abs(own):.4f}"
    return f"the baseline {best.method} is better on validation: mean {best.metric} {against}"


def _best_tensors(folder: Path) -> dict[str, Tensor]:
    """Returns a trial's trained tensors at its best evaluation, or the last ones where it had none."""
    from fleetune.engine.checkpoint import load_checkpoint

    best = load_checkpoint(folder / "best")
    if best is not None:
        return best[0]
    last = load_checkpoint(folder / "last")
    if last is None:
        raise RunError(f"{folder} has no checkpoint.\nRun the recipe again to make it")
    return {name.removeprefix(SAVED): tensor for name, tensor in last[0].items() if name.startswith(SAVED)}


def _training_summary(results: RunResults, trial: TrialResult) -> dict[str, Any]:
    scores = {
        split: {name: value for name, value in trial.scores(split).items() if math.isfinite(value)}
        for split in trial.predictions
    }
    return {
        "run": results.name,
        "trial": trial.id,
        "name": trial.method,
        "data": trial.data,
        "seed": trial.seed,
        "metric": trial.metric,
        "scores": scores,
        "best_step": trial.best_step,
        "seconds": trial.seconds,
        "training": trial.training,
        "packages": results.environment.get("packages", {}),
    }
