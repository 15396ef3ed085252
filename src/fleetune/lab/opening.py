"""Opens a run's folder: the first time everything that is asked for is frozen in it, later it must be the same."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomli_w

from fleetune.data.gate import TooManyBadRowsError, quarantine_csv
from fleetune.data.writing import write_bytes, write_text
from fleetune.engine.config import BackboneConfig
from fleetune.errors import ENDS_RUN, BackboneError, RecipeError, RunError, UserError
from fleetune.lab.folder import RunFolder
from fleetune.lab.inputs import Inputs, gather_inputs
from fleetune.lab.ledger import Ledger
from fleetune.lab.overrides import Document
from fleetune.lab.plan import Trial
from fleetune.lab.recipe import PATHS, SAVING, TRACK, Recipe, load_recipe, resolved
from fleetune.lab.signals import RunInterrupted
from fleetune.redaction import redacted
from fleetune.runtime import environment

ENVIRONMENTS = "SELECT environment FROM attempts ORDER BY id DESC LIMIT 2"
DECIDING = ("threads", "device", "processor")
"""What of a machine decides last digits, besides the versions of packages."""


def gather_for_run(recipe: Recipe, place: RunFolder) -> Inputs:
    """Returns the run's inputs; bad records that stop it are listed in a file, since a message holds three.

    Raises:
        UserError: If the recipe, its data or a backbone cannot be used.
    """
    try:
        return gather_inputs(recipe)
    except TooManyBadRowsError as error:
        # A run that is there, perhaps with a process that works on it, keeps its own file.
        own = place.path / "data" / "quarantine.csv"
        path = place.path / "bad-records.csv" if place.ledger.exists() else own
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, quarantine_csv(error.quarantine))
        error.args = (f"{error} They are listed in {path}",)
        raise


@contextmanager
def open_ledger(place: RunFolder, inputs: Inputs, command: str | None) -> Iterator[Ledger]:
    """Yields the run's ledger with an attempt begun, and records how the attempt ends.

    Raises:
        RecipeError: If the folder holds another recipe's run.
    """
    ledger = Ledger(place.path)
    try:
        known = ledger.trial_keys()
        if known and known != [(trial.id, trial.name) for trial in inputs.plan.trials]:
            raise RecipeError(_other_recipe(place, inputs, ledger))
        ledger.begin_attempt(environment())
        try:
            with ledger.transaction():
                if not known:
                    _freeze(place, inputs, ledger, command)
                else:
                    _freeze_presentation(place, inputs.recipe, ledger)
            yield ledger
        except BaseException as error:
            stopped = isinstance(error, (RunInterrupted, KeyboardInterrupt, OSError, *ENDS_RUN))
            # The error itself must reach the user, also where the disk is full or another process has the run.
            with suppress(RunError, *ENDS_RUN):
                ledger.end_attempt("interrupted" if stopped else "failed")
            raise
        ledger.end_attempt("failed" if "failed" in ledger.statuses().values() else "done")
    finally:
        ledger.close()


def changed_environment(ledger: Ledger) -> str | None:
    """Returns what of the machine, that last digits depend on, is not what the attempt before had; None if nothing."""
    newest = [json.loads(row["environment"]) for row in ledger.rows(ENVIRONMENTS)]
    if len(newest) < 2:
        return None
    now, before = ({**one, **one.get("packages", {})} for one in newest)
    changes = [
        f"{key} went from {before[key]} to {now[key]}"
        for key in (*DECIDING, *now.get("packages", {}))
        if key in now and key in before and now[key] != before[key]
    ]
    return " and ".join(changes) or None


def refuse_changed_backbone(
    before: Mapping[str, Any], now: Mapping[str, Any], backbone: BackboneConfig, keys: Sequence[str]
) -> None:
    """Does nothing unless the run began with another backbone: half of a trial, or of a comparison, would be of each.

    Raises:
        BackboneError: If it did.
    """
    for key in keys:
        if None not in (before.get(key), now[key]) and before[key] != now[key]:
            what = "weights" if key == "model_hash" else "tokens that the tokenizer makes"
            raise BackboneError(
                f"{backbone.model} has changed: its {what} are not those that this run began with.\n"
                "Put the model back as it was, or begin anew with another --out"
            )


def _freeze(place: RunFolder, inputs: Inputs, ledger: Ledger, command: str | None) -> None:
    _freeze_recipe(place, inputs.recipe, ledger)
    facts: dict[str, Any] = {}
    for name, prepared in inputs.prepared.items():
        folder = place.data(name, len(inputs.prepared) == 1)
        prepared.write(folder)
        dataset = prepared.dataset
        facts[name] = {
            "folder": folder.relative_to(place.path).as_posix(),
            "label_names": dataset.label_names,
            "multi_label": dataset.multi_label,
            "pairs": dataset.pairs is not None,
            "hash": dataset.content_hash(),
        }
    ledger.set_meta(
        name=inputs.recipe.name,
        metric=inputs.recipe.metric,
        cost=inputs.recipe.cost,
        command=redacted(command or f"fleetune run {shlex.quote(str(place.recipe))}"),
        data=facts,
    )
    fleet_of = {trial.id: number for number, fleet in enumerate(inputs.plan.fleets) for trial in fleet.trials}
    # The trials come last: a folder that has them has everything before.
    ledger.add_trials(
        _row(trial, position, fleet_of[trial.id], inputs) for position, trial in enumerate(inputs.plan.trials)
    )


def _freeze_recipe(place: RunFolder, recipe: Recipe, ledger: Ledger) -> None:
    _freeze_document(place, _movable(resolved(recipe), place.path), ledger)


def _movable(document: Document, folder: Path) -> Document:
    """Returns the recipe with paths of data that lie in the run's own folder relative to it, so that it may move."""
    inside = folder.resolve()

    def moved(key: str, value: Any) -> Any:
        is_inside = key in PATHS and isinstance(value, str) and Path(value).is_relative_to(inside)
        return Path(value).relative_to(inside).as_posix() if is_inside else value

    data = [{key: moved(key, value) for key, value in entry.items()} for entry in document["data"]]
    return {**document, "data": data}


def _freeze_document(place: RunFolder, frozen: Document, ledger: Ledger) -> None:
    write_bytes(place.recipe, tomli_w.dumps(frozen).encode())
    ledger.set_meta(recipe=frozen)


def _freeze_presentation(place: RunFolder, recipe: Recipe, ledger: Ledger) -> None:
    """Takes over what changes no trial: other trackers, slices, costs or checkpoints must hold after a stop, too."""
    found = _frozen(place)
    frozen = ledger.meta().get("recipe", found)
    # A file that was damaged, or changed by hand, is written anew from the ledger.
    is_whole = found == frozen
    new = _as_recorded(recipe, place)
    wanted = _with_presentation(frozen, new)
    if wanted != frozen or not is_whole:
        # The ledger's keys are sorted; where it says the same, the file is what it was to the byte.
        _freeze_document(place, new if new == wanted else wanted, ledger)
    ledger.set_meta(cost=recipe.cost)


def _with_presentation(frozen: Document, new: Document) -> Document:
    """Returns the frozen recipe with what of `new` changes no trial; its names are the ledger's, and stay."""
    if not frozen:
        return new
    tracked = {TRACK: new[TRACK]} if TRACK in new else {}
    rest = {key: value for key, value in frozen.items() if key not in (TRACK, "data", "compare")}
    data = [_with_slices(old, own) for old, own in zip(frozen.get("data", []), new["data"], strict=False)]
    training = {**frozen.get("training", {}), SAVING: new["training"][SAVING]}
    return {**tracked, "data": data, **rest, "training": training, "compare": new["compare"]}


def _with_slices(old: Document, new: Document) -> Document:
    rest = {key: value for key, value in old.items() if key != "slices"}
    return rest | ({"slices": new["slices"]} if "slices" in new else {})


def _frozen(place: RunFolder) -> dict[str, Any]:
    try:
        return tomllib.loads(place.recipe.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _row(trial: Trial, position: int, fleet: int, inputs: Inputs) -> dict[str, Any]:
    return {
        "id": trial.id,
        "position": position,
        "fleet": fleet,
        "name": trial.name,
        "data": trial.data.name,
        "backbone": trial.backbone.name,
        "kind": trial.method.kind,
        "settings": trial.method.settings,
        "training": trial.training_settings,
        "seed": trial.seed,
        "parameters": inputs.parameters[trial.id],
        "entry": trial.entry,
        "train_share": trial.train_share,
        "train_texts": len(inputs.dataset(trial).splits["train"]),
    }


def _other_recipe(place: RunFolder, inputs: Inputs, ledger: Ledger) -> str:
    """Returns the refusal of a folder that holds another run, with the first thing that differs."""
    wanted = _as_recorded(inputs.recipe, place)
    before = ledger.meta().get("recipe") or _frozen(place)
    old, new = _flat(_with_presentation(before, wanted)), _flat(wanted)
    differing = [key for key in [*new, *old] if old.get(key) != new.get(key)]
    if not differing:
        return (
            f"{place.path} holds the run of this recipe on other texts: the data have changed since.\n"
            "Put the data back as they were to go on with it, or give another --out for a new run"
        )
    if _asks_for(place, wanted):
        return (
            f"{place.recipe} is not the recipe that this run began with ({differing[0]} differs): it was damaged, or "
            "changed by hand.\nPut it back as it was, or run the recipe that it came from with the same --out"
        )
    return (
        f"{place.path} holds the run of another recipe ({differing[0]} differs).\n"
        f"To go on with it type: fleetune run {shlex.quote(str(place.recipe))}; for a new run give another --out"
    )


def _asks_for(place: RunFolder, wanted: Document) -> bool:
    """Returns whether the run's own recipe is the one that is wanted, with the defaults of what it leaves out."""
    try:
        return _as_recorded(load_recipe(place.recipe), place) == wanted
    except (UserError, OSError):
        return False


def _as_recorded(recipe: Recipe, place: RunFolder) -> Document:
    """Returns a recipe as the ledger of a run in this folder has it."""
    return dict(json.loads(json.dumps(_movable(resolved(recipe), place.path))))


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list) and any(isinstance(entry, dict) for entry in node):
        items = list(enumerate(node))
    else:
        return {path: node}
    return {k: v for key, value in items for k, v in _flat(value, f"{path}.{key}".strip(".")).items()}
