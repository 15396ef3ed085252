"""Labels as read to class indices: which labels there are, in which order, and which records have another one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetune.data.config import DataConfig
from fleetune.data.examples import UNKNOWN_LABEL, Examples, RawLabel
from fleetune.data.table import QuarantinedRecord, excerpt
from fleetune.errors import DataError

WHOLE = re.compile(r"\+?(-?)([0-9]+)(?:\.0*)?")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class LabelSet:
    """The labels by name in order, and the index of each way in which they are written.

    Attributes:
        names: Labels in the order of the classifier's outputs.
        written: Index by what stands in the data.
        multi_label: Whether a text may have several.
    """

    names: list[str]
    written: dict[str, int]
    multi_label: bool


def find_labels(sources: list[Examples], config: DataConfig) -> LabelSet:
    """Returns the labels that the data or the recipe names.

    Numbers are in order of their value and strings in order of their first appearance, unless the recipe's
    `labels` or the data set's own list of names says otherwise.

    Raises:
        DataError: If the recipe's labels are not those of its 0/1 columns.
    """
    multi_label = any(isinstance(label, tuple) for source in sources for label in source.labels)
    multi_label = multi_label or isinstance(config.label, list) or config.label_separator is not None
    if isinstance(config.label, list):
        names = config.labels or config.label
        if sorted(names) != sorted(config.label):
            raise DataError(
                f"labels names {names}, but the 0/1 columns in label are {config.label}; make them the same."
            )
        return LabelSet(list(names), {name: index for index, name in enumerate(names)}, True)
    seen = list(dict.fromkeys(name for source in sources for label in source.labels for name in _names(label)))
    if config.labels is not None:
        return _listed(config.labels, seen, multi_label)
    declared = next((source.class_names for source in sources if source.class_names), None)
    if declared is not None:
        present = set(seen)
        ordered = [name for name in declared if name in present] + [name for name in seen if name not in declared]
        return LabelSet(ordered, {name: index for index, name in enumerate(ordered)}, multi_label)
    if seen and all(NUMBER.fullmatch(name) for name in seen):
        written = {name: plain_number(name) for name in seen}
        ordered = sorted(set(written.values()), key=lambda name: (float(name), name))
        index_of = {name: index for index, name in enumerate(ordered)}
        return LabelSet(ordered, {name: index_of[plain] for name, plain in written.items()}, multi_label)
    return LabelSet(seen, {name: index for index, name in enumerate(seen)}, multi_label)


def encode_labels(source: Examples, labels: LabelSet) -> NDArray[np.int64] | NDArray[np.uint8]:
    """Returns the class indices `(texts,)`, or 0/1 `(texts, num_labels)` where multi-label.

    Records with a label that is not in `labels` are moved to the source's quarantine.
    """
    _quarantine_unknown(source, labels)
    if not labels.multi_label:
        return np.array([labels.written[str(label)] for label in source.labels], dtype=np.int64)
    flags = np.zeros((len(source.labels), len(labels.names)), dtype=np.uint8)
    for row, label in enumerate(source.labels):
        for name in _names(label):
            flags[row, labels.written[name]] = 1
    return flags


def plain_number(text: str) -> str:
    """Returns a number as a label's name: `1.0`, `1.` and `+1` are `1`; leading zeros stay, for they mark a code."""
    whole = WHOLE.fullmatch(text)
    if whole is not None:
        sign = whole[1] if whole[2].strip("0") else ""
        return sign + whole[2]
    value = float(text)
    return str(int(value)) if value.is_integer() else repr(value)


def _names(label: RawLabel) -> Iterable[str]:
    return (label,) if isinstance(label, str) else label


def _listed(listed: list[str], seen: list[str], multi_label: bool) -> LabelSet:
    written = {name: index for index, name in enumerate(listed)}
    if all(NUMBER.fullmatch(name) for name in listed):
        by_value = {plain_number(name): index for index, name in enumerate(listed)}
        for name in seen:
            if name not in written and NUMBER.fullmatch(name) and plain_number(name) in by_value:
                written[name] = by_value[plain_number(name)]
    return LabelSet(list(listed), written, multi_label)


def _quarantine_unknown(source: Examples, labels: LabelSet) -> None:
    known = labels.written
    kept = [row for row, label in enumerate(source.labels) if all(name in known for name in _names(label))]
    if len(kept) == len(source.labels):
        return
    for row in sorted(set(range(len(source.labels))) - set(kept)):
        unknown = next(name for name in _names(source.labels[row]) if name not in known)
        near = difflib.get_close_matches(unknown, list(known), n=1)
        hint = f", the nearest is {near[0]!r}" if near else ""
        reason = f"{UNKNOWN_LABEL} {unknown[:60]!r}{hint}"
        source.quarantine.append(
            QuarantinedRecord(source.source, source.lines[row], reason, excerpt(source.texts[row]))
        )
    source.texts = [source.texts[row] for row in kept]
    source.pairs = [source.pairs[row] for row in kept] if source.pairs else []
    source.labels = [source.labels[row] for row in kept]
    source.lines = [source.lines[row] for row in kept]
    source.slices = {name: [values[row] for row in kept] for name, values in source.slices.items()}
