"""A run's folder that is moved away while something is written: nothing is made anew where it was."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleetune.data import writing
from fleetune.data.tokens import tokenize
from fleetune.engine import evaluation, logits
from fleetune.engine.logits import KeptLogits
from fleetune.errors import StorageError
from fleetune.lab import runner
from fleetune.lab.held_out import write_held_out
from fleetune.lab.predictions import write_predictions
from fleetune.lab.recipe import load_recipe
from fleetune.lab.runner import run
from fleetune.lab.status import read_status
from tests.integration.test_memory_bounds import held_out, some_logits
from tests.tiny import random_tokens
from tests.unit.test_data_tokens import data, make_tokenizer

Write = Callable[..., Path]
PLACES = {
    "evaluating": (evaluation, "pack_sequences"),
    "tokenising": (runner, "tokens_for"),
    "keeping held-out texts": (runner, "write_held_out"),
    "keeping predictions": (runner, "write_predictions"),
}


@pytest.mark.parametrize(("module", "name"), PLACES.values(), ids=PLACES)
def test_a_run_whose_folder_is_moved_away_ends_with_two_lines_and_goes_on_there(
    module: Any, name: str, write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, moved, does = tmp_path / "runs" / "quick", tmp_path / "runs" / "moved", getattr(module, name)

    def moving(*given: Any, **settings: Any) -> Any:
        if folder.exists():
            folder.rename(moved)
        return does(*given, **settings)

    monkeypatch.setattr(logits, "MOST_BYTES_IN_MEMORY", 0)
    recipe = write_recipe(method=[{"kind": "head"}, {"kind": "majority"}])
    with monkeypatch.context() as patch:
        patch.setattr(module, name, moving)
        with pytest.raises(StorageError, match="moved") as told:
            run(load_recipe(recipe), folder)
    assert len(str(told.value).splitlines()) == 2
    assert [item.name for item in folder.parent.iterdir()] == ["moved"], "made anew in the old place"
    assert read_status(moved).counts["failed"] == 0
    assert run(load_recipe(moved / "recipe.toml"), moved).failed == 0
    assert read_status(moved).counts["done"] == 3


def test_nothing_makes_the_folder_of_a_run_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logits, "MOST_BYTES_IN_MEMORY", 0)
    gone, dataset = tmp_path / "run", held_out(8, 2)
    with pytest.raises(FileNotFoundError):
        KeptLogits(8, 2, gone / "trials")
    with pytest.raises(FileNotFoundError):
        write_predictions(gone / "trials" / "id" / "predictions.parquet", dataset, some_logits(dataset, 0))
    with pytest.raises(FileNotFoundError):
        write_held_out(gone / "data" / "held_out.parquet", dataset, random_tokens(8))
    with pytest.raises(StorageError, match="is gone: it was deleted or moved") as told:
        tokenize(data(["a"]), make_tokenizer(), 8, gone / "data" / "tokens", "tiny")
    assert len(str(told.value).splitlines()) == 2
    assert not gone.exists()


def test_a_full_disk_is_not_told_as_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StorageError, match=r"cannot be written to .*No space left on device"):
        tokenize(data(["a"]), make_tokenizer(), 8, tmp_path / "tokens", "tiny")


def test_new_folders_are_on_disk_with_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[Path] = []
    monkeypatch.setattr(writing, "sync_folder", synced.append)
    dataset = held_out(8, 2)
    write_predictions(tmp_path / "trials" / "id" / "predictions.parquet", dataset, some_logits(dataset, 0))
    assert synced == [tmp_path, tmp_path / "trials", tmp_path / "trials" / "id"]
    synced.clear()
    write_held_out(tmp_path / "data" / "held_out.parquet", dataset, random_tokens(8))
    assert synced == [tmp_path, tmp_path / "data"]
    synced.clear()
    tokenize(data(["a"]), make_tokenizer(), 8, tmp_path / "data" / "tokens", "tiny")
    assert synced == [tmp_path / "data"]
