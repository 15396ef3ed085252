"""Chooses a trial of a run, and saves it as a bundle that gives the same logits."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fleetune import methods
from fleetune.calibration import calibrated_thresholds
from fleetune.compare.calibration import TrialPoint, WishKind, bundle_scores, temperature_of, trial_points
from fleetune.data.tokens import open_tokens
from fleetune.errors import BackboneError, RunError, UserError
from fleetune.lab.folder import RunFolder
from fleetune.lab.frozen import frozen_recipe
from fleetune.lab.kept_files import refuse_damaged
from fleetune.lab.ledger import LedgerReader
from fleetune.lab.plan import trial_label
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
        temperature: What logits are divided by, fitted on validation.
        points: Where a precision or recall was wished, what each label's threshold reaches on validation and test.
    """

    trial: str
    name: str
    path: Path
    max_difference: float
    bytes: int
    remark: str | None = None
    note: str | None = None
    temperature: float = 1.0
    points: tuple[TrialPoint, ...] = ()


@dataclass(frozen=True)
class _Decisions:
    """How the bundle's classifier decides.

    Attributes:
        temperature: What logits are divided by.
        thresholds: For calibrated probabilities, one a label, if multi-label.
        positive_threshold: Of two labels, from which calibrated probability the second is given.
        points: What was wished of each label's threshold, and what it reaches.
    """

    temperature: float
    thresholds: NDArray[np.float64] | None
    positive_threshold: float | None = None
    points: tuple[TrialPoint, ...] = ()


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


def export_trial(
    run: Path,
    trial_id: str,
    to: Path,
    merge: bool = False,
    precision: float | None = None,
    recall: float | None = None,
) -> ExportReport:
    """Saves a trial as a bundle in folder `to`, and reloads it to compare its logits.

    Args:
        run: The run's folder.
        trial_id: What `choose_trial` takes.
        to: The bundle's folder; it must not exist, or be empty.
        merge: Whether the adapter is merged into a copy of the backbone's weights.
        precision: Precision that each label's threshold is to keep on validation.
        recall: Recall that it is to keep there; one of the two, for several labels a text or for two labels.

    Raises:
        UserError: If there is no such trial, the backbone has changed since, `to` is taken, or the trial's labels have
            no threshold.
        ExportMismatchError: If the reloaded bundle gives other logits.
    """
    from fleetune.bundle import save_bundle
    from fleetune.engine.backbone import load_backbone, load_tokenizer

    results = load_results(run)
    trial = choose_trial(results, trial_id)
    decisions = _decisions(trial, precision, recall)
    with LedgerReader(run) as ledger:
        refuse_damaged(ledger, run, trial.id, ["best", "last"])
        meta = ledger.meta()
    recipe = frozen_recipe(RunFolder(run), meta)
    data = next(config for config in recipe.data if config.name == trial.data)
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
        training=_training_summary(results, trial, decisions),
        thresholds=None if decisions.thresholds is None else decisions.thresholds.tolist(),
        positive_threshold=decisions.positive_threshold,
        temperature=decisions.temperature,
        tokenizer=load_tokenizer(config),
        precision=trial.precision,
        probe=open_tokens(run / facts["tokens"]),
        merge=merge,
    )
    if len(trial.labels("test")):
        log_test_use(run, "export", trial.metric, 1)
    size = sum(file.stat().st_size for file in to.rglob("*") if file.is_file())
    name = trial_label(trial.method, trial.seed, trial.train_share)
    remark = _better_baseline(results, trial) if trial_id in (BEST, trial.data) else None
    note = _note(config, merge)
    return ExportReport(
        trial.id, name, to, difference or 0.0, size, remark, note, decisions.temperature, decisions.points
    )


def _decisions(trial: TrialResult, precision: float | None, recall: float | None) -> _Decisions:
    """Returns how the bundle decides: as the trial did, but for labels whose threshold keeps what is wished."""
    temperature = temperature_of(trial)
    thresholds = trial.final_thresholds
    if thresholds is not None:
        thresholds = calibrated_thresholds(thresholds, temperature)
    if precision is None and recall is None:
        return _Decisions(temperature, thresholds)
    points = tuple(trial_points(trial, "test", [_checked_wish(trial, precision, recall)]))
    found = [point.threshold for point in points]
    if thresholds is None:
        return _Decisions(temperature, None, found[0], points)
    kept = [own if new is None else new for own, new in zip(thresholds, found, strict=True)]
    return _Decisions(temperature, np.array(kept), None, points)


def _checked_wish(trial: TrialResult, precision: float | None, recall: float | None) -> tuple[WishKind, float]:
    """Returns what is wished and how much of it.

    Raises:
        UserError: If both are wished, it is no share, or there is no threshold that could keep it.
    """
    if precision is not None and recall is not None:
        raise UserError(
            "a precision and a recall were both wished; a threshold keeps one of them.\nGive one of the two"
        )
    kind: WishKind = "recall" if precision is None else "precision"
    value = precision if precision is not None else recall
    assert value is not None
    if not 0.0 < value <= 1.0:
        raise UserError(f"--{kind} {value:g} is no share; a number above 0 and up to 1 was expected, such as 0.9")
    if not trial.multi_label and len(trial.label_names) != 2:
        raise UserError(
            f"--{kind} needs a threshold, and with {len(trial.label_names)} labels of which a text has one there is "
            f"none: the most probable is given.\nExport without --{kind}"
        )
    if not len(trial.labels("validation")):
        raise UserError(f"--{kind} needs validation texts to find a threshold on, and this run has none")
    return kind, value


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


def _training_summary(results: RunResults, trial: TrialResult, decisions: _Decisions) -> dict[str, Any]:
    scores = {
        split: {name: value for name, value in _scores(trial, split, decisions).items() if math.isfinite(value)}
        for split in trial.predictions
    }
    wish = {decisions.points[0].wish: decisions.points[0].wished} if decisions.points else {}
    return {
        "run": results.name,
        "trial": trial.id,
        "name": trial.method,
        "data": trial.data,
        "seed": trial.seed,
        "metric": trial.metric,
        "scores": scores,
        "wished": wish,
        "best_step": trial.best_step,
        "seconds": trial.seconds,
        "training": trial.training,
        "packages": results.environment.get("packages", {}),
    }


def _scores(trial: TrialResult, split: str, decisions: _Decisions) -> dict[str, float]:
    """Returns the metrics of the bundle; tuned thresholds judge validation cross-fitted, as everywhere."""
    thresholds = decisions.thresholds if decisions.points or split != "validation" else None
    return bundle_scores(trial, split, decisions.temperature, thresholds, decisions.positive_threshold)
