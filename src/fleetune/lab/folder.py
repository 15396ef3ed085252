"""Where things lie in a run's folder."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from fleetune.data.links import refuse_links
from fleetune.data.writing import PARTIAL
from fleetune.errors import RecipeError

TRIAL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path

    def refuse_foreign(self) -> None:
        """Does nothing if the folder is absent, empty or a run's.

        Raises:
            RecipeError: If it holds something else, which a run would mix with its own files.
        """
        if self.path.is_file():
            raise RecipeError(f"{self.path} is a file; --out takes a folder for the run")
        if not self.path.is_dir() or self.ledger.exists():
            return
        # A first start that was stopped by bad records, or by another process, leaves these alone.
        foreign = sorted(item.name for item in self.path.iterdir() if item.name not in ("data", "ledger.lock"))
        if foreign:
            raise RecipeError(
                f"{self.path} holds no run, but other files, such as {foreign[0]}.\nGive an empty folder: --out DIR"
            )

    def refuse_links(self) -> None:
        """Does nothing if nothing that a run writes or deletes is a link, which could lead out of the folder.

        Raises:
            RunError: If something is.
        """
        left = [path.name for path in self.path.glob(f"*{PARTIAL}")]
        ledger = [f"{self.ledger.name}{end}" for end in ("", "-wal", "-shm", "-journal")]
        refuse_links(self.path, "trials", "data", "report", "tensorboard", "ledger.lock", *ledger, *left)

    def refuse_linked_report(self) -> None:
        """Does nothing if the folder of the report and what is in it are no links.

        Raises:
            RunError: If one is.
        """
        refuse_links(self.path, self.report.name)

    @property
    def recipe(self) -> Path:
        """The recipe as resolved, frozen."""
        return self.path / "recipe.toml"

    @property
    def to_go_on(self) -> str:
        """What to type so that a stopped run goes on."""
        known = self.recipe.exists() and self.ledger.exists()
        return f"fleetune run {shlex.quote(str(self.recipe))}" if known else "the same command again"

    @property
    def ledger(self) -> Path:
        """The database."""
        return self.path / "ledger.sqlite"

    @property
    def trials(self) -> Path:
        """Folder of the trials: checkpoints and predictions."""
        return self.path / "trials"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.path / "report"

    @property
    def page(self) -> Path:
        """The report itself."""
        return self.report / "index.html"

    def predictions(self, trial: str) -> Path:
        """A trial's logits."""
        return self.trials / trial / "predictions.parquet"

    @staticmethod
    def held_out(data: Path) -> Path:
        """The texts of validation and test in a data set's folder."""
        return data / "held_out.parquet"

    def data(self, name: str, only_one: bool) -> Path:
        """Folder of a data set's audit, quarantine, splits and tokens."""
        if only_one:
            return self.path / "data"
        return self.path / "data" / (re.sub(r"[^\w.-]+", "_", name).strip(".") or "_")


def default_folder(recipe: Path) -> Path:
    """Returns where a recipe's run goes by default: `runs/STEM`, or its own folder if it is a run's frozen recipe."""
    if recipe.name == "recipe.toml" and (recipe.parent / "ledger.sqlite").exists():
        return recipe.parent
    return Path("runs") / recipe.stem
