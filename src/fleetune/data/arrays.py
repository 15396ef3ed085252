"""Texts and labels that are given as Python's own lists, as arrays or as pandas objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fleetune.errors import DataError

LabelType = Literal["str", "int", "float", "bool", "indicator"]
"""What labels are in Python; `indicator` is a 0/1 matrix with one column a label."""


@dataclass(frozen=True)
class GivenTexts:
    """Texts, or pairs of texts, as lists of strings."""

    first: list[str]
    second: list[str] | None


@dataclass(frozen=True)
class GivenLabels:
    """Labels as class indices `(texts,)` or 0/1 `(texts, num_labels)`, with the classes as the user knows them."""

    values: NDArray[np.int64] | NDArray[np.uint8]
    classes: NDArray[Any]
    names: list[str]
    label_type: LabelType


def read_texts(X: Any, allow_none: bool = False) -> GivenTexts:
    """Returns the texts.

    Raises:
        DataError: If there are none, or one is not a string or a pair of strings.
    """
    if isinstance(X, str):
        raise DataError(f"texts are one string ({X[:40]!r}); a list of strings was expected: [text]")
    items = as_items(X)
    if not items and not allow_none:
        raise DataError("there are no texts; at least one of each label is needed")
    pairs = bool(items) and not isinstance(items[0], str) and isinstance(items[0], Sequence | np.ndarray)
    for number, item in enumerate(items):
        parts = (
            list(item) if pairs and isinstance(item, Sequence | np.ndarray) and not isinstance(item, str) else [item]
        )
        if len(parts) != (2 if pairs else 1) or not all(isinstance(part, str) for part in parts):
            kind = "a pair of strings" if pairs else "a string"
            raise DataError(f"text {number} is {item!r:.80} ({type(item).__name__}); {kind} was expected")
    if not pairs:
        return GivenTexts([str(item) for item in items], None)
    return GivenTexts([str(item[0]) for item in items], [str(item[1]) for item in items])


def as_items(values: Any) -> list[Any]:
    """Returns a list, array, Series, or the rows of a frame, as a list."""
    return list(values.to_numpy()) if hasattr(values, "to_numpy") else list(values)


def read_labels(y: Any) -> GivenLabels:
    """Returns the labels.

    Raises:
        DataError: If they are of no use: no label, one class only, types that cannot be sorted together.
    """
    array = y.to_numpy() if hasattr(y, "to_numpy") else y
    if isinstance(array, np.ndarray) and array.ndim == 2 and (array.shape[1] > 1 or hasattr(y, "columns")):
        names = [str(name) for name in y.columns] if hasattr(y, "columns") else [str(i) for i in range(array.shape[1])]
        return _indicator(array, names)
    items = array.ravel().tolist() if isinstance(array, np.ndarray) and array.ndim == 2 else list(array)
    if any(isinstance(item, list | tuple | set | frozenset | np.ndarray) for item in items):
        return _several(items)
    bare = [plain(item) for item in items]
    label_type = _label_type(bare)
    classes, values = np.unique(_as_array(bare, label_type), return_inverse=True)
    if len(classes) < 2:
        only = f"one class only, {classes[0]!r}" if len(classes) else "no label"
        raise DataError(f"the labels have {only}; at least two classes are needed to tell apart")
    return GivenLabels(values.astype(np.int64), classes, [str(plain(value)) for value in classes], label_type)


def _indicator(matrix: NDArray[Any], names: list[str]) -> GivenLabels:
    if not np.isin(matrix, (0, 1)).all():
        raise DataError("labels in columns must be 0 or 1 each; give a list of labels a text for anything else")
    return GivenLabels(matrix.astype(np.uint8), classes_from(names, "indicator"), names, "indicator")


def _several(items: list[Any]) -> GivenLabels:
    if not all(isinstance(item, list | tuple | set | frozenset | np.ndarray) for item in items):
        raise DataError("some texts have a list of labels and some a single label; give a list for each")
    rows = [[plain(label) for label in item] for item in items]
    flat = [label for row in rows for label in row]
    label_type = _label_type(flat)
    classes = np.unique(_as_array(flat, label_type))
    if not len(classes):
        raise DataError("no text has a label; at least one label is needed")
    index = {plain(value): position for position, value in enumerate(classes)}
    values = np.zeros((len(rows), len(classes)), dtype=np.uint8)
    for number, row in enumerate(rows):
        values[number, [index[label] for label in row]] = 1
    return GivenLabels(values, classes, [str(plain(value)) for value in classes], label_type)


def plain(label: Any) -> Any:
    """Returns a label without numpy's dress."""
    return label.item() if isinstance(label, np.generic) else label


def _label_type(labels: list[Any]) -> LabelType:
    kinds = {type(label) for label in labels}
    if kinds <= {str}:
        return "str"
    if kinds == {bool}:
        return "bool"
    if kinds == {int}:
        return "int"
    if kinds <= {int, float} and all(np.isfinite(label) for label in labels):
        return "float"
    odd = next((label for label in labels if not isinstance(label, str)), labels[0])
    raise DataError(f"labels must be all strings or all numbers, and none missing; got {odd!r} ({type(odd).__name__})")


def _as_array(labels: list[Any], label_type: LabelType) -> NDArray[Any]:
    return np.array(labels, dtype={"str": np.str_, "int": np.int64, "float": np.float64, "bool": np.bool_}[label_type])


def classes_from(names: list[str], label_type: LabelType) -> NDArray[Any]:
    """Returns the labels in the type that they had when they were given to `fit`."""
    if label_type == "indicator":
        numbered = names == [str(number) for number in range(len(names))]
        return np.arange(len(names)) if numbered else np.array(names)
    if label_type == "bool":
        return np.array([name == "True" for name in names])
    return _as_array(names, label_type)
