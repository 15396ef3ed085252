"""Plans: every trial once, identities that depend on what determines a result, fleets of what fits together."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetune.errors import RecipeError
from fleetune.lab.plan import Plan, plan
from fleetune.lab.recipe import recipe_from, resolved


def always(trials: Sequence[object]) -> bool:
    return True


def planned(hashes: dict[str, str] | None = None, **tables: Any) -> Plan:
    document = {"data": {"path": "reviews.csv"}, "backbone": {"model": "m"}, "method": [{"kind": "lora"}], **tables}
    return plan(recipe_from(document, Path("/base"), "r.toml"), always, hashes)


def test_the_matrix_is_data_by_backbone_by_method_by_axes_by_seeds():
    made = planned(
        data=[{"path": "a.csv"}, {"path": "b.csv"}],
        backbone=[{"model": "m"}, {"model": "n"}],
        training={"seeds": 3},
        method=[{"kind": "lora", "rank": [2, 4]}, {"kind": "head", "seeds": 1}],
    )
    assert len(made.trials) == 2 * 2 * (2 * 3 + 1)
    assert len({trial.id for trial in made.trials}) == len(made.trials)
    first = [(t.data.name, t.backbone.name, t.name, t.seed) for t in made.trials[:4]]
    assert first == [
        ("a", "m", "lora r=2", 0),
        ("a", "m", "lora r=2", 1),
        ("a", "m", "lora r=2", 2),
        ("a", "m", "lora r=4", 0),
    ]


@pytest.mark.parametrize(
    ("methods", "names"),
    [
        ([{"kind": "lora"}, {"kind": "head"}], ["lora", "head"]),
        ([{"kind": "lora", "rank": [8, 16], "learning_rate": [1e-4, 5e-3]}],
         ["lora r=8 lr=1e-4", "lora r=8 lr=5e-3", "lora r=16 lr=1e-4", "lora r=16 lr=5e-3"]),
        ([{"kind": "lora"}, {"kind": "lora", "dropout": 0.25}], ["lora dropout=0", "lora dropout=0.25"]),
        ([{"kind": "lora", "name": "mine", "rank": [1, 2]}, {"kind": "lora"}], ["mine r=1", "mine r=2", "lora"]),
        ([{"kind": "lora", "target_modules": [["query"], ["query", "key"]]}], ["lora on=query", "lora on=query+key"]),
        ([{"kind": "lora"}, {"kind": "lora", "target_modules": ["key"]}], ["lora on=default", "lora on=key"]),
        ([{"kind": "lora", "learning_rate": [0.00025, 0.5]}], ["lora lr=2.5e-4", "lora lr=0.5"]),
    ],
)  # fmt: skip
def test_names_say_in_what_namesakes_differ(methods: list[dict[str, Any]], names: list[str]):
    assert [trial.name for trial in planned(method=methods, training={"seeds": 1}).trials] == names


def test_the_same_trial_twice_is_refused():
    with pytest.raises(RecipeError, match="are the same trial"):
        planned(method=[{"kind": "lora"}, {"kind": "lora", "rank": 8}])
    with pytest.raises(RecipeError, match="two methods are called 'x'"):
        planned(method=[{"kind": "lora", "name": "x"}, {"kind": "head", "name": "x"}])


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"learning_rate": 1e-3}},
        {"training": {"seeds": [1]}},
        {"training": {"precision": "fp32"}},
        {"backbone": {"model": "n"}},
        {"backbone": {"model": "m", "revision": "abc"}},
        {"data": {"path": "reviews.csv", "max_tokens": 64}},
        {"method": [{"kind": "lora", "rank": 4}]},
        {"method": [{"kind": "ia3"}]},
    ],
)
def test_an_id_changes_with_what_determines_the_result(change: dict[str, Any]):
    base = {"training": {"seeds": 1}}
    old = planned({"reviews": "h"}, **base).trials[0].id
    assert planned({"reviews": "h"}, **{**base, **change}).trials[0].id != old
    assert planned({"reviews": "other texts"}, **base).trials[0].id != old


def test_an_id_does_not_hang_on_names_or_on_where_the_file_lies():
    old = planned({"reviews": "h"}).trials[0].id
    moved = planned(
        {"texts": "h"}, data={"path": "/elsewhere/r.csv", "name": "texts"}, backbone={"model": "m", "name": "b"}
    )
    assert moved.trials[0].id == old
    assert planned({"reviews": "h"}, method=[{"kind": "lora", "name": "mine"}]).trials[0].id == old


def test_an_id_is_the_same_in_every_process():
    code = "from tests.unit.test_plan import planned; print(planned({'reviews': 'h'}).trials[0].id)"
    root = Path(__file__).parents[2]
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=root, check=False
        )
        assert result.stdout.strip() == planned({"reviews": "h"}).trials[0].id, result.stderr


def test_a_frozen_recipe_plans_the_same_trials():
    document = {
        "data": {"path": "reviews.csv"},
        "backbone": {"model": "m"},
        "training": {"learning_rate": [1e-4, 1e-3], "seeds": 2},
        "method": [{"kind": "lora", "rank": [2, 4]}, {"kind": "full", "learning_rate": 1e-5}],
    }
    recipe = recipe_from(document, Path("/base"), "r.toml")
    again = recipe_from(resolved(recipe), Path("/elsewhere"), "frozen.toml")
    hashes = {"reviews": "h"}
    assert [(t.id, t.label) for t in plan(again, always, hashes).trials] == [
        (t.id, t.label) for t in plan(recipe, always, hashes).trials
    ]


def test_fleets_share_data_backbone_and_precision_and_full_fine_tuning_is_alone():
    made = planned(
        backbone=[{"model": "m"}, {"model": "n"}],
        training={"seeds": 2},
        method=[{"kind": "lora"}, {"kind": "full"}, {"kind": "head"}, {"kind": "ia3", "precision": "fp32"}],
    )
    found = [(f.backbone.name, f.precision, [(t.method.kind, t.seed) for t in f.trials]) for f in made.fleets]
    for name in ("m", "n"):
        assert (name, "auto", [("lora", 0), ("lora", 1), ("head", 0), ("head", 1)]) in found
        assert (name, "auto", [("full", 0)]) in found
        assert (name, "auto", [("full", 1)]) in found
        assert (name, "fp32", [("ia3", 0), ("ia3", 1)]) in found
    assert len(found) == 8


CURVE = {"path": "reviews.csv", "curve": [0.1, 0.5]}


def test_a_curve_trains_each_configuration_and_seed_at_every_share():
    made = planned(
        data=CURVE,
        training={"seeds": 2},
        method=[{"kind": "lora", "rank": [2, 4]}, {"kind": "majority"}, {"kind": "zero_shot"}],
    )
    found = [(trial.name, trial.train_share, trial.seed) for trial in made.trials]
    assert found[:6] == [("lora r=2", share, seed) for share in (0.1, 0.5, 1.0) for seed in (0, 1)]
    assert found[12:] == [("majority", 0.1, 0), ("majority", 0.5, 0), ("majority", 1.0, 0), ("zero_shot", 1.0, 0)]
    assert len({trial.id for trial in made.trials}) == len(made.trials)
    assert made.trials[0].label == "lora r=2 seed 0 · 10 % of the texts"
    assert made.trials[4].label == "lora r=2 seed 0"
    assert {trial.entry for trial in made.trials[:12]} == {"lora"}


def test_trials_of_one_share_form_their_own_fleets():
    made = planned(data=CURVE, training={"seeds": 2}, method=[{"kind": "lora"}, {"kind": "head"}, {"kind": "tfidf"}])
    shares = [{trial.train_share for trial in fleet.trials} for fleet in made.fleets]
    assert all(len(one) == 1 for one in shares)
    assert [(fleet.train_share, len(fleet.trials)) for fleet in made.fleets if not fleet.is_baseline] == [
        (0.1, 4), (0.5, 4), (1.0, 4),
    ]  # fmt: skip


@pytest.mark.parametrize("hashes", [None, {"reviews": "h"}])
def test_what_was_trained_on_all_texts_keeps_its_id_beside_a_curve_slices_and_another_cost(hashes: Any):
    old = {trial.label: trial.id for trial in planned(hashes).trials}
    data = {**CURVE, "slices": ["source"]}
    made = planned(hashes, data=data, compare={"cost": "seconds"}).trials
    assert {trial.label: trial.id for trial in made if trial.train_share == 1.0} == old
    other = planned(hashes, data={**CURVE, "split": {"seed": 1}}).trials
    few = {trial.label: trial.id for trial in made if trial.train_share < 1.0}
    assert all(few[trial.label] != trial.id for trial in other if trial.train_share < 1.0)


# As they were before a trial could have fewer texts than all; a new setting of [training] changes them too.
KNOWN_IDS = ["b458b697163e", "6b54d170b262", "10c2b0d39ab6"]


def test_ids_of_earlier_versions_still_hold():
    assert [trial.id for trial in planned({"reviews": "h"}).trials] == KNOWN_IDS


@given(st.integers(1, 60), st.integers(1, 20))
def test_fleets_are_bounded_even_and_hold_every_trial_once(seeds: int, bound: int):
    recipe = recipe_from(
        {
            "data": {"path": "x.csv"},
            "backbone": {"model": "m"},
            "training": {"seeds": seeds},
            "method": [{"kind": "head"}],
        },
        Path("/base"),
        "r.toml",
    )
    made = plan(recipe, lambda trials: len(trials) <= bound)
    sizes = [len(fleet.trials) for fleet in made.fleets]
    assert max(sizes) <= bound and max(sizes) - min(sizes) <= 1 and len(sizes) == -(-seeds // bound)
    assert [trial.id for fleet in made.fleets for trial in fleet.trials] == [trial.id for trial in made.trials]
