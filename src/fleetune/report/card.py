"""The model card of a bundle: a README.md as the Hugging Face hub reads it, its metadata first."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fleetune.bundle.manifest import Manifest, read_manifest
from fleetune.compare.result import TrialResult
from fleetune.data.writing import write_text
from fleetune.engine.embedded import PREFIX
from fleetune.errors import UserError
from fleetune.report import words
from fleetune.report.card_code import how_to_use
from fleetune.report.card_scores import Result, hub_name, metadata, results_of, title_of
from fleetune.report.markdown import code, code_block, escaped, table_row

if TYPE_CHECKING:
    from jinja2 import Environment

    from fleetune.compare.summary import Comparison
    from fleetune.report.html import Run

CARD = "README.md"
TEMPLATE = "card.md.j2"
MAX_LABELS = 200


def write_card(bundle: Path, run: Run | None = None, comparison: Comparison | None = None) -> Path:
    """Writes the model card of the bundle in folder `bundle`, and returns its path.

    Args:
        bundle: The bundle's folder.
        run: The run that it comes from; without it, the card says what the bundle knows of itself.
        comparison: The comparison of that run.

    Raises:
        BundleError: If the folder is no bundle.
        UserError: If the bundle comes from no trial of that run.
    """
    path = bundle / CARD
    write_text(path, render_card(read_manifest(bundle), run, comparison))
    return path


def render_card(manifest: Manifest, run: Run | None = None, comparison: Comparison | None = None) -> str:
    """Returns the card's text; see `write_card`."""
    trial = None if run is None else _trial_of(manifest, run)
    siblings = [] if run is None or trial is None else _siblings(run, trial)
    split = "test" if "test" in manifest.training.get("scores", {}) else "validation"
    results = results_of(manifest, siblings, split)
    data = metadata(manifest, run, results, split)
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            metadata=data.to_yaml(),
            title=title_of(manifest),
            facts=_facts(manifest, trial),
            manifest=manifest,
            usage=how_to_use(manifest),
            labels=_labels(manifest, trial, split),
            unlisted=max(0, len(manifest.labels) - MAX_LABELS),
            results=[_result_line(result) for result in results],
            split=split,
            about_results=_about_results(manifest, trial, siblings, split),
            wished=manifest.training.get("wished", {}),
            audit=_audit_facts(run, trial),
            settings=_settings(manifest, trial),
            limitations=_limitations(manifest, trial, siblings, comparison, split),
            command="" if run is None else run.command,
            recipe="" if run is None else words.without_folders(run.recipe_text),
            packages=_packages(manifest),
        )
    )


def _trial_of(manifest: Manifest, run: Run) -> TrialResult:
    wanted = manifest.training.get("trial")
    for trial in run.trials:
        if trial.id == wanted:
            return trial
    raise UserError(
        f"the bundle holds trial {wanted}, which run '{run.name}' does not have.\nGive the run it comes from"
    )


def _siblings(run: Run, trial: TrialResult) -> list[TrialResult]:
    same = [other for other in run.trials if other.configuration == trial.configuration and other.status == "done"]
    return [other for other in same if other.train_share == trial.train_share]


def _result_line(result: Result) -> list[str]:
    interval = words.DASH if result.interval is None else " to ".join(map(words.score, result.interval))
    return [words.metric_title(result.metric), words.score(result.value), words.score(result.mean), interval]


def _about_results(manifest: Manifest, trial: TrialResult | None, siblings: Sequence[TrialResult], split: str) -> str:
    texts = _texts(trial, split)
    sentences = [f"On {texts:,} texts of {split}." if texts else f"On {split}."]
    if siblings:
        seeds = f"{len(siblings)} {'seed' if len(siblings) == 1 else 'seeds'}"
        own = " and the thresholds of its training" if manifest.training.get("wished") else ""
        sentences.append(
            f"The mean is over {seeds} of the same configuration, each with its own temperature{own}; the interval is "
            "95 %, over seeds and texts."
        )
    return " ".join(sentences)


def _facts(manifest: Manifest, trial: TrialResult | None) -> list[tuple[str, Any]]:
    method, backbone = manifest.method, manifest.backbone
    how = dict(method.trained_as or {"kind": method.kind, **method.settings})
    kind = how.pop("kind")
    settings = "; ".join(f"{key} {words.setting(value)}" for key, value in how.items())
    facts = [
        ("method", f"{kind} ({method.source})"),
        ("settings of the method", settings or "none"),
        ("backbone", f"{_shown_model(manifest)}{f' at {backbone.revision}' if backbone.revision else ''}"),
        ("SHA-256 of the backbone", code(backbone.hash)),
        ("architecture", backbone.model_type),
        ("labels", f"{len(manifest.labels):,}; a text has {'any number of them' if manifest.multi_label else 'one'}"),
        ("texts", "pairs" if manifest.pairs else "single"),
        ("longest text", f"{manifest.max_tokens} tokens; of longer ones: {_cut(manifest)}"),
    ]
    if backbone.quantize != "none":
        facts.append(("weights of the backbone", f"rounded by {backbone.quantize}"))
    if trial is not None and trial.parameters:
        head = trial.parameters.get("head", 0)
        facts.append(("trained parameters", f"{trial.parameters['trainable']:,}, of them {head:,} in the head"))
    return facts


def _shown_model(manifest: Manifest) -> str:
    """Returns the backbone's name; of a folder the last part alone, for where it lay is nobody's business."""
    name = manifest.backbone.model
    return name if hub_name(manifest) or name.startswith(PREFIX) else re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def _cut(manifest: Manifest) -> str:
    match manifest.long_texts.long_texts:
        case "head":
            return "the beginning"
        case "head_tail":
            return "beginning and end"
        case _:
            return f"overlapping windows, at most {manifest.long_texts.max_windows}"


def _labels(manifest: Manifest, trial: TrialResult | None, split: str) -> list[list[Any]]:
    """Returns a line a label: name, threshold, and on `split` precision, recall, F1 and number of texts."""
    scores = _scores_by_label(manifest, trial, split)
    lines = []
    for place, label in enumerate(manifest.labels[:MAX_LABELS]):
        threshold = manifest.thresholds[place] if manifest.thresholds else None
        if manifest.positive_threshold is not None and place == 1:
            threshold = manifest.positive_threshold
        line: list[Any] = [label, words.DASH if threshold is None else f"{threshold:.3f}"]
        if scores:
            own = scores[label]
            line += [*(words.score(own[name]) for name in ("precision", "recall", "f1")), words.integer(own["support"])]
        lines.append(line)
    return lines


def _scores_by_label(manifest: Manifest, trial: TrialResult | None, split: str) -> dict[str, dict[str, float]]:

    from fleetune.calibration import calibrated_probabilities
    from fleetune.metrics import per_label_metrics

    if trial is None or not _texts(trial, split):
        return {}
    labels, logits = trial.predictions[split]
    probabilities = calibrated_probabilities(logits, manifest.temperature, manifest.multi_label)
    if manifest.positive_threshold is not None:
        given = probabilities[:, 1] >= manifest.positive_threshold
        probabilities = np.stack([1.0 - given, given], axis=1)
    thresholds = None if manifest.thresholds is None else np.array(manifest.thresholds)
    return per_label_metrics(labels, probabilities, manifest.labels, thresholds)


def _texts(trial: TrialResult | None, split: str) -> int:
    return 0 if trial is None or split not in trial.predictions else len(trial.labels(split))


def _audit_facts(run: Run | None, trial: TrialResult | None) -> list[tuple[str, str]]:
    if run is None or trial is None:
        return []
    audit = next((one for one in run.audits if one.get("name") == trial.data), {})
    names = ("records", "accepted", "quarantined", "duplicates", "conflicts", "leaks", "train", "validation", "test")
    facts = [(name, words.integer(audit[name])) for name in (*names, "truncated") if audit.get(name) is not None]
    counts = audit.get("class_counts", {}).get("train", {})
    shown = list(counts.items())[:MAX_LABELS]
    if shown:
        facts.append(("training texts by label", ", ".join(f"{name}: {count:,}" for name, count in shown)))
    return facts + [("to be known", warning) for warning in audit.get("warnings", [])]


def _settings(manifest: Manifest, trial: TrialResult | None) -> list[tuple[str, str]]:
    training = manifest.training
    known = training.get("training") or {
        key: value for key, value in training.items() if key not in ("scores", "evaluations", "wished")
    }
    settings = [(key, words.setting(value)) for key, value in sorted(known.items()) if value is not None]
    settings.append(("precision of the frozen weights", manifest.backbone.precision))
    if training.get("seed") is not None:
        settings.append(("seed", str(training["seed"])))
    if trial is not None and trial.best_step is not None:
        settings.append(("step of the saved weights", f"{trial.best_step:,}, the best by {trial.metric} on validation"))
    if trial is not None and trial.seconds is not None:
        settings.append(("time", words.duration(trial.seconds)))
    return list(dict(settings).items())


def _limitations(
    manifest: Manifest,
    trial: TrialResult | None,
    siblings: Sequence[TrialResult],
    comparison: Comparison | None,
    split: str,
) -> list[str]:
    found = [
        "Its scores hold for texts like those of its data. Of other texts, other times or other uses they say nothing."
    ]
    if split == "validation" and manifest.training.get("scores"):
        found.append("There are no test texts with labels: the scores are of validation, by which it was chosen.")
    if trial is not None and len(siblings) == 1:
        found.append("It was trained with one seed, so how far its scores hang on chance is not known.")
    if len(siblings) > 1:
        found.append(
            f"It is one of {len(siblings)} seeds. Its own scores owe something to chance; the mean over seeds says "
            "more of the way it was trained."
        )
    if trial is not None and (reason := trial.degenerate_reason(split)):
        found.append(f"It shows nothing learned: {reason}.")
    if manifest.training.get("wished"):
        found.append("Thresholds keep what was wished on validation; the table of labels shows what test texts give.")
    if comparison is not None and len(comparison.rows) > 1:
        found.append(_standing(comparison))
    return found


def _standing(comparison: Comparison) -> str:
    count, winner = len(comparison.rows), comparison.verdict.winner
    lead = (
        f"Of the {count} configurations of its run none is demonstrated to be the best."
        if winner is None
        else f"Of the {count} configurations of its run, {winner} is demonstrated to be the best."
    )
    return f"{lead} {comparison.verdict.reason}"


def _packages(manifest: Manifest) -> list[tuple[str, str]]:
    packages = {"fleetune": manifest.fleetune_version, **(manifest.training.get("packages") or {})}
    return [(str(name), str(version)) for name, version in packages.items()]


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fleetune.report", "templates"),
        autoescape=True,
        finalize=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "block": code_block,
        "code": code,
        "row": table_row,
    }
    return environment
