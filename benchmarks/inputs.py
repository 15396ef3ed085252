"""Makes what every contender is given: the same texts as tokens, and the folder of the same model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmarks.models import SHAPES, random_model
from benchmarks.workloads import BATCH_SIZE, MAX_TOKENS, Corpus, Workload
from fleetune.data.config import DataConfig
from fleetune.data.dataset import Dataset, SplitName
from fleetune.data.prepare import prepare
from fleetune.data.tokens import tokenize_in_memory
from fleetune.engine.backbone import load_tokenizer
from fleetune.engine.config import BackboneConfig
from fleetune.engine.fleet import FleetData
from fleetune.engine.operations import forward_operations, training_operations
from fleetune.engine.shape import shape_from_config
from fleetune.engine.source import find_folder
from fleetune.engine.trial import TrialSpec
from fleetune.methods.base import BackboneShape


@dataclass(frozen=True)
class Inputs:
    """A workload made concrete.

    Attributes:
        trials: What is trained.
        data: Texts as tokens, with labels and splits.
        backbone: Where the model is.
        shape: Its sites and head.
        num_labels: Number of the classifier's outputs.
    """

    trials: tuple[TrialSpec, ...]
    data: FleetData
    backbone: BackboneConfig
    shape: BackboneShape
    num_labels: int

    def texts(self, split: SplitName) -> int:
        """Returns the number of texts in a split."""
        return len(self.data.splits[split])

    def tokens(self, split: SplitName) -> int:
        """Returns the number of real tokens in a split."""
        return int(self.data.tokens.lengths[self.data.splits[split]].sum())

    @property
    def operations(self) -> float:
        """Floating-point operations of the plain computation without padding: one epoch and one evaluation a trial."""
        trained = sum(training_operations(self.shape, spec.method) for spec in self.trials)
        evaluated = len(self.trials) * forward_operations(self.shape)
        return trained * self.tokens("train") + evaluated * self.tokens("validation")


def make_inputs(workload: Workload, share: float, scratch: Path) -> Inputs:
    """Returns the inputs of `workload` with a share of its texts; models with random weights go into `scratch`."""
    dataset = _dataset(workload.corpus, _part(workload.texts, share), _part(workload.evaluated, share))
    config = _backbone(workload, scratch)
    tokens = tokenize_in_memory(dataset, load_tokenizer(config), MAX_TOKENS)
    shape = shape_from_config(find_folder(config), dataset.num_labels)
    return Inputs(workload.trials, FleetData(tokens, dataset.labels, dataset.splits), config, shape, dataset.num_labels)


def _part(texts: int, share: float) -> int:
    return max(BATCH_SIZE, round(texts * share))


@cache
def _dataset(corpus: Corpus, texts: int, evaluated: int) -> Dataset:
    return prepare(DataConfig.model_validate(data_settings(corpus, texts, evaluated)), Path()).dataset


def data_settings(corpus: Corpus, texts: int, evaluated: int) -> dict[str, Any]:
    """Returns a recipe's settings of a corpus cut to so many training and validation texts."""
    columns = {"tweets": {"text": "text", "label": "sentiment"}, "bbc": {}}[corpus]
    return {
        "path": f"embedded:{corpus}",
        **columns,
        "encoding_errors": "replace",
        "leaks": "drop",
        "max_bad_rows": 100,
        "sample": texts + evaluated,
        "split": {"validation": evaluated / (texts + evaluated), "test": 0.0},
    }


def _backbone(workload: Workload, scratch: Path) -> BackboneConfig:
    model = workload.model
    if model in SHAPES:
        model = str(random_model(model, scratch))
    return BackboneConfig.model_validate({"model": model, "quantize": workload.quantize})


def missing_feature(workload: Workload) -> str | None:
    """Returns what Fleetune lacks to run `workload`, in a line; None if it lacks nothing."""
    try:
        BackboneConfig.model_validate({"model": workload.model, "quantize": workload.quantize})
    except ValidationError:
        return f'{workload.name} needs quantize = "{workload.quantize}", which this version does not have: skipped'
    return None
