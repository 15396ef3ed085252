"""The scores in a model card, and the metadata that the Hugging Face hub reads them from."""

from __future__ import annotations

import math
import re
import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fleetune.bundle.manifest import Manifest
from fleetune.compare.calibration import OF_PROBABILITIES, bundle_scores, temperature_of
from fleetune.compare.intervals import Interval, score_interval, uncertainty
from fleetune.compare.resampling import resampled
from fleetune.compare.result import TrialResult
from fleetune.engine.embedded import PREFIX
from fleetune.report import words
from fleetune.report.markdown import one_line

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from fleetune.report.html import Run

LIBRARIES = {"adapter": "peft", "merged": "transformers"}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")
AVERAGED = re.compile(r"(f1|precision|recall)_(macro|micro|weighted)")
HUB_METRICS = {"matthews": "matthews_correlation"}


@dataclass(frozen=True)
class Result:
    """One metric of the bundle, and of its configuration over seeds.

    Attributes:
        metric: Its name.
        value: Of this bundle.
        mean: Over the configuration's finished seeds, each as it would be exported; None where the run is not at hand.
        interval: 95 % interval of the mean; None below two seeds.
    """

    metric: str
    value: float
    mean: float | None = None
    interval: tuple[float, float] | None = None


def results_of(manifest: Manifest, siblings: Sequence[TrialResult], split: str) -> list[Result]:
    """Returns each metric of the bundle on `split`, with its mean over `siblings`, the seeds of its configuration."""
    own: dict[str, float] = manifest.training.get("scores", {}).get(split, {})
    others = [trial for trial in siblings if split in trial.predictions]
    scores = [bundle_scores(trial, split, temperature_of(trial)) for trial in others]
    results = []
    for metric, value in own.items():
        values = [one[metric] for one in scores if math.isfinite(one.get(metric, math.nan))]
        if not values or len(values) < len(others):
            results.append(Result(metric, value, None, None))
        else:
            interval = _interval(others, values, metric, split)
            results.append(Result(metric, value, statistics.fmean(values), interval))
    return results


def _interval(trials: Sequence[TrialResult], values: Sequence[float], metric: str, split: str) -> Interval | None:
    """Returns the interval of the mean over seeds and texts; None below two seeds, or texts."""
    texts = len(trials[0].labels(split))
    if len(trials) < 2 or texts < 2:
        return None
    judged = [_cooled(trial, split) if metric in OF_PROBABILITIES else trial for trial in trials]
    known = uncertainty(values, resampled(judged, split, metric), texts)
    return None if known is None else score_interval(statistics.fmean(values), known, metric, texts)


def _cooled(trial: TrialResult, split: str) -> TrialResult:
    labels, logits = trial.predictions[split]
    return replace(trial, predictions={split: (labels, logits / np.float32(temperature_of(trial)))})


def metadata(manifest: Manifest, run: Run | None, results: Sequence[Result], split: str) -> ModelCardData:
    """Returns what the hub reads of a card: library, backbone, tags and scores."""
    from huggingface_hub import ModelCardData

    tags = ["fleetune", "text-classification", manifest.method.kind, manifest.backbone.model_type]
    title = title_of(manifest)
    return ModelCardData(
        library_name=LIBRARIES.get(manifest.form, "fleetune"),
        pipeline_tag="text-classification",
        base_model=hub_name(manifest),
        tags=[*tags, *(["multi-label"] if manifest.multi_label else [])],
        model_name=title if results else None,
        eval_results=[_eval_result(manifest, run, result, split) for result in results] or None,
    )


def hub_name(manifest: Manifest) -> str | None:
    """Returns the backbone's name on the hub; None for a folder or an embedded one."""
    name = manifest.backbone.model
    return name if HUB_NAME.fullmatch(name) and not name.startswith(PREFIX) and ".." not in name else None


def _eval_result(manifest: Manifest, run: Run | None, result: Result, split: str) -> EvalResult:
    from huggingface_hub import EvalResult

    name = one_line(manifest.training.get("data") or "data")
    hub = None if run is None else _hub_data(run.recipe_text, name)
    averaged = AVERAGED.fullmatch(result.metric)
    return EvalResult(
        task_type="text-classification",
        task_name="Text classification",
        dataset_type=hub[0] if hub else words.key(name),
        dataset_name=name,
        dataset_config=hub[1] if hub else None,
        dataset_split=split,
        metric_type=averaged[1] if averaged else HUB_METRICS.get(result.metric, result.metric),
        metric_name=words.metric_title(result.metric),
        metric_value=result.value,
        metric_args={"average": averaged[2]} if averaged else None,
    )


def _hub_data(recipe: str, name: str) -> tuple[str, str | None] | None:
    """Returns repository and configuration of a data set that comes from the hub; None for any other."""
    try:
        tables = tomllib.loads(recipe).get("data", [])
    except tomllib.TOMLDecodeError:
        return None
    for table in tables if isinstance(tables, list) else [tables]:
        if isinstance(table.get("hf"), str) and one_line(table.get("name", "data")) == name:
            parts = one_line(table["hf"]).split("/")
            return ("/".join(parts[:2]), parts[2]) if len(parts) == 3 else ("/".join(parts), None)
    return None


def title_of(manifest: Manifest) -> str:
    """Returns what the card is called: configuration and data."""
    training = manifest.training
    name = one_line(training.get("name") or manifest.method.kind)
    return f"{name} on {one_line(training['data'])}" if training.get("data") else name
