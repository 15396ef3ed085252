"""Which of PEFT's types a recipe may name, and what is said of the others; without loading PEFT or torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest

from fleetune.errors import RecipeError
from fleetune.lab.plan import plan
from fleetune.lab.recipe import Recipe, load_recipe, recipe_from, resolved
from fleetune.methods import get
from fleetune.methods.peft_types import REFUSED, known_types
from tests.peft_types import CHIEF, WORKS


def test_every_type_of_this_peft_works_or_is_refused_with_a_reason():
    """A new PEFT with a new type fails here: try it, and put it on one of the two lists."""
    types = {str(one.value) for one in peft.PeftType}
    assert set(known_types()) == types, "read from the source, without importing it"
    assert types == WORKS.keys() | (REFUSED.keys() & types)
    assert not WORKS.keys() & REFUSED.keys()
    assert set(CHIEF) < WORKS.keys()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_work_is_refused_with_what_can(name: str):
    with pytest.raises(RecipeError, match="cannot work here") as caught:
        get("peft")(type=name.lower())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"type": "lohaa"}, "try loha"),
        ({"type": "bone"}, "try miss"),
        ({"type": "nonsense"}, "it has: "),
        ({"type": "oft", "options": {"modules_to_save": ["pooler"]}}, "the head is always trained"),
        ({"type": "oft", "options": {"bias": "all"}}, "bias trains the backbone's own"),
        ({"type": "oft", "option": {}}, "did you mean 'options'"),
    ],
)
def test_a_wrong_type_or_option_is_named(settings: dict[str, Any], expected: str):
    with pytest.raises(RecipeError, match=expected):
        get("peft")(**settings)


def recipe(**method: Any) -> Recipe:
    document: dict[str, Any] = {
        "data": {"path": "reviews.csv"},
        "backbone": {"model": "tiny"},
        "method": {"kind": "peft", **method},
    }
    return recipe_from(document, Path(), "recipe.toml")


def test_a_list_within_options_is_no_axis_but_a_list_of_tables_is():
    (entry,) = recipe(type="LoHa", options={"r": 4, "target_modules": ["query", "value"]}).methods
    (only,) = entry.configurations
    assert only.method.settings == {"type": "loha", "options": {"r": 4, "target_modules": ["query", "value"]}}
    grid = recipe(type=["loha", "lokr"], options=[{"r": 4}, {"r": 8}])
    assert [one.method.settings["options"] for one in grid.methods[0].configurations] == [{"r": 4}, {"r": 8}] * 2
    trials = plan(grid, lambda trials: True).trials
    assert [trial.name for trial in trials[::3]] == [f"peft type={t} r={r}" for t in ("loha", "lokr") for r in (4, 8)]
    fleets = plan(grid, lambda trials: True).fleets
    assert all(len(fleet.trials) == 1 for fleet in fleets), "each has modules of its own"


def test_a_resolved_recipe_keeps_the_options(tmp_path: Path):
    import tomli_w

    first = recipe(type="oft", options={"oft_block_size": 8, "target_modules": ["query"]})
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(resolved(first)))
    again = load_recipe(tmp_path / "recipe.toml")
    ids = [[trial.id for trial in plan(one, lambda trials: True, {"reviews": "h"}).trials] for one in (first, again)]
    assert ids[0] == ids[1]


def test_recipes_with_it_load_neither_torch_nor_peft():
    code = """
import sys
from pathlib import Path
from fleetune.lab.recipe import recipe_from
tables = {"data": {"path": "a.csv"}, "backbone": {"model": "m"}, "method": {"kind": "peft", "type": "hra"}}
recipe_from(tables, Path(), "recipe.toml")
try:
    recipe_from({**tables, "method": {"kind": "peft", "type": "hraa"}}, Path(), "recipe.toml")
except Exception as error:
    print(error)
print([name for name in ("torch", "peft", "transformers") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    fault, loaded = result.stdout.splitlines()
    assert "try hra" in fault and "peft" in fault
    assert loaded == "[]"
