"""What stands before training: data read and audited, trials planned for it, methods fitted to their backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fleetune.data.audit import Audit
from fleetune.data.config import DataConfig
from fleetune.data.curve import thinned
from fleetune.data.dataset import Dataset
from fleetune.data.prepare import Prepared, prepare
from fleetune.data.tokens import Tokens, tokenize
from fleetune.engine import optimizers, storage
from fleetune.engine.config import BackboneConfig
from fleetune.engine.footprint import Candidate, fits
from fleetune.engine.shape import shape_from_config
from fleetune.engine.source import find_folder
from fleetune.errors import MethodError, RecipeError
from fleetune.lab.parameters import ParameterCounts, count_parameters
from fleetune.lab.plan import FleetPlan, Plan, Trial, plan
from fleetune.lab.recipe import Recipe
from fleetune.memory import available_bytes
from fleetune.methods.base import BackboneShape
from fleetune.methods.baseline import Baseline


@dataclass(frozen=True)
class Inputs:
    """A recipe made concrete: nothing in it can turn out wrong by reading a file again.

    Attributes:
        recipe: What was asked for.
        prepared: The data sets by name.
        plan: The trials; their ids hang on the texts they see.
        shapes: Shape of each backbone by data name and backbone name: the head hangs on the labels.
        parameters: Numbers of parameters by trial id.
        datasets: By data name and share of the training texts, what is trained on.
    """

    recipe: Recipe
    prepared: dict[str, Prepared]
    plan: Plan
    shapes: dict[tuple[str, str], BackboneShape]
    parameters: dict[str, ParameterCounts]
    datasets: dict[tuple[str, float], Dataset]

    def dataset(self, unit: Trial | FleetPlan) -> Dataset:
        """Returns the texts that a trial, or a fleet's trials, train on and are judged by."""
        return self.datasets[unit.data.name, unit.train_share]


def gather_inputs(recipe: Recipe) -> Inputs:
    """Returns the data of `recipe`, its trials and their parameter counts; loads no weights.

    Raises:
        DataError: If data cannot be used.
        BackboneError: If a backbone cannot be found.
        MethodError: If a method does not fit a backbone.
        RecipeError: If a metric or weights of classes do not fit the labels.
        MissingExtraError: If quantising, or an optimizer, needs a package that is not there.
    """
    for backbone in recipe.backbones:
        storage.refuse_without_package(backbone)
    for entry in recipe.methods:
        for configuration in entry.configurations:
            optimizers.refuse_without_package(configuration.training)
    prepared = {config.name: prepare(config, recipe.base) for config in recipe.data}
    shapes = {
        (data.name, backbone.name): shape_from_config(find_folder(backbone), prepared[data.name].dataset.num_labels)
        for data in recipe.data
        for backbone in recipe.backbones
    }
    hashes = {name: one.dataset.content_hash() for name, one in prepared.items()}
    trials = plan(recipe, partial(_fit_into, available_bytes(), shapes), hashes)
    for trial in trials.trials:
        _check_labels(trial, prepared[trial.data.name], several=len(recipe.data) > 1)
        _check_baseline(trial, prepared[trial.data.name])
    parameters = {trial.id: _count(trial, shapes[trial.data.name, trial.backbone.name]) for trial in trials.trials}
    datasets = {
        (data.name, share): thinned(prepared[data.name].dataset, share, data.split.seed)
        for data in recipe.data
        for share in data.train_shares
    }
    return Inputs(recipe, prepared, trials, shapes, parameters, datasets)


def tokens_for(
    prepared: Prepared, backbone: BackboneConfig, data: DataConfig, cache: Path, model_id: str | None = None
) -> Tokens:
    """Returns the texts as the backbone's tokenizer and `data` make them tokens, from `cache` where it has them."""
    from fleetune.engine.backbone import load_tokenizer

    tokenizer = load_tokenizer(backbone)
    model_id = model_id or str(find_folder(backbone))
    return tokenize(prepared.dataset, tokenizer, data.max_tokens, cache, model_id, data.cutting)


def audit_with(audit: Audit, data: DataConfig, tokens: Tokens) -> Audit:
    """Returns the audit with what tokenising showed."""
    windowed = int((tokens.sequence_counts > 1).sum())
    return audit.with_tokens(tokens.full_lengths, data.max_tokens, int(tokens.truncated.sum()), windowed)


def _check_labels(trial: Trial, prepared: Prepared, several: bool) -> None:
    dataset = prepared.dataset
    try:
        trial.training.check_labels(dataset.num_labels, dataset.multi_label)
    except RecipeError as error:
        raise RecipeError(f"on {trial.data.name}, {error}" if several else str(error)) from None


def _fit_into(available: int, shapes: Mapping[tuple[str, str], BackboneShape], trials: Sequence[Trial]) -> bool:
    """Returns whether the trials can train together in `available` bytes."""
    shape = shapes[trials[0].data.name, trials[0].backbone.name]
    return fits(shape, [candidate_of(trial) for trial in trials], available)


def candidate_of(trial: Trial) -> Candidate:
    """Returns what decides whether the trial fits into a fleet."""
    return Candidate(
        trial.method, trial.training, trial.data.cutting.most_tokens(trial.data.max_tokens), trial.backbone
    )


def _check_baseline(trial: Trial, prepared: Prepared) -> None:
    """Does nothing where the trial's baseline, if it is one, fits the labels.

    Raises:
        MethodError: If it does not.
    """
    if isinstance(trial.method, Baseline):
        dataset = prepared.dataset
        trial.method.check_labels(dataset.label_names, dataset.multi_label, dataset.pairs is not None)


def _count(trial: Trial, shape: BackboneShape) -> ParameterCounts:
    try:
        storage.refuse_quantized_weights(trial.method, shape, trial.backbone)
        return count_parameters(trial.method, shape)
    except MethodError as error:
        raise MethodError(f"'{trial.name}' does not fit {trial.backbone.name}: {error}") from None
