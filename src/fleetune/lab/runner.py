"""A run from the recipe to the predictions. Read from top to bottom it is a trial's whole life."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fleetune.data.dataset import Dataset
from fleetune.data.tokens import Tokens, content_hash
from fleetune.data.writing import make_folder
from fleetune.engine.checkpoint import final_files
from fleetune.engine.events import Evaluated, Event, Failed, Finished, Stepped
from fleetune.engine.failures import is_of_device
from fleetune.engine.fleet import FleetData
from fleetune.engine.optimizers import optimizer_notes
from fleetune.engine.trial import TrialSpec
from fleetune.errors import ENDS_RUN, DeviceError, MethodError, RecipeError, UserError, in_one_line
from fleetune.lab.checkpoints import FleetCheckpoints, remove_leftovers
from fleetune.lab.costs import TextCosts, costs_of
from fleetune.lab.disk import naming_faults, storage_error
from fleetune.lab.division import Division, OpenFleet
from fleetune.lab.executors.base import BackboneFacts, Executor, FleetJob, StartedFleet
from fleetune.lab.executors.local import LocalExecutor
from fleetune.lab.filesystem import refuse_network
from fleetune.lab.folder import RunFolder
from fleetune.lab.held_out import holds, write_held_out
from fleetune.lab.inputs import Inputs, audit_with, tokens_for
from fleetune.lab.kept_files import all_whole, begin_damaged_anew, remove_partials
from fleetune.lab.ledger import Ledger
from fleetune.lab.lock import RunLock
from fleetune.lab.notices import FleetOpened, Noted, RunOpened, Said, Watch, unwatched
from fleetune.lab.opening import changed_environment, gather_for_run, open_ledger, refuse_changed_backbone
from fleetune.lab.plan import FleetPlan
from fleetune.lab.predictions import write_predictions
from fleetune.lab.recipe import Recipe
from fleetune.lab.signals import RunInterrupted, StopRequest
from fleetune.lab.summary import RunSummary, Tally
from fleetune.lab.trackers.base import Draw
from fleetune.lab.trackers.feed import Tracking
from fleetune.memory import begin_peak, give_back, is_out_of_memory, peak_bytes
from fleetune.methods.base import Method
from fleetune.runtime import is_busy

AUDITED = ("audit.json", "quarantine.csv", "splits.parquet")
"""Files that say what became of a data set's records."""


def run(
    recipe: Recipe,
    folder: Path,
    watch: Watch = unwatched,
    executor: Executor | None = None,
    command: str | None = None,
    draw: Draw | None = None,
) -> RunSummary:
    """Trains what of `recipe` is not trained yet, and writes predictions into `folder`.

    Args:
        recipe: What to train.
        folder: The run's folder; made if absent, resumed if it holds this recipe's run.
        watch: Is told what happens.
        executor: Trains the fleets; in this process by default.
        command: What the report says repeats the run.
        draw: Draws finished trials for the recipe's trackers; without it these get no figures.

    Raises:
        MissingExtraError: If the recipe names a tracker whose package is not installed.
        UserError: If the recipe, its data or a backbone cannot be used, or the folder holds another recipe's run.
        RunLockedError: If another process works on the folder.
        RunTakenOverError: If another process took the run up while this one slept.
        StorageError: If a disk is full, broken, read-only or shut; what was saved is whole, and the run can go on.
        RunInterrupted: If Ctrl-C or SIGTERM stopped it; what was trained is saved.
    """
    place = RunFolder(folder)
    with naming_faults(folder), StopRequest(place) as stop:
        refuse_network(folder)
        place.refuse_foreign()
        place.refuse_links()
        return _run_until_stopped(
            recipe, place, Tracking(recipe.track, watch, draw), watch, executor or LocalExecutor(), command, stop
        )


def _run_until_stopped(
    recipe: Recipe,
    place: RunFolder,
    tracking: Tracking,
    untracked: Watch,
    executor: Executor,
    command: str | None,
    stop: StopRequest,
) -> RunSummary:
    started, tally = time.monotonic(), Tally()
    begin_peak()
    untracked(Said("reading and auditing the data"))
    if is_busy():
        untracked(Said("other programs keep this machine busy: training will be slower"))
    inputs = gather_for_run(recipe, place)
    make_folder(place.path, above=len(place.path.parents))
    with (
        # The trackers are waited for when all else is over: a signal leaves little time to save trials.
        tracking as watch,
        RunLock(place.path),
        open_ledger(place, inputs, command) as ledger,
    ):
        division = Division(ledger, place.trials.name)
        remove_partials(ledger, place.path / "data")
        begin_damaged_anew(ledger, division, watch)
        before = ledger.statuses()
        inputs = replace(inputs, plan=division.as_recorded(inputs.plan))
        watch(RunOpened(place.path, inputs.plan, before, recipe.metric))
        division.retry_failed()
        remove_leftovers(ledger, place.trials, before)
        if "pending" in ledger.statuses().values() and (changed := changed_environment(ledger)):
            watch(Noted(f"since the last start {changed}: digits may differ from those of an uninterrupted run"))
        now = _Run(inputs, place, ledger, division, executor, watch, stop, tally)
        for number in range(len(inputs.plan.fleets)):
            now.train(number)
        after = ledger.statuses()
    skipped = sum(status == "done" for status in before.values())
    return RunSummary(
        folder=place.path,
        done=sum(status == "done" for status in after.values()) - skipped,
        failed=sum(status == "failed" for status in after.values()),
        skipped=skipped,
        seconds=time.monotonic() - started,
        texts_per_second=tally.texts_per_second,
        tokens_per_second=tally.tokens_per_second,
        utilisation=tally.utilisation,
        peak_bytes=peak_bytes(),
    )


@dataclass(frozen=True)
class _Run:
    """A run whose folder is open.

    `kept` names the data whose held-out texts it has; `made` holds tokens by the names of data and backbone.
    """

    inputs: Inputs
    place: RunFolder
    ledger: Ledger
    division: Division
    executor: Executor
    watch: Watch
    stop: StopRequest
    tally: Tally
    kept: set[str] = field(default_factory=set)
    made: dict[tuple[str, str], Tokens] = field(default_factory=dict)

    def train(self, number: int) -> None:
        """Trains what of the plan's fleet `number` is not done; what goes wrong in it stays in it."""
        fleets = self.division.open_fleets(number)
        for fleet in fleets:
            self._train(fleet)
        if not fleets:
            self._keep_held_out(self.inputs.plan.fleets[number], None)

    def _train(self, fleet: OpenFleet) -> None:
        """Trains a fleet; where memory does not suffice for that, one half after the other."""
        self._stop_if_asked()
        checkpoints, done = self._checkpoints(fleet), self._done()
        running = self._running(fleet, checkpoints)
        if done.issuperset(running):
            self._keep_held_out(self.inputs.plan.fleets[fleet.number], None)
            checkpoints.end()
            return
        left, too_large = list(running), False
        try:
            for event in self._events(fleet.number, self._plan_of(running), checkpoints, done):
                if isinstance(event, Finished | Failed):
                    left.remove(event.trial)
            checkpoints.end()
        except (*ENDS_RUN, RunInterrupted):
            raise
        except Exception as error:  # noqa: BLE001  what is this fleet's alone must not stop the others
            self._raise_what_stops_the_run(error, left)
            too_large = is_out_of_memory(error) and len(left) > 1
            if not too_large:
                self._fail(left, error)
        if too_large:
            # Not in the handler: the error holds the fleet that is too large.
            give_back()
            self.watch(Said(f"memory does not suffice for {len(left)} trials together: they go on in two fleets"))
            for half in self.division.divide(fleet, left, checkpoints.latest()):
                self._train(half)

    def _running(self, fleet: OpenFleet, checkpoints: FleetCheckpoints) -> tuple[str, ...]:
        """Returns the trials that go on from the newest checkpoint; where none is whole any more, all begin anew.

        Those that are done are among them: without their company, the others would end with other digits.
        """
        generation = checkpoints.latest()
        if checkpoints.was_lost:
            again = len(set(fleet.trials) - self._done())
            self.watch(Noted(f"no whole checkpoint is left: {again} trial{'s begin' if again > 1 else ' begins'} anew"))
        return fleet.trials if generation is None else tuple(generation.ids)

    def _raise_what_stops_the_run(self, error: Exception, left: Sequence[str]) -> None:
        """Raises an error of a fleet again unless it is that fleet's alone: memory, a misfit, or a fault of ours."""
        if isinstance(error, UserError):
            # What does not fit one fleet must not stop the others; where there is no other, it is said at once.
            others = {status for trial, status in self.ledger.statuses().items() if trial not in left}
            if not isinstance(error, MethodError | RecipeError) or others <= {"failed"}:
                raise error
            return
        # What ends a run ends no trial: these wait until it goes on.
        self._stop_if_asked()
        if storage_error(error, self.place.path) is not None:
            raise error
        if is_of_device(error):
            raise DeviceError(
                f"the accelerator failed, and this process can use it no more ({in_one_line(error)}).\n"
                "Type the same command again: the run goes on from its last checkpoint"
            ) from None

    def _checkpoints(self, fleet: OpenFleet) -> FleetCheckpoints:
        return FleetCheckpoints(
            self.ledger, self.place.trials, fleet.id, fleet.trials, lambda line: self.watch(Noted(line))
        )

    def _done(self) -> set[str]:
        return {trial for trial, status in self.ledger.statuses().items() if status == "done"}

    def _plan_of(self, trials: Sequence[str]) -> FleetPlan:
        by_id = {trial.id: trial for trial in self.inputs.plan.trials}
        return FleetPlan(tuple(by_id[trial] for trial in trials))

    def _fail(self, trials: Sequence[str], error: Exception) -> None:
        """Records what stopped a fleet; from its last checkpoint it can still go on."""
        reason = in_one_line(error)
        for trial_id in sorted(set(trials) - self._done()):
            self.ledger.fail_trial(trial_id, reason)
            self.watch(Failed(trial_id, 0, reason))

    def _events(self, number: int, fleet: FleetPlan, checkpoints: FleetCheckpoints, done: set[str]) -> Iterator[Event]:
        """Yields what happens in the fleet, each event after it is in the ledger.

        Trials that are `done` already keep the others company to where they ended; of them nothing is recorded again.
        """
        todo = [trial for trial in fleet.trials if trial.id not in done]
        fleets = len(self.inputs.plan.fleets)
        name = fleet.backbone.name
        doing = f"loading {name}" if fleet.reads_model else f"fitting {fleet.trials[0].name}"
        self.watch(Said(f"{doing} for fleet {number + 1} of {fleets}"))
        tokens = self._tokens(fleet)
        self._keep_held_out(fleet, tokens)
        started = self.executor.start(self._job(fleet, tokens, checkpoints))
        self._record_backbone(fleet, started.facts, tokens)
        for trial in todo:
            self.ledger.start_trial(trial.id)
        ids = tuple(trial.id for trial in todo)
        self.watch(FleetOpened(number, fleets, ids, fleet.backbone.name, started.facts))
        for note in optimizer_notes(trial.training for trial in todo):
            self.watch(Said(note))
        shape = self.inputs.shapes[fleet.data.name, fleet.backbone.name]
        method_of = {trial.id: trial.method for trial in fleet.trials}
        dataset = self.inputs.dataset(fleet)
        costs = costs_of(shape, dataset, tokens)
        began = time.monotonic()
        try:
            # Closed at once, not when an error's traceback is let go: the run must still be open then.
            with closing(self._until_stopped(started)) as events:
                for event in events:
                    if not fleet.is_baseline:
                        self.tally.count(event, shape, method_of[event.trial], costs.tokens)
                    # What is known of a trial that is done stays as it is.
                    if event.trial not in done:
                        self._record(event, dataset, method_of[event.trial], costs)
                        self.watch(event)
                    yield event
        finally:
            if started.facts.precision is not None and not fleet.is_baseline:
                self.tally.count_time(time.monotonic() - began, started.facts.precision)

    def _tokens(self, fleet: FleetPlan) -> Tokens:
        """Returns the fleet's texts as tokens, and completes the audit with what they show."""
        key = fleet.data.name, fleet.backbone.name
        if key not in self.made:
            self.made[key] = self._make_tokens(fleet)
        return self.made[key]

    def _make_tokens(self, fleet: FleetPlan) -> Tokens:
        prepared, folder = self.inputs.prepared[fleet.data.name], self._data_folder(fleet)
        # The folder of one data set of several lies a folder deeper; the run's own is never made here.
        make_folder(folder, above=len(folder.relative_to(self.place.path).parts) - 1)
        tokens = tokens_for(prepared, fleet.backbone, fleet.data, folder / "tokens")
        with self.ledger.transaction():
            prepared.write(folder, audit_with(prepared.audit, fleet.data, tokens))
            for name in AUDITED:
                self.ledger.add_artifact(folder / name, "data")
        return tokens

    def _keep_held_out(self, fleet: FleetPlan, tokens: Tokens | None) -> None:
        """Writes the texts of validation and test, with the columns to slice by, unless they are there as they are."""
        name = fleet.data.name
        if name in self.kept:
            return
        path, dataset = self.place.held_out(self._data_folder(fleet)), self.inputs.prepared[name].dataset
        if not (holds(path, dataset) and all_whole(self.ledger, [path, *map(path.with_name, AUDITED)])):
            tokens = tokens or self._tokens(fleet)
            with self.ledger.transaction():
                write_held_out(path, dataset, tokens)
                self.ledger.add_artifact(path, "data")
        self.kept.add(name)

    def _data_folder(self, fleet: FleetPlan) -> Path:
        return self.place.data(fleet.data.name, len(self.inputs.prepared) == 1)

    def _job(self, fleet: FleetPlan, tokens: Tokens, checkpoints: FleetCheckpoints) -> FleetJob:
        dataset = self.inputs.dataset(fleet)
        return FleetJob(
            backbone=fleet.backbone,
            num_labels=dataset.num_labels,
            precision=fleet.precision,
            specs=tuple(TrialSpec(trial.id, trial.method, trial.training, trial.seed) for trial in fleet.trials),
            data=FleetData(tokens, dataset.labels, dataset.splits),
            dataset=dataset,
            max_tokens=fleet.data.max_tokens,
            checkpoints=checkpoints,
            labels=tuple(dataset.label_names),
            checkpoint_seconds=self.inputs.recipe.checkpoint_seconds,
            is_stopped=lambda: self.stop.signal_number is not None,
        )

    def _record_backbone(self, fleet: FleetPlan, facts: BackboneFacts, tokens: Tokens) -> None:
        known: dict[str, Any] = self.ledger.meta().get("backbones", {})
        found = {
            **asdict(facts),
            "tokens": tokens.folder.relative_to(self.place.path).as_posix(),
            "tokens_hash": content_hash(tokens),
        }
        for trial in self.inputs.plan.trials:
            if trial.backbone == fleet.backbone:
                keys = ["model_hash", *(["tokens_hash"] if trial.data.name == fleet.data.name else [])]
                refuse_changed_backbone(known.get(trial.id, {}), found, fleet.backbone, keys)
        self.ledger.set_meta(backbones={**known, **{trial.id: found for trial in fleet.trials}})

    def _until_stopped(self, started: StartedFleet) -> Generator[Event, None, None]:
        """Yields the events; when the run is asked to stop, lets the fleet save itself first."""
        with self.stop.between_steps():
            try:
                for event in started.events:
                    yield event
                    if not started.heeds_stop:
                        self._stop_if_asked()
                self._stop_if_asked()
            finally:
                close = getattr(started.events, "close", None)
                if close is not None:
                    close()

    def _stop_if_asked(self) -> None:
        if self.stop.signal_number is not None:
            raise self.stop.interruption()

    def _record(self, event: Event, dataset: Dataset, method: Method, costs: TextCosts) -> None:
        match event:
            case Stepped():
                self.ledger.record_step(event)
            case Evaluated():
                self.ledger.record_evaluation(event)
            case Failed():
                self.ledger.fail_trial(event.trial, event.reason)
            case Finished():
                # As one: a process that lost the run puts no predictions in the place of another's.
                with self.ledger.transaction():
                    self._record_finished(event, dataset, method, costs)

    def _record_finished(self, event: Finished, dataset: Dataset, method: Method, costs: TextCosts) -> None:
        self.ledger.forget_beyond(event.trial, event.steps)
        path = self.place.predictions(event.trial)
        write_predictions(path, dataset, event.predictions)
        self.ledger.add_artifact(path, "predictions", event.trial)
        for saved in final_files(path.parent):
            self.ledger.add_artifact(saved, saved.parent.name, event.trial)
        self.ledger.finish_trial(
            event,
            peak_bytes(),
            _classifier_bytes(path.parent),
            costs.of_trial(method, event.trained_tokens, self.ledger.evaluations_of(event.trial)),
            costs.of_serving(method),
        )


def _classifier_bytes(trial: Path) -> int | None:
    """Returns the size of the trained tensors as they are saved, None where nothing was saved."""
    sizes = {file.parent.name: file.stat().st_size for file in final_files(trial) if file.suffix == ".safetensors"}
    return sizes.get("best", sizes.get("last"))
