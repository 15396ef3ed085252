"""A fleet's checkpoints: one cut through all trials under way at a time, valid as a whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from fleetune.data.writing import make_folder, write_bytes
from fleetune.engine.checkpoint import SavedFile, quarantine, sweep

KEPT = 2
"""Generations that are kept: where the newest is damaged, the one before is taken. They have no file in common."""


@dataclass(frozen=True)
class TrialCut:
    """Where one trial under way stood.

    Attributes:
        trial: Which.
        facts: What of its state is no tensor.
        last: Its tensors, the optimizer's among them.
        best: Those of its best evaluation so far, None before the first.
    """

    trial: str
    facts: Mapping[str, Any]
    last: SavedFile
    best: SavedFile | None = None

    @property
    def files(self) -> dict[str, SavedFile]:
        """Its files by kind."""
        return {"last": self.last} | ({"best": self.best} if self.best is not None else {})


@dataclass(frozen=True)
class Generation:
    """All trials of a fleet that were under way, at the same micro-step.

    What runs together decides how work is divided, and with that last digits: who is not among them had ended.

    Attributes:
        trials: They, in the order in which they run.
        packing: What running out of memory has changed in how they run.
    """

    trials: tuple[TrialCut, ...]
    packing: Mapping[str, int]

    @property
    def ids(self) -> list[str]:
        """The trials' ids."""
        return [cut.trial for cut in self.trials]

    @property
    def files(self) -> list[SavedFile]:
        """Every file that it needs."""
        return [file for cut in self.trials for file in cut.files.values()]

    def of(self, trials: list[str]) -> Generation:
        """Returns the same cut through some of its trials."""
        return Generation(tuple(cut for cut in self.trials if cut.trial in trials), self.packing)


class CheckpointStore(Protocol):
    """Knows which generations of one fleet are valid."""

    @property
    def root(self) -> Path:
        """Folder of the trials: `ID/last/` and `ID/best/`."""

    def new_name(self) -> str:
        """Returns what the files of the next generation are called, as no others are.

        It raises where another process has the run, so that none of these files is written.
        """

    def latest(self) -> Generation | None:
        """Returns the newest generation that is whole; what is damaged of a newer one is put aside."""

    def commit(self, generation: Generation) -> None:
        """Makes a generation valid whose files are on disk, in one act; then lets go of outdated ones."""

    def end(self) -> None:
        """Lets go of every generation, since no trial is under way any more."""

    def has_final(self, trial: str) -> bool:
        """Returns whether readers have the files of a trial that ended before: it runs again as company alone."""

    def writing(self) -> AbstractContextManager[object]:
        """Returns what is entered to put files in the place of others; it raises where another process has the run."""


class FolderCheckpoints:
    """Keeps a fleet's generations in a folder, for who has no ledger: `generations/N.json` beside the trials'.

    Args:
        root: Folder of the trials; one fleet's at a time.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: list[SavedFile] = []
        self._folder = root / "generations"

    def new_name(self) -> str:
        """Returns the number of the next generation."""
        return str(max(self._numbers(), default=0) + 1)

    def latest(self) -> Generation | None:
        """Returns the newest whole generation; damaged files are put aside and listed in `damaged`."""
        for number in reversed(self._numbers()):
            generation = _read(self._path(number))
            damaged = [file for file in generation.files if not file.is_whole(self.root)] if generation else []
            if generation is not None and not damaged:
                return generation
            self.damaged += damaged
            self._path(number).unlink()
            for file in damaged:
                quarantine(self.root, file)
        return None

    def commit(self, generation: Generation) -> None:
        """Makes a generation valid by the file that lists it."""
        make_folder(self._folder)
        document = {"trials": [asdict(cut) for cut in generation.trials], "packing": dict(generation.packing)}
        write_bytes(self._path(int(self.new_name())), json.dumps(document).encode())
        for number in self._numbers()[:-KEPT]:
            self._path(number).unlink()
        self._sweep()

    def end(self) -> None:
        """Removes the lists, and the files that no reader needs."""
        for number in self._numbers():
            self._path(number).unlink()
        self._sweep()
        with suppress(OSError):
            self._folder.rmdir()

    def has_final(self, trial: str) -> bool:
        """Returns False: what a trial that ends again writes takes the place of what it wrote before."""
        return False

    def writing(self) -> AbstractContextManager[object]:
        """Returns a context without an effect: nobody else is told of the folder."""
        return nullcontext()

    def _sweep(self) -> None:
        listed = [generation for number in self._numbers() if (generation := _read(self._path(number))) is not None]
        kept = {file.path for generation in listed for file in generation.files}
        for trial in self.root.iterdir() if self.root.is_dir() else ():
            if trial != self._folder and trial.is_dir():
                sweep(self.root, trial.name, kept)

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("*.json"))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.json"


def _read(path: Path) -> Generation | None:
    """Returns the generation that a list names, None if it is no such list."""
    try:
        document = json.loads(path.read_bytes())
        return Generation(tuple(_cut(one) for one in document["trials"]), document["packing"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _cut(document: Mapping[str, Any]) -> TrialCut:
    last, best = (SavedFile(**one) if one else None for one in (document["last"], document["best"]))
    assert last is not None
    return TrialCut(document["trial"], document["facts"], last, best)
