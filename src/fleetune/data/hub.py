"""Hugging Face data sets, from the hub or from a folder saved by `datasets`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fleetune.data.config import DataConfig
from fleetune.data.dataset import SplitName
from fleetune.data.files import ROWS_AT_ONCE, append_rows
from fleetune.data.table import Cell, Table, check_columns, read_split
from fleetune.errors import DataError, MissingExtraError

SPLIT_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "validation_matched"),
    "test": ("test", "test_matched"),
}
UNLABELLED = -1
CONVERTED = "refs/convert/"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
BUILDERS = frozenset({
    *("arrow", "audiofolder", "buckets", "cache", "conll", "csv", "eval"),
    *("folder_based_builder", "generator", "hdf5", "imagefolder", "json", "lance"),
    *("pandas", "parquet", "pdffolder", "spark", "sql", "text"),
    *("videofolder", "webdataset", "xml"),
})  # fmt: skip
"""What `datasets` takes for a way of reading files of this machine, and not for a name of the hub; the installed
version's own are added."""


def is_saved_folder(path: Path) -> bool:
    """Returns whether `datasets` saved this folder."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def read_saved(path: Path, config: DataConfig) -> dict[SplitName, Table]:
    """Returns a table for each split of a folder saved by `datasets`."""
    return _tables(path.name, load_saved(path), config)


def load_saved(path: Path) -> Any:
    """Returns the `Dataset` or `DatasetDict` of a folder saved by `datasets`.

    Raises:
        MissingExtraError: If `datasets` is not installed.
        DataError: If the folder is damaged.
    """
    datasets = _import_datasets()
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # noqa: BLE001 - Arrow, JSON and file errors alike mean a damaged folder
        raise DataError(f"{path} cannot be read as a folder saved by datasets: {_first_line(error)}") from None


def read_hub(config: DataConfig) -> dict[SplitName, Table]:
    """Returns a table for each split of a data set of the hub.

    Raises:
        MissingExtraError: If `datasets` is not installed.
        DataError: If the data set does not exist or cannot be reached, or if `datasets` would read something else
            under its name.
    """
    datasets = _import_datasets()
    name = str(config.hf)
    _refuse_local(name, BUILDERS | _builders())
    failures = []
    for repository, configuration in _candidates(name):
        try:
            loaded = _loaded(datasets, repository, configuration, config.revision)
        except Exception as error:  # noqa: BLE001 - the hub's client has a dozen types for "absent" and "unreachable"
            failures.append(error)
            continue
        return _tables(name, loaded, config)
    raise DataError(_hub_message(name, failures)) from None


def _refuse_local(name: str, builders: frozenset[str]) -> None:
    """Raises DataError where `datasets` would take files of this machine, or of another place, under a hub's name."""
    for repository, _ in _candidates(name):
        owner = repository.split("/")[0]
        if not HUB_NAME.fullmatch(repository) or ".." in repository:
            raise DataError(
                f"hf = {name[:80]!r} is no name of a data set of the hub.\n"
                'Type hf = "name", "name/configuration" or "user/name/configuration"; files go with path = "FILE".'
            )
        if owner.casefold() in builders:
            raise DataError(
                f"hf = {name[:80]!r}: datasets takes {owner!r} for a reader of files, not for a name of the hub.\n"
                'Download it (hf download NAME --repo-type dataset --local-dir FOLDER) and type path = "FOLDER/FILE".'
            )
        if Path(repository).is_dir():
            raise DataError(
                f"hf = {name[:80]!r}: the folder {repository} here would be read in place of the hub's data set.\n"
                f'Rename the folder, start elsewhere, or type path = "{repository}/FILE" if it is what you mean.'
            )


def _builders() -> frozenset[str]:
    """Returns the names that the installed `datasets` takes for ways of reading files."""
    try:
        from datasets import packaged_modules
    except ImportError:
        return frozenset()
    return frozenset(map(str.casefold, getattr(packaged_modules, "_PACKAGED_DATASETS_MODULES", ())))


def _loaded(datasets: Any, repository: str, configuration: str | None, revision: str | None) -> Any:
    # Where the hub has converted a data set, its configurations are folders.
    if revision is not None and revision.startswith(CONVERTED):
        return datasets.load_dataset(repository, data_dir=configuration, revision=revision)
    return datasets.load_dataset(repository, configuration, revision=revision)


def _candidates(name: str) -> list[tuple[str, str | None]]:
    """Returns what `name` may mean, in the order to be tried: configuration first, as the recipe's help says."""
    parts = name.split("/")
    if len(parts) == 1:
        return [(name, None)]
    if len(parts) == 2:
        return [(parts[0], parts[1]), (name, None)]
    return [("/".join(parts[:2]), "/".join(parts[2:]))]


def _hub_message(name: str, failures: list[Exception]) -> str:
    unreachable = [error for error in failures if _is_connection(error)]
    if unreachable:
        return (
            f"data set {name!r} is not on this machine and the hub cannot be reached ({_first_line(unreachable[0])}).\n"
            'Connect, or save it elsewhere with datasets\' save_to_disk and type path = "FOLDER".'
        )
    # A wrong configuration's error lists those that exist; "not found" tells less.
    telling = [error for error in failures if "config" in str(error).lower()] or failures
    return f'data set {name!r} cannot be loaded: {_first_line(telling[0])}\nCheck hf = "name/configuration" in [data].'


def _is_connection(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError) or "offline" in str(error).lower():
            return True
        if type(error).__name__ in ("ConnectionError", "ConnectError", "ConnectTimeout", "OfflineModeIsEnabled"):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "hub", "A Hugging Face data set") from None
    return datasets


def _tables(name: str, loaded: Any, config: DataConfig) -> dict[SplitName, Table]:
    if not isinstance(loaded, Mapping):
        return {"train": _table("train", name, loaded, config)}
    found = {
        split: next((candidate for candidate in names if candidate in loaded), None)
        for split, names in SPLIT_NAMES.items()
    }
    if found["train"] is None:
        listed = ", ".join(map(str, loaded))
        raise DataError(f"data set {name!r} has no split 'train'; its splits are {listed}.")
    return {
        split: _table(split, f"{name}[{hub_split}]", loaded[hub_split], config)
        for split, hub_split in found.items()
        if hub_split is not None
    }


def _table(split: SplitName, source: str, dataset: Any, config: DataConfig) -> Table:
    table = read_split(split, partial(_read, source, dataset), config)
    if split != "test":
        _drop_unlabelled(table, config)
    if table.class_names is not None:
        _empty_kept_back(table, config)
    return table


def _read(source: str, dataset: Any, config: DataConfig) -> Table:
    check_columns(source, dataset.column_names, config.columns)
    table = Table(source, {name: [] for name in config.columns}, class_names=_class_names(dataset, config))
    selected = dataset.select_columns(config.columns).with_format(None)
    convert = {name: _to_names(dataset.features[name]) for name in (*config.label_columns, *(config.slices or ()))}
    for start in range(0, len(selected), ROWS_AT_ONCE):
        columns = dict(selected[start : start + ROWS_AT_ONCE])
        for name, to_name in convert.items():
            columns[name] = [to_name(value) for value in columns[name]]
        append_rows(table, {name: columns[name] for name in config.columns}, config)
    return table


def _class_label(feature: Any) -> Any:
    """Returns the ClassLabel behind a feature or a list of it, None where there is none."""
    inner = getattr(feature, "feature", feature)
    return inner if hasattr(inner, "int2str") and hasattr(inner, "names") else None


def _class_names(dataset: Any, config: DataConfig) -> list[str] | None:
    if len(config.label_columns) > 1:
        return None
    label = _class_label(dataset.features[config.label_columns[0]])
    return None if label is None or not label.names else list(label.names)


def _to_names(feature: Any) -> Callable[[Any], Any]:
    label = _class_label(feature)
    if label is None or not label.names:
        return lambda value: value
    names = dict(enumerate(label.names))

    def to_name(value: Any) -> Any:
        if isinstance(value, list):
            return [names.get(item, item) for item in value]
        return names.get(value, value)

    return to_name


def _drop_unlabelled(table: Table, config: DataConfig) -> None:
    """Empties a split to train on or to validate by whose labels are all kept back."""
    cells = [table.columns[name] for name in config.label_columns]
    rows = len(table.lines)
    if rows and all(cell is None or _is_unlabelled(cell) for row in zip(*cells, strict=True) for cell in row):
        table.notes.append(f"{table.source}: the labels of its {rows:,} texts are not published; the split is left out")
        table.lines.clear()
        for column in table.columns.values():
            column.clear()


def _empty_kept_back(table: Table, config: DataConfig) -> None:
    """Empties the label cells that say that a label is kept back, where the names of labels are declared."""
    cells = table.columns.get(config.label_columns[0], [])
    for row, cell in enumerate(cells):
        if _is_unlabelled(cell):
            cells[row] = None


def _is_unlabelled(cell: Cell) -> bool:
    return isinstance(cell, int) and not isinstance(cell, bool) and cell == UNLABELLED
