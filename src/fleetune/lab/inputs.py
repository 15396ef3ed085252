"""What stands before training: data read and audited, trials planned for it, methods fitted to their backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fleetune.data.prepare import Prepared, prepare
from fleetune.data.tokens import Tokens, tokenize
from fleetune.engine import optimizers, storage
from fleetune.engine.config import BackboneConfig
from fleetune.engine.footprint import Candidate, fits
from fleetune.engine.shape import shape_from_config
from fleetune.engine.source import find_folder
from fleetune.errors import MethodError
from fleetune.lab.parameters import ParameterCounts, count_parameters
from fleetune.lab.plan import Plan, Trial, plan
from fleetune.lab.recipe import Recipe
from fleetune.memory import available_bytes
from fleetune.methods.base import BackboneShape
from fleetune.metrics import check_metric


@dataclass(frozen=True)
class Inputs:
    """A recipe made concrete: nothing in it can turn out wrong by reading a file again.

    Attributes:
        recipe: What was asked for.
        prepared: The data sets by name.
        plan: The trials; their ids hang on the texts they see.
        shapes: Shape of each backbone by data name and backbone name: the head hangs on the labels.
        parameters: Numbers of parameters by trial id.
    """

    recipe: Recipe
    prepared: dict[str, Prepared]
    plan: Plan
    shapes: dict[tuple[str, str], BackboneShape]
    parameters: dict[str, ParameterCounts]


def gather_inputs(recipe: Recipe) -> Inputs:
    """Returns the data of `recipe`, its trials and their parameter counts; loads no weights.

    Raises:
        DataError: If data cannot be used.
        BackboneError: If a backbone cannot be found.
        MethodError: If a method does not fit a backbone.
        RecipeError: If the metric does not fit the labels.
        MissingExtraError: If quantising, or an optimizer, needs a package that is not there.
    """
    for backbone in recipe.backbones:
        storage.refuse_without_package(backbone)
    for entry in recipe.methods:
        for configuration in entry.configurations:
            optimizers.refuse_without_package(configuration.training)
    prepared = {config.name: prepare(config, recipe.base) for config in recipe.data}
    for config in recipe.data:
        dataset = prepared[config.name].dataset
        check_metric(recipe.metric, dataset.num_labels, dataset.multi_label)
    shapes = {
        (data.name, backbone.name): shape_from_config(find_folder(backbone), prepared[data.name].dataset.num_labels)
        for data in recipe.data
        for backbone in recipe.backbones
    }
    hashes = {name: one.dataset.content_hash() for name, one in prepared.items()}
    trials = plan(recipe, partial(_fit_into, available_bytes(), shapes), hashes)
    parameters = {trial.id: _count(trial, shapes[trial.data.name, trial.backbone.name]) for trial in trials.trials}
    return Inputs(recipe, prepared, trials, shapes, parameters)


def tokens_for(
    prepared: Prepared, backbone: BackboneConfig, max_tokens: int, cache: Path, model_id: str | None = None
) -> Tokens:
    """Returns the texts as the backbone's tokenizer cuts them, from `cache` where it has them."""
    from fleetune.engine.backbone import load_tokenizer

    tokenizer = load_tokenizer(backbone)
    return tokenize(prepared.dataset, tokenizer, max_tokens, cache, model_id or str(find_folder(backbone)))


def _fit_into(available: int, shapes: Mapping[tuple[str, str], BackboneShape], trials: Sequence[Trial]) -> bool:
    """Returns whether the trials can train together in `available` bytes."""
    shape = shapes[trials[0].data.name, trials[0].backbone.name]
    candidates = [Candidate(trial.method, trial.training, trial.data.max_tokens, trial.backbone) for trial in trials]
    return fits(shape, candidates, available)


def _count(trial: Trial, shape: BackboneShape) -> ParameterCounts:
    try:
        storage.refuse_quantized_weights(trial.method, shape, trial.backbone)
        return count_parameters(trial.method, shape)
    except MethodError as error:
        raise MethodError(f"'{trial.name}' does not fit {trial.backbone.name}: {error}") from None
