"""Where a recipe's data comes from: one source, or one a split."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fleetune.data import embedded, hub
from fleetune.data.config import DataConfig
from fleetune.data.dataset import SplitName
from fleetune.data.files import read_file
from fleetune.data.table import Table, read_split
from fleetune.errors import DataError


def read_sources(config: DataConfig, base: Path) -> dict[SplitName, list[Table]]:
    """Returns the tables of each split; all under `train` where the data comes in one piece.

    Args:
        config: What the recipe says.
        base: Folder that relative paths start from.

    Raises:
        DataError: If a source cannot be read or lacks a column.
        MissingExtraError: If an optional package is needed and absent.
    """
    if config.hf is not None:
        return {split: [table] for split, table in hub.read_hub(config).items()}
    if config.path is not None:
        return _read_path(config.path, config, base)
    files: dict[SplitName, Path | None] = {
        "train": config.train,
        "validation": config.validation,
        "test": config.test,
    }
    return {
        split: [read_split(split, partial(read_file, base / path.expanduser(), path.as_posix()), config)]
        for split, path in files.items()
        if path is not None
    }


def _read_path(path: Path, config: DataConfig, base: Path) -> dict[SplitName, list[Table]]:
    if embedded.is_embedded(path):
        return {"train": embedded.read_embedded(path, config)}
    place = base / path.expanduser()
    if place.is_dir():
        if not hub.is_saved_folder(place):
            raise DataError(
                f"{path} is a folder, but not one saved by datasets (it has no dataset_dict.json or state.json).\n"
                'Name a file: path = "FOLDER/FILE.csv".'
            )
        return {split: [table] for split, table in hub.read_saved(place, config).items()}
    return {"train": [read_file(place, path.as_posix(), config)]}
