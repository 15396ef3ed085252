"""Data frames given to an experiment: each is kept in a file of its own, whole, and nothing else is written over."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from fleetune import Experiment
from fleetune.data import frames
from fleetune.errors import DataError, RecipeError, RunError, StorageError
from fleetune.lab.recipe import recipe_from
from fleetune.lab.runner import run
from tests.unit.test_runner import FakeExecutor

Make = Callable[..., Experiment]


@pytest.fixture
def frame(write_texts: Callable[..., Path]) -> pd.DataFrame:
    return pd.read_csv(write_texts())


@pytest.fixture
def make(tiny_bert: Path, tmp_path: Path) -> Make:
    """Returns what makes an experiment of a data frame."""

    def experiment(data: Any, out: Path = tmp_path / "run") -> Experiment:
        return Experiment(
            data=data, text="text", label="label", backbone={"model": str(tiny_bert), "name": "tiny"},
            methods=[{"kind": "head"}], training={"epochs": 1, "precision": "fp32"}, seeds=1, out=out,
        )  # fmt: skip

    return experiment


def path_of(experiment: Experiment) -> Path:
    path = experiment.recipe.data[0].path
    assert path is not None
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_frame_in_the_folder_of_a_run_leaves_the_runs_own(make: Make, frame: pd.DataFrame, tmp_path: Path):
    first = make(frame)
    assert run(first.recipe, first.folder, executor=FakeExecutor()).done == 1
    before = contents(tmp_path / "run")
    other = make(frame.assign(text=frame["text"] + " indeed"))
    after = contents(tmp_path / "run")
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 1
    assert path_of(other) != path_of(first)
    with pytest.raises(RecipeError, match="holds the run of another recipe"):
        run(other.recipe, other.folder, executor=FakeExecutor())
    again = make(frame)
    assert path_of(again) == path_of(first)
    assert run(again.recipe, again.folder, executor=FakeExecutor()).skipped == 1


def test_the_same_frame_is_written_once(make: Make, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch):
    path = path_of(make(frame))
    assert path.name.startswith("texts-") and pd.read_parquet(path)["text"].tolist() == frame["text"].tolist()
    was = path.stat()
    # Neither the index nor the way in which pandas keeps the same values makes another frame of it.
    same = frame.set_index(np.arange(len(frame)) * 3).astype({"label": "category"})
    monkeypatch.setattr(frames, "ROWS_AT_ONCE", 7)
    for given in (frame, same):
        assert path_of(make(given)) == path and path.stat().st_mtime_ns == was.st_mtime_ns
        assert path.stat().st_ino == was.st_ino
    path.write_bytes(path.read_bytes()[:-9])
    assert path_of(make(frame)) == path and pd.read_parquet(path)["text"].tolist() == frame["text"].tolist()


@pytest.mark.parametrize("change", ["value", "order", "column"])
def test_what_differs_has_another_name(change: str, make: Make, frame: pd.DataFrame):
    other = {
        "value": frame.assign(label=["pos", *frame["label"][1:]]),
        "order": frame[::-1],
        "column": frame.assign(year=2001),
    }[change]
    assert path_of(make(other)) != path_of(make(frame))


def test_a_run_whose_frame_has_the_old_name_goes_on(make: Make, frame: pd.DataFrame, tmp_path: Path):
    old = tmp_path / "run" / "data" / "texts.parquet"
    old.parent.mkdir(parents=True)
    frame.to_parquet(old, index=False)
    document = {**make(frame).recipe.document, "data": {"path": str(old), "text": "text", "label": "label"}}
    before = recipe_from(document, tmp_path, "Experiment")
    assert run(before, tmp_path / "run", executor=FakeExecutor()).done == 1
    experiment = make(frame)
    assert path_of(experiment) == old and [path.name for path in old.parent.glob("texts*")] == ["texts.parquet"]
    assert run(experiment.recipe, experiment.folder, executor=FakeExecutor()).skipped == 1
    was = old.read_bytes()
    assert path_of(make(frame[::-1])) != old and old.read_bytes() == was


def test_a_folder_that_is_no_runs_and_links_are_left_alone(make: Make, frame: pd.DataFrame, tmp_path: Path):
    foreign, linked = tmp_path / "foreign", tmp_path / "linked"
    for folder in (foreign, linked):
        folder.mkdir()
    (foreign / "thesis.txt").write_text("four years")
    with pytest.raises(RecipeError, match=r"thesis\.txt"):
        make(frame, foreign)
    assert list(contents(foreign)) == ["thesis.txt"]
    (tmp_path / "elsewhere").mkdir()
    (linked / "data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a link"):
        make(frame, linked)
    assert contents(tmp_path / "elsewhere") == {}
    with pytest.raises(RecipeError, match="is a file"):
        make(frame, foreign / "thesis.txt")


def test_a_file_is_whole_or_not_there(make: Make, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = pyarrow.parquet.write_table

    def stopped(table: Any, path: Any, *rest: Any, **settings: Any) -> None:
        write(table, path, *rest, **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(pyarrow.parquet, "write_table", stopped)
    with pytest.raises(KeyboardInterrupt):
        make(frame)
    assert contents(tmp_path / "run") == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(make: Make, frame: pd.DataFrame, tmp_path: Path):
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="no permission"):
        make(frame, tmp_path / "shut" / "run")


@pytest.mark.parametrize("above", [True, False])
def test_what_the_system_refuses_is_told_in_two_lines(
    above: bool, make: Make, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refused(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path if not above else tmp_path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(StorageError, match="no permission for") as told:
        make(frame)
    assert len(str(told.value).splitlines()) == 2


@pytest.mark.parametrize("column", [[1, "a"] * 60, [{}] * 120, [1j] * 120, [2**70] * 120])
def test_a_column_that_no_file_takes_is_told_in_two_lines(
    column: list[Any], make: Make, frame: pd.DataFrame, tmp_path: Path
):
    with pytest.raises(DataError, match="column") as told:
        make(frame.assign(year=pd.Series(column, dtype=None if column[0] == 1j else object)))
    assert len(str(told.value).splitlines()) == 2 and contents(tmp_path / "run") == {}


def test_an_experiment_with_a_frame_can_be_checked(make: Make, frame: pd.DataFrame):
    assert [trial.name for trial in make(frame).check().inputs.plan.trials] == ["head"]
