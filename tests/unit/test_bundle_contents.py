"""How a bundle names things for others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetune.bundle.contents import modules_to_save
from fleetune.bundle.saving import _jsonable
from fleetune.data.arrays import classes_from, read_labels
from fleetune.errors import DataError


@pytest.mark.parametrize(
    ("head", "modules"),
    [
        (["classifier.weight", "classifier.bias"], ["classifier"]),
        (["score.weight"], ["score"]),
        (["pre_classifier.weight", "pre_classifier.bias", "classifier.weight"], ["pre_classifier", "classifier"]),
        # PEFT wraps `classifier` whole; a module inside the wrapper must not be wrapped again.
        (["classifier.dense.weight", "classifier.out_proj.weight"], ["classifier"]),
        (["bert.pooler.dense.weight", "classifier.weight"], ["bert.pooler.dense", "classifier"]),
        (["head.dense.weight", "head.norm.weight", "classifier.bias"], ["head.dense", "head.norm", "classifier"]),
    ],
)
def test_peft_saves_each_module_of_the_head_once(head: list[str], modules: list[str]) -> None:
    assert modules_to_save(head) == modules


def test_numbers_that_json_lacks_become_null() -> None:
    summary: Any = {"a": [float("nan"), np.float32(1.5), np.int64(3)], 2: (float("inf"), None, True, "x", {1, 2} - {2})}
    assert _jsonable(summary) == {"a": [None, 1.5, 3], "2": [None, None, True, "x", "{1}"]}


LABELS = st.one_of(
    st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1), min_size=2),
    st.lists(st.integers(-(2**62), 2**62), min_size=2),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2),
    st.lists(st.booleans(), min_size=2),
)


@given(LABELS)
def test_each_label_is_found_again_under_its_name(labels: list[Any]) -> None:
    if len(set(labels)) < 2:
        with pytest.raises(DataError, match="one class only"):
            read_labels(labels)
        return
    found = read_labels(labels)
    assert found.classes[found.values].tolist() == labels
    assert found.classes.tolist() == sorted(set(labels))
    restored = classes_from(found.names, found.label_type)
    assert restored.tolist() == found.classes.tolist()
    assert len(set(found.names)) == len(found.names)
