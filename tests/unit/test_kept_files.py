"""What became of a finished run's files and rows since they were written is found before they are used."""

from __future__ import annotations

import hashlib
import sqlite3
import tomllib
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from fleetune.compare.held_out import HeldOutTexts
from fleetune.data.writing import sha256_of
from fleetune.engine.checkpoint import save_tensors
from fleetune.engine.generation import Generation, TrialCut
from fleetune.engine.loss import batch_loss
from fleetune.errors import RecipeError, RunError, StorageError
from fleetune.lab.checkpoints import FleetCheckpoints, remove_leftovers
from fleetune.lab.folder import RunFolder
from fleetune.lab.frozen import frozen_recipe
from fleetune.lab.kept_files import refuse_damaged
from fleetune.lab.ledger import Ledger, LedgerReader
from fleetune.lab.notices import Noted, Notice
from fleetune.lab.recipe import Recipe, load_recipe
from fleetune.lab.results import load_results
from fleetune.lab.runner import run
from fleetune.lab.status import read_status
from tests.unit.test_runner import STEPS, FakeExecutor


@pytest.fixture
def finished(write_recipe: Callable[..., Path], tmp_path: Path) -> tuple[Recipe, Path]:
    """Returns a recipe and the folder of its run, in which every trial is done."""
    recipe = load_recipe(write_recipe())
    assert run(recipe, tmp_path / "run", executor=FakeExecutor()).done == 4
    return recipe, tmp_path / "run"


def change(folder: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db, db:
        assert db.execute(statement, values).rowcount > 0


@pytest.mark.parametrize("how", ["one bit", "cut off", "gone"])
def test_a_trial_whose_predictions_are_damaged_is_trained_again(finished: tuple[Recipe, Path], how: str) -> None:
    recipe, folder = finished
    path = sorted(folder.glob("trials/*/predictions.parquet"))[0]
    whole = path.read_bytes()
    damaged = {"one bit": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], "cut off": whole[:-1], "gone": b""}[how]
    path.unlink() if how == "gone" else path.write_bytes(damaged)
    with pytest.raises(RunError, match=r"predictions.parquet is damaged.*\n.*[Rr]un the recipe again"):
        load_results(folder)
    told: list[Notice] = []
    executor = FakeExecutor()
    summary = run(recipe, folder, told.append, executor)
    assert (summary.done, summary.skipped) == (1, 3)
    assert [len(job) for job in executor.jobs] == [4], "it trains in the company that it had"
    assert path.read_bytes() == whole
    kept = list((path.parent / "quarantine").glob("*"))
    assert [file.read_bytes() for file in kept] == ([] if how == "gone" else [damaged])
    (noted,) = [notice.text for notice in told if isinstance(notice, Noted)]
    assert "predictions.parquet is damaged" in noted
    again = FakeExecutor()
    run(recipe, folder, executor=again)
    assert again.jobs == []


def test_rows_that_changed_since_a_run_ended_are_refused(finished: tuple[Recipe, Path]) -> None:
    recipe, folder = finished
    load_results(folder)
    change(folder, "UPDATE trials SET seconds = seconds + 1e-9 WHERE position = 2")
    for use in (load_results, lambda place: run(recipe, place, executor=FakeExecutor())):
        with pytest.raises(StorageError, match=r"ledger.sqlite is damaged \(its rows") as error:
            use(folder)
        assert len(str(error.value).splitlines()) == 2


def test_a_run_that_goes_on_has_no_seal_until_it_ends(finished: tuple[Recipe, Path]) -> None:
    _, folder = finished
    ledger = Ledger(folder)
    ledger.begin_attempt({})
    ledger.set_meta(name="another")
    load_results(folder)
    ledger.end_attempt("done")
    ledger.close()
    load_results(folder)
    change(folder, "UPDATE meta SET value = '\"the old one\"' WHERE key = 'name'")
    with pytest.raises(StorageError):
        load_results(folder)


def test_a_ledger_that_names_a_file_outside_the_run_moves_nothing(finished: tuple[Recipe, Path]) -> None:
    recipe, folder = finished
    outside = folder.parent / "outside.txt"
    outside.write_text("mine")
    change(folder, "DELETE FROM meta WHERE key = 'seal'")
    (trial,) = {one.id for one in load_results(folder).trials[:1]}
    change(folder, "INSERT INTO artifacts VALUES ('../outside.txt', ?, 'predictions', 4, 'no')", trial)
    for use in (load_results, lambda place: run(recipe, place, executor=FakeExecutor())):
        with pytest.raises(RunError, match="names a file outside"):
            use(folder)
    assert outside.read_text() == "mine"


def test_a_checkpoint_that_names_a_file_outside_the_trials_moves_and_removes_nothing(
    finished: tuple[Recipe, Path],
) -> None:
    folder = finished[1]
    outside = folder.parent / "docs" / "x"
    outside.parent.mkdir()
    outside.write_text("mine")
    change(folder, "DELETE FROM meta WHERE key = 'seal'")
    ledger = Ledger(folder)
    (trial, _), *_ = ledger.trial_keys()
    store = FleetCheckpoints(ledger, folder / "trials", 1, (trial,), pytest.fail)
    file = save_tensors(store.root, f"{trial}/last/state-1-1.safetensors", {"x": torch.zeros(1)})
    store.commit(Generation((TrialCut(trial, {}, file),), {}))
    for path in (
        "trials/../../docs/x", f"trials/{trial}/last/../../../../docs/x", f"trials/{trial}/other/x", str(outside),
        f"trials/{trial}/last/.hidden", f"trials/{trial}/last/", "trials/another/last/x", "ledger.sqlite",
    ):  # fmt: skip
        ledger._db.execute("UPDATE checkpoints SET path = ?", (path,))
        opened = FleetCheckpoints(ledger, folder / "trials", 1, (trial,), pytest.fail)
        for use in (opened.latest, lambda: opened.commit(Generation((TrialCut(trial, {}, file),), {}))):  # noqa: B023
            with pytest.raises(StorageError, match=r"ledger\.sqlite is damaged") as error:
                use()
            assert len(str(error.value).splitlines()) == 2
    with pytest.raises(StorageError, match="is no trial's id"):
        remove_leftovers(ledger, store.root, ["../../docs"])
    ledger.close()
    assert outside.read_text() == "mine"


def test_what_became_of_the_data_is_written_again_where_it_is_damaged(finished: tuple[Recipe, Path]) -> None:
    recipe, folder = finished
    names = ("recipe.toml", "data/audit.json", "data/splits.parquet", "data/held_out.parquet")
    before = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        (folder / name).write_bytes(before[name][:-3] + b"\x01\x02\x03")
        run(recipe, folder, executor=FakeExecutor())
        assert {one: (folder / one).read_bytes() for one in names} == before, name


@pytest.mark.parametrize("kind", ["best", "predictions"])
def test_a_trial_that_is_trained_again_with_other_digits_is_whole_and_leaves_the_others(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def files() -> dict[Path, bytes]:
        paths = [path for path in (folder / "trials").rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in paths if "quarantine" not in path.parts}

    recipe, folder = load_recipe(write_recipe()), tmp_path / "run"
    assert run(recipe, folder).done == 4
    before = files()
    damaged = min(path for path in before if path.parent.name == kind or path.stem == kind)
    trial = damaged.relative_to(folder / "trials").parts[0]
    damaged.write_bytes(before[damaged][:-1])
    monkeypatch.setattr("fleetune.engine.micro_batches.batch_loss", lambda *given: 1.01 * batch_loss(*given))
    assert run(recipe, folder).skipped == 3
    monkeypatch.undo()
    after = files()
    changed = {path for path in {**before, **after} if before.get(path) != after.get(path)}
    assert changed and {path.relative_to(folder / "trials").parts[0] for path in changed} == {trial}
    with LedgerReader(folder) as ledger:
        for one in load_results(folder).trials:
            refuse_damaged(ledger, folder, one.id, ["best", "last", "predictions"])
    untouched = FakeExecutor()
    run(recipe, folder, executor=untouched)
    assert untouched.jobs == []


def test_a_trial_that_ends_earlier_the_second_time_keeps_nothing_of_the_first(
    finished: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = finished
    path = sorted(folder.glob("trials/*/predictions.parquet"))[0]
    path.unlink()
    monkeypatch.setattr("tests.unit.test_runner.STEPS", STEPS - 1)
    run(recipe, folder, executor=FakeExecutor())
    ends = {
        (trial.id == path.parent.name, max(trial.losses)[0], trial.history[-1]["step"])
        for trial in load_results(folder).trials
    }
    assert ends == {(True, STEPS - 1, STEPS - 1), (False, STEPS, STEPS)}


def flip(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def texts_of(folder: Path) -> Mapping[str, HeldOutTexts]:
    return load_results(folder).texts["reviews"]


@pytest.mark.parametrize(("name", "read"), [("audit.json", load_results), ("held_out.parquet", texts_of)])
def test_damaged_facts_about_the_data_of_a_run_that_ended_are_not_read(
    finished: tuple[Recipe, Path], name: str, read: Callable[[Path], object]
) -> None:
    recipe, folder = finished
    read(folder)
    flip(folder / "data" / name)
    with pytest.raises(RunError, match=rf"{name} is damaged: its checksum.*\n.*fleetune run .*recipe\.toml") as error:
        read(folder)
    assert len(str(error.value).splitlines()) == 2
    assert read_status(folder).counts["done"] == 4
    run(recipe, folder, executor=FakeExecutor())
    read(folder)


@pytest.mark.parametrize(
    "because",
    [
        "DELETE FROM artifacts WHERE kind = 'data'",  # an older version made it
        "UPDATE attempts SET ended = NULL, outcome = NULL",  # it lives or was killed: the row may not be there yet
        "UPDATE attempts SET outcome = 'interrupted'",
    ],
)
def test_facts_about_the_data_are_read_where_the_ledger_need_not_know_them(
    finished: tuple[Recipe, Path], because: str
) -> None:
    folder = finished[1]
    change(folder, "DELETE FROM meta WHERE key = 'seal'")
    change(folder, because)
    audit, held_out = folder / "data" / "audit.json", folder / "data" / "held_out.parquet"
    audit.write_text(audit.read_text() + "\n")
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(held_out), held_out, compression="none")
    assert load_results(folder).audits[0]["name"] == "reviews"
    assert texts_of(folder)["test"].texts


def test_held_out_texts_are_compared_when_they_are_read_and_once(
    finished: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []

    def counted(path: Path) -> str:
        compared.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr("fleetune.lab.kept_files.sha256_of", counted)
    results = load_results(finished[1])
    assert "held_out.parquet" not in compared and compared.count("audit.json") == 1
    assert results.texts["reviews"]["test"].texts and results.texts["reviews"]["validation"].texts
    assert compared.count("held_out.parquet") == 1


@pytest.mark.parametrize("content", [b"[data]\nmax_tokens = 1\n", b"\xff", b"[[[", None])
def test_readers_have_the_recipe_of_the_ledger_where_its_file_says_something_else(
    finished: tuple[Recipe, Path], content: bytes | None
) -> None:
    place = RunFolder(finished[1])
    before, whole = place.recipe.read_bytes(), load_recipe(place.recipe)
    assert load_results(place.path).recipe_text.encode() == before
    place.recipe.unlink() if content is None else place.recipe.write_bytes(content)
    results = load_results(place.path)
    assert tomllib.loads(results.recipe_text) == tomllib.loads(before.decode())
    assert results.hashes["recipe"] == hashlib.sha256(results.recipe_text.encode()).hexdigest()
    with LedgerReader(place.path) as ledger:
        found = frozen_recipe(place, ledger.meta())
    assert (found.name, found.base, found.data, found.backbones) == (
        whole.name, whole.base, whole.data, whole.backbones,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [(b"max_tokens = ", b"max_tokens = 1", r"data\.0\.max_tokens"), (b"rank = 2\n", b"", r"method\.0\.rank")],
    ids=["changed", "left out"],
)
def test_a_run_is_not_taken_up_by_its_own_recipe_where_that_was_changed(
    finished: tuple[Recipe, Path], old: bytes, new: bytes, key: str
) -> None:
    recipe, folder = finished
    path = folder / "recipe.toml"
    before = path.read_bytes()
    assert old in before
    path.write_bytes(before.replace(old, new, 1))
    with pytest.raises(RecipeError, match=rf"recipe\.toml is not .*{key} differs.*\n.*--out") as error:
        run(load_recipe(path), folder, executor=FakeExecutor())
    assert len(str(error.value).splitlines()) == 2
    run(recipe, folder, executor=FakeExecutor())
    assert path.read_bytes() == before


def test_where_an_older_ledger_has_no_recipe_the_file_is_taken(finished: tuple[Recipe, Path]) -> None:
    place = RunFolder(finished[1])
    place.recipe.write_bytes(place.recipe.read_bytes() + b"\n# by hand\n")
    change(place.path, "DELETE FROM meta WHERE key IN ('seal', 'recipe')")
    assert load_results(place.path).recipe_text.endswith("# by hand\n")
    with LedgerReader(place.path) as ledger:
        assert frozen_recipe(place, ledger.meta()).data == load_recipe(place.recipe).data
