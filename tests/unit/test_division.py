"""Which trials train together once a run was stopped, and from which of their checkpoints they go on."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from fleetune.engine.checkpoint import SavedFile
from fleetune.engine.cuts import Cuts
from fleetune.engine.events import Event, Finished
from fleetune.engine.generation import CheckpointStore, Generation, TrialCut
from fleetune.engine.trial import Trial
from fleetune.errors import RecipeError, RunError, StorageError
from fleetune.lab.checkpoints import FleetCheckpoints, close_fleet, remove_leftovers
from fleetune.lab.disk import naming_faults
from fleetune.lab.division import Division
from fleetune.lab.executors.base import FleetJob, StartedFleet
from fleetune.lab.kept_files import remove_partials
from fleetune.lab.ledger import Ledger, LedgerReader
from fleetune.lab.notices import Noted
from fleetune.lab.recipe import Recipe, load_recipe
from fleetune.lab.runner import run
from fleetune.lab.status import read_status
from tests.unit.test_runner import FakeExecutor, SmallMachine


class _Killed(BaseException):
    """Ends a run as a kill would, but that its ledger is closed."""


def die() -> None:
    raise _Killed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def killed(recipe: Recipe, folder: Path, executor: FakeExecutor) -> None:
    with pytest.raises(_Killed):
        run(recipe, folder, executor=executor)


def sizes(executor: FakeExecutor) -> list[int]:
    return [len(job) for job in executor.jobs]


@pytest.mark.parametrize(("before", "after"), [(1, 9), (9, 1)])
def test_a_division_holds_whatever_memory_is_free_later(
    write_recipe: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    recipe, expected = load_recipe(write_recipe()), min(4, before)
    monkeypatch.setattr("fleetune.lab.inputs.fits", lambda shape, trials, available: len(trials) <= before)
    first = FakeExecutor({"head": die})
    killed(recipe, folder, first)
    monkeypatch.setattr("fleetune.lab.inputs.fits", lambda shape, trials, available: len(trials) <= after)
    again = FakeExecutor()
    assert run(recipe, folder, executor=again).done == (2 if before == 1 else 4)
    assert set(sizes(first)) | set(sizes(again)) == {expected}


def test_a_fleet_that_was_halved_stays_so(write_recipe: Callable[..., Path], folder: Path) -> None:
    class Dying(SmallMachine):
        def _events(self, job: FleetJob) -> Iterator[Event]:
            for event in super()._events(job):
                if len(self.jobs) == 2:
                    raise _Killed
                yield event

    recipe, first, again = load_recipe(write_recipe()), Dying(3), FakeExecutor()
    killed(recipe, folder, first)
    assert sizes(first) == [4, 2]
    assert run(recipe, folder, executor=again).done == 4
    assert sizes(again) == [2, 2]
    assert again.jobs[0] == first.jobs[1]


def test_what_failed_by_itself_is_tried_again_when_the_run_has_ended(
    write_recipe: Callable[..., Path], folder: Path
) -> None:
    recipe = load_recipe(write_recipe(method=[{"kind": "full"}, {"kind": "head"}]))
    first, second, third, fourth = FakeExecutor({"full": "nan", "head": die}), *(FakeExecutor() for _ in range(3))
    killed(recipe, folder, first)
    summary = run(recipe, folder, executor=second)
    assert second.jobs == first.jobs[2:]
    assert [trial.status for trial in read_status(folder).trials] == ["failed", "failed", "done", "done"]
    assert (summary.done, summary.failed) == (2, 2)
    assert run(recipe, folder, executor=third).done == 2
    assert third.jobs == first.jobs[:2]
    run(recipe, folder, executor=fourth)
    assert fourth.jobs == []


def test_the_time_between_checkpoints_is_no_part_of_a_trial_and_may_change(
    write_recipe: Callable[..., Path], folder: Path
) -> None:
    class Asking(FakeExecutor):
        def start(self, job: FleetJob) -> StartedFleet:
            seconds.append(job.checkpoint_seconds)
            return super().start(job)

    training = {"epochs": 1, "precision": "fp32", "learning_rate": 1e-2, "seeds": 2, "metric": "accuracy"}
    seconds: list[float] = []
    killed(load_recipe(write_recipe(training=training)), folder, Asking({"lora": die}))
    changed = load_recipe(write_recipe(training={**training, "checkpoint_seconds": 5}))
    assert run(changed, folder, executor=Asking()).done == 4
    assert seconds == [60.0, 5.0]
    assert load_recipe(folder / "recipe.toml").checkpoint_seconds == 5.0
    assert run(load_recipe(folder / "recipe.toml"), folder, executor=Asking()).skipped == 4
    with pytest.raises(RecipeError, match=r"checkpoint_seconds = -1"):
        load_recipe(write_recipe(training={"checkpoint_seconds": -1}))


class Saving(FakeExecutor):
    """Saves itself after each evaluation; a trial is over and told so at once where its kind is `ends`."""

    def __init__(self, dies_after: int | None = None, ends: str = "") -> None:
        super().__init__()
        self.dies_after, self.ends, self.saves = dies_after, ends, 0

    def _events(self, job: FleetJob) -> Iterator[Event]:
        running = [spec.id for spec in job.specs]
        kinds = {spec.id: spec.method.kind for spec in job.specs}
        for number, event in enumerate(super()._events(job)):
            yield event
            if isinstance(event, Finished):
                running.remove(event.trial)
            elif number % 8 == 7:
                self.saves += 1
                save(job.checkpoints, [trial for trial in running if kinds[trial] != self.ends])
                if self.saves == self.dies_after:
                    raise _Killed


def save(store: CheckpointStore, trials: list[str]) -> Generation:
    """Writes and commits a generation whose files hold their own name."""
    generation = written(store, trials)
    store.commit(generation)
    return generation


def written(store: CheckpointStore, trials: list[str]) -> Generation:
    """Writes a generation that nobody has committed."""
    name = store.new_name()
    cuts = []
    for trial in trials:
        files = {}
        for kind in ("last", "best"):
            path = f"{trial}/{kind}/state-{name}.safetensors"
            (store.root / path).parent.mkdir(parents=True, exist_ok=True)
            (store.root / path).write_text(path)
            files[kind] = SavedFile(path, len(path), hashlib.sha256(path.encode()).hexdigest())
        cuts.append(TrialCut(trial, {"progress": {"step": 1}}, files["last"], files["best"]))
    return Generation(tuple(cuts), {"pack_trials": 3})


def test_a_fleet_goes_on_with_those_that_its_checkpoint_has_under_way(
    write_recipe: Callable[..., Path], folder: Path
) -> None:
    recipe, first, again = load_recipe(write_recipe()), Saving(dies_after=2, ends="head"), FakeExecutor()
    killed(recipe, folder, first)
    run(recipe, folder, executor=again)
    assert again.jobs == [first.jobs[0][:2]]
    assert not list((folder / "trials").glob("*/*/state-*")), "checkpoints go when all have ended"


@pytest.mark.parametrize("damaged", ["newest", "all"])
def test_damage_is_told_noted_and_put_aside(write_recipe: Callable[..., Path], folder: Path, damaged: str) -> None:
    recipe, again, lines = load_recipe(write_recipe()), FakeExecutor(), []
    killed(recipe, folder, Saving(dies_after=3))
    files = sorted((folder / "trials").glob("*/last/state-*"), key=lambda path: path.name)
    assert len(files) == 8, "two checkpoints of four trials"
    for file in files[-1:] if damaged == "newest" else (files[0], files[-1]):
        file.write_text("x" * file.stat().st_size)
    run(recipe, folder, lambda one: lines.append(one.text) if isinstance(one, Noted) else None, again)
    assert sizes(again) == [4]
    assert len(lines) == (1 if damaged == "newest" else 3)
    assert "is damaged" in lines[0] and "\n" not in lines[0]
    assert damaged == "newest" or lines[2] == "no whole checkpoint is left: 4 trials begin anew"
    with LedgerReader(folder) as ledger:
        noted = ledger.rows("SELECT trial FROM events WHERE kind = 'checkpoint damaged'")
    aside = list((folder / "trials").glob("*/quarantine/*"))
    assert sorted(path.parents[1].name for path in aside) == sorted(row["trial"] for row in noted)
    assert len(aside) == (1 if damaged == "newest" else 2)


def test_trials_that_are_done_keep_company_with_those_that_begin_anew(
    write_recipe: Callable[..., Path], folder: Path
) -> None:
    class EndsEarly(Saving):
        def _events(self, job: FleetJob) -> Iterator[Event]:
            events = list(super(Saving, self)._events(job))
            ids = [spec.id for spec in job.specs]
            yield from (event for event in events if event.trial == ids[0])
            save(job.checkpoints, ids[1:])
            raise _Killed

    recipe, again = load_recipe(write_recipe()), FakeExecutor()
    killed(recipe, folder, first := EndsEarly())
    assert [trial.status for trial in read_status(folder).trials].count("done") == 1
    for file in (folder / "trials").glob("*/last/state-*"):
        file.write_text("x" * file.stat().st_size)
    lines: list[str] = []
    summary = run(recipe, folder, lambda one: lines.append(one.text) if isinstance(one, Noted) else None, again)
    assert again.jobs == first.jobs and (summary.done, summary.skipped) == (3, 1)
    assert lines[-1] == "no whole checkpoint is left: 3 trials begin anew"


def test_a_trial_is_trained_again_in_the_company_that_it_had_last(ledger: Ledger, tmp_path: Path) -> None:
    division = Division(ledger, "trials")
    (planned,) = division.open_fleets(0)
    with ledger.transaction() as db:
        close_fleet(db, planned.id)
    for trial in "ab":
        ledger.fail_trial(trial, "alone")
    division.retry_failed()
    (retried,) = division.open_fleets(0)
    halves = division.divide(retried, "ab", None)
    with ledger.transaction() as db:
        db.execute("UPDATE fleets SET trials = '[\"b\"]' WHERE id = ?", (retried.id,))
        for half in halves:
            close_fleet(db, half.id)
    division.begin_again(["b", "a"])
    assert {fleet.trials for fleet in division.open_fleets(0)} == {("b",), ("a", "b")}


def test_halves_of_a_fleet_begin_with_whole_packs(ledger: Ledger, tmp_path: Path) -> None:
    division = Division(ledger, "trials")
    (fleet,) = division.open_fleets(0)
    store = FleetCheckpoints(ledger, tmp_path / "trials", fleet.id, ("a", "b"), pytest.fail)
    assert save(store, ["a", "b"]).packing
    halves = division.divide(fleet, "ab", store.latest())
    for half in halves:
        found = FleetCheckpoints(ledger, tmp_path / "trials", half.id, half.trials, pytest.fail).latest()
        assert found is not None and (found.ids, found.packing) == (list(half.trials), {})


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path)
    opened.begin_attempt({})
    fields: dict[str, Any] = dict.fromkeys(("name", "data", "backbone", "kind", "entry"), "x")
    fields |= {"settings": {}, "training": {}, "parameters": {}, "seed": 0, "train_share": 1.0, "train_texts": 1}
    opened.add_trials([{**fields, "id": trial, "position": n, "fleet": 0} for n, trial in enumerate("ab")])
    yield opened
    opened.close()


def listed(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("state*"))


def test_two_generations_are_kept_with_all_their_files(ledger: Ledger, tmp_path: Path) -> None:
    store = FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a", "b"), pytest.fail)
    generations = [save(store, ["a", "b"]) for _ in range(4)]
    assert listed(store.root) == sorted(file.path for one in generations[2:] for file in one.files)
    opened_again = FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a", "b"), pytest.fail)
    assert opened_again.latest() == generations[3]
    (store.root / "a" / "last" / "state-9-9.safetensors").touch()
    (store.root / "a" / "best" / "state.json.partial").touch()
    remove_leftovers(ledger, store.root, ["a", "b"])
    assert listed(store.root) == sorted(file.path for one in generations[2:] for file in one.files)
    store.end()
    assert listed(store.root) == []
    assert ledger.rows("SELECT * FROM checkpoints") == []


def test_a_generation_without_its_commit_does_not_count(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a", "b"), pytest.fail)
    whole = save(store, ["a", "b"])
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_commit", die)
        with pytest.raises(_Killed):
            save(store, ["a", "b"])
    ledger._db.rollback()
    assert FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a", "b"), pytest.fail).latest() == whole


def test_a_disk_that_does_not_read_now_damages_nothing(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    saved = save(FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a", "b"), pytest.fail), ["a", "b"])
    with monkeypatch.context() as patch:
        patch.setattr("fleetune.engine.checkpoint.sha256_of", broken)
        with pytest.raises(StorageError, match="does not read or write"), naming_faults(tmp_path):
            FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a", "b"), pytest.fail).latest()
    assert FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a", "b"), pytest.fail).latest() == saved


def test_a_process_that_was_taken_over_removes_and_moves_nothing(ledger: Ledger, tmp_path: Path) -> None:
    root = tmp_path / "trials"
    save(FleetCheckpoints(ledger, root, 1, ("a", "b"), pytest.fail), ["a", "b"])
    stale = FleetCheckpoints(ledger, root, 1, ("a", "b"), pytest.fail)
    other = Ledger(tmp_path)
    other.begin_attempt({})
    for path in listed(root):
        (root / path).write_text("damaged")
    (root / "a" / "last" / "state-2-9.safetensors").write_text("not yet committed by the one that has the run")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "audit.json.7.partial").touch()
    before = sorted(tmp_path.rglob("*"))
    for act in (
        stale.latest,
        lambda: remove_leftovers(ledger, root, ["a", "b"]),
        lambda: remove_partials(ledger, tmp_path / "data"),
    ):
        with pytest.raises(RunError, match="taken over"):
            act()
    assert sorted(tmp_path.rglob("*")) == before
    other.close()


@pytest.mark.parametrize(("column", "old", "new"), [("trials", '"step": 1', '"step": 3'), ("packing", "3", "1")])
def test_a_changed_number_in_where_trials_stood_is_found(
    ledger: Ledger, tmp_path: Path, column: str, old: str, new: str
) -> None:
    lines: list[str] = []
    store = FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a", "b"), pytest.fail)
    before, _ = save(store, ["a", "b"]), save(store, ["a", "b"])
    change = f"UPDATE generations SET {column} = replace({column}, ?, ?) WHERE id = 2"
    assert ledger._db.execute(change, (old, new)).rowcount == 1
    found = FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a", "b"), lines.append)
    assert found.latest() == before and not found.was_lost
    assert lines == ["the list of checkpoint 2 is damaged, the one before is taken"]
    assert ledger.rows("SELECT count(*) FROM events WHERE kind = 'checkpoint damaged'")[0][0] == 1


def test_what_an_older_version_listed_is_taken_as_it_is(ledger: Ledger, tmp_path: Path) -> None:
    saved = save(FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a", "b"), pytest.fail), ["a", "b"])
    ledger._db.execute("UPDATE generations SET sha256 = NULL")
    assert FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a", "b"), pytest.fail).latest() == saved


def test_a_process_that_was_taken_over_commits_no_checkpoint(ledger: Ledger, tmp_path: Path) -> None:
    store = FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a", "b"), pytest.fail)
    save(store, ["a", "b"])
    late = written(store, ["a", "b"])
    other = Ledger(tmp_path)
    other.begin_attempt({})
    newer = FleetCheckpoints(other, tmp_path / "trials", 1, ("a", "b"), pytest.fail)
    kept = save(newer, ["a", "b"])
    with pytest.raises(RunError, match="taken over"):
        store.commit(late)
    assert FleetCheckpoints(other, tmp_path / "trials", 1, ("a", "b"), pytest.fail).latest() == kept
    assert all(file.is_whole(store.root) for file in kept.files), "its names are nobody else's"
    other.close()


class _Writing:
    """A trial that notes that it was asked to write itself."""

    def __init__(self) -> None:
        self.cuts = 0

    def cut(self, root: Path, name: str) -> TrialCut:
        self.cuts += 1
        return TrialCut("a", {}, SavedFile(f"a/last/state-{name}.safetensors", 0, ""))


def test_a_process_that_was_taken_over_writes_no_file_of_a_checkpoint(ledger: Ledger, tmp_path: Path) -> None:
    trial = _Writing()
    cuts = Cuts(FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a", "b"), pytest.fail), 0.0)
    cuts.save([cast(Trial, trial)], {})
    other = Ledger(tmp_path)
    other.begin_attempt({})
    with pytest.raises(RunError, match="taken over"):
        cuts.save([cast(Trial, trial)], {})
    assert trial.cuts == 1
    other.close()


def test_no_transaction_is_held_while_the_files_of_a_checkpoint_are_written(ledger: Ledger, tmp_path: Path) -> None:
    store = FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a", "b"), pytest.fail)
    store.new_name()
    assert not ledger._db.in_transaction


def test_facts_come_back_digit_by_digit(ledger: Ledger, tmp_path: Path) -> None:
    store = FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a",), pytest.fail)
    facts = {"progress": {"best_value": 0.1 + 0.2, "seconds": 1e-300}, "totals": {"loss": float("inf")}}
    saved = save(store, ["a"])
    store.commit(Generation((TrialCut("a", facts, saved.trials[0].last),), {"least_parts": 4}))
    found = FleetCheckpoints(ledger, tmp_path / "trials", 1, ("a",), pytest.fail).latest()
    assert found is not None
    assert (found.trials[0].facts, found.packing, found.trials[0].best) == (facts, {"least_parts": 4}, None)
    assert json.loads(json.dumps(found.trials[0].facts)) == facts
