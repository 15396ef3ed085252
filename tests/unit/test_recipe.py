"""Recipes: what they mean, and what is said about wrong ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetune.errors import RecipeError
from fleetune.lab.overrides import apply_overrides
from fleetune.lab.recipe import load_recipe, recipe_from, resolved

MINIMAL: dict[str, Any] = {
    "data": {"path": "reviews.csv"},
    "backbone": {"model": "some-model"},
    "method": [{"kind": "lora"}],
}


def recipe(**tables: Any) -> Any:
    return recipe_from({**copy.deepcopy(MINIMAL), **tables}, Path("/base"), "r.toml")


def refusal(**tables: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe(**tables)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    return message


BASE = """[data]
path = "x.csv"
[backbone]
model = "m"
[training]
seeds = 2
[[method]]
kind = "lora"
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = " + "[" * 5_000, "levels deep"),
        (BASE + "rank = " + "[" * 40 + "]" * 40, "levels deep"),
        ("a = " + "9" * 5_000, "Exceeds the limit"),
        (BASE.replace("seeds = 2", "seeds = 0x" + "f" * 20_000), "80,000 bits"),
        (BASE.replace("seeds = 2", "epochs = 0x" + "f" * 20), "80 bits"),
        (BASE.replace("seeds = 2", "seeds = 1000000000"), "1,000,000,000 seeds"),
        (BASE.replace("x.csv", "x\\u0000.csv"), "no name of a file"),
        (BASE.replace("x.csv", "x" * 300), "no name of a file"),
        (BASE.replace("x.csv", "~nobody-at-all/x.csv"), "the home of"),
        ("a." * 50_000 + "a = 1", "more than 16 parts"),
        ("[" + "a . " * 50_000 + "a]", "more than 16 parts"),
        ('"\\"".' * 20_000 + "a = 1", "more than 16 parts"),
        ("x = {" + "a." * 50_000 + "a = 1}", "more than 16 parts"),
        ("\n".join(f"a{n}.b.c.d.e.f = 1" for n in range(20_000)), "more than 10,000 tables"),
        ("[[data]]\n" * 20_000, "more than 10,000 tables"),
        ("[[data]]\npath = 'x'\n" * 2_000, "[[data]] stands 2,000 times"),
        (BASE + "#" * 2_000_000, "more than 2,000,000 bytes"),
        (BASE + "[[method]]\nkind = 'lora'\nlearning_rate = [0.1, 0.2]\n" * 600, "grids have more than 1,000"),
        (BASE.replace("seeds = 2", "seeds = 1000") + f"rank = {list(range(1, 101))}", "it asks for 100,000 trials"),
        (
            BASE + "".join(f"{key} = {list(range(1, 101))}\n" for key in ("rank", "epochs", "batch_size", "max_steps")),
            "a grid of",
        ),
    ],
)  # fmt: skip
def test_a_recipe_beyond_measure_is_refused_before_it_is_expanded(tmp_path: Path, text: str, expected: str):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.toml")
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.x=" + "[" * 5_000, "more than 32 levels deep"),
        ("data.x=" + "9" * 5_000, "Exceeds the limit"),
        ("a." * 20_000 + "b=1", "more than 32 keys"),
        ("data.x={" + "a." * 20_000 + "a=1}", "more than 16 parts"),
        ("method." + "9" * 5_000 + ".rank=1", "no entry '9{200}"),
    ],
)
def test_an_override_beyond_measure_is_refused(override: str, said: str):
    with pytest.raises(RecipeError, match=said) as caught:
        apply_overrides(copy.deepcopy(MINIMAL), [override])
    assert len(str(caught.value).splitlines()) <= 2


def test_a_list_is_an_axis_and_the_last_one_varies_fastest():
    made = recipe(training={"learning_rate": [1e-4, 5e-4]}, method=[{"kind": "lora", "rank": [8, 16]}])
    points = [(c.method.settings["rank"], c.training.learning_rate) for c in made.methods[0].configurations]
    assert points == [(8, 1e-4), (8, 5e-4), (16, 1e-4), (16, 5e-4)]


def test_a_list_that_is_one_by_nature_is_one_value_and_a_list_of_lists_is_an_axis():
    one = recipe(method=[{"kind": "lora", "target_modules": ["query", "value"]}])
    assert [c.method.settings["target_modules"] for c in one.methods[0].configurations] == [["query", "value"]]
    two = recipe(method=[{"kind": "lora", "target_modules": [["query"], ["query", "value"]]}])
    assert [c.method.settings["target_modules"] for c in two.methods[0].configurations] == [
        ["query"],
        ["query", "value"],
    ]
    betas = recipe(training={"betas": [[0.9, 0.99], [0.8, 0.99]]})
    assert [c.training.betas for c in betas.methods[0].configurations] == [(0.9, 0.99), (0.8, 0.99)]


def test_a_method_overrides_training_and_seeds_of_its_own_trials_alone():
    made = recipe(
        training={"learning_rate": 1e-4, "epochs": 2, "seeds": 5},
        method=[{"kind": "lora"}, {"kind": "bitfit", "learning_rate": 1e-3, "seeds": [7, 3]}],
    )
    lora, bitfit = made.methods
    assert (lora.configurations[0].training.learning_rate, lora.seeds) == (1e-4, (0, 1, 2, 3, 4))
    assert (bitfit.configurations[0].training.learning_rate, bitfit.seeds) == (1e-3, (7, 3))
    assert bitfit.configurations[0].training.epochs == 2


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"data": {"path": "x.csv", "lable": "y"}}, "r.toml: [data].lable is not a known key; did you mean 'label'?"),
        ({"data": {"path": "x", "split": {"tets": 0.1}}}, "[data].split.tets is not a known key; did you mean 'test'?"),
        ({"training": {"epoch": 1}}, "r.toml: [training].epoch is not a known key; did you mean 'epochs'?"),
        ({"method": [{"kind": "lora", "rnk": 1}]}, "[[method]] 1 (lora).rnk is not a known key; did you mean 'rank'?"),
        ({"methods": []}, "r.toml: [methods] is not a known table; did you mean 'method'?"),
        ({"method": [{"kind": "loar"}]}, "[[method]] 1.kind: unknown method 'loar'; did you mean 'lora'?"),
        ({"method": [{"rank": 8}]}, "[[method]] 1.kind is missing"),
        ({"method": []}, "no method is given"),
        ({"data": []}, "[data] is missing"),
        ({"data": {"name": "x"}}, "[data]: give exactly one of path, train or hf"),
        ({"training": {"epochs": "3"}}, '[training].epochs = "3": a number was expected'),
        ({"training": {"batch_size": 1.5}}, "[training].batch_size = 1.5: a whole number was expected"),
        ({"training": {"batch_size": True}}, "[training].batch_size = true: a whole number was expected"),
        ({"training": {"learning_rate": 0}}, "[training].learning_rate = 0: a number above 0.0 was expected"),
        ({"training": {"learning_rate": float("inf")}}, "[training].learning_rate = inf: a finite number was expected"),
        ({"training": {"learning_rate": [1e-3, "x"]}}, '[training].learning_rate = "x": a number was expected'),
        ({"training": {"learning_rate": []}}, "[training].learning_rate = []: a value, or a list of values"),
        ({"training": {"metric": "f1_makro"}}, "did you mean 'f1_macro'?"),
        ({"training": {"metric": ["f1_macro", "loss"]}}, "a recipe has one metric"),
        ({"method": [{"kind": "head", "metric": "loss"}]}, "a recipe has one metric"),
        ({"training": {"betas": [0.9]}}, "[training].betas = [0.9]: a list of another length was expected"),
        ({"training": {"seeds": 0}}, "[training].seeds = 0"),
        ({"training": {"seeds": [1, 1]}}, "[training].seeds = [1, 1]"),
        ({"training": 3}, "training is a table"),
        ({"backbone": {"model": 3}}, "[backbone].model = 3: a string in quotes was expected"),
        ({"backbone": [{"model": "a/x"}, {"model": "b/x"}]}, "two entries of [[backbone]] are called 'x'"),
        ({"data": {"path": "x.csv", "split": {"validation": 0.6, "test": 0.5}}}, "no texts to train on"),
        ({"data": {"path": "x.csv", "curve": 0.1}}, "[data].curve = 0.1: a list was expected"),
        ({"data": {"path": "x.csv", "curve": [0.1, 1.5]}}, "a share of the training texts lies above 0 and up to 1"),
        ({"data": {"path": "x.csv", "curve": [0, 1]}}, "lies above 0 and up to 1; got 0.0"),
        ({"data": {"path": "x.csv", "curve": [float("nan")]}}, "[data].curve"),
        ({"data": {"path": "x.csv", "curve": [1.0]}}, "a curve has at least two shares, such as [0.1, 0.3, 1.0]"),
        ({"data": {"path": "x.csv", "curve": []}}, "a curve has at least two shares"),
        ({"data": {"path": "x.csv", "slices": "source"}}, '[data].slices = "source": a list was expected'),
        ({"data": {"path": "x.csv", "slice": ["source"]}}, "did you mean 'slices'?"),
        ({"compare": {"cost": "second"}}, "r.toml: [compare].cost = \"second\": 'trainable', 'bundle_bytes',"),
        ({"compare": {"cost": "second"}}, "'serving' was expected; did you mean 'seconds'?"),
        ({"compare": {"costs": "seconds"}}, "r.toml: [compare].costs is not a known key; did you mean 'cost'?"),
        ({"compare": "seconds"}, "compare is a table; write [compare] above its keys"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_place(tables: dict[str, Any], expected: str):
    assert expected in refusal(**tables)


def test_a_method_given_as_a_single_table_is_one_method():
    assert len(recipe(method={"kind": "head"}).methods) == 1


def test_data_and_backbones_take_their_names_from_what_they_are():
    made = recipe(
        data=[{"path": "a/reviews.csv"}, {"hf": "glue/sst2"}], backbone=[{"model": "org/small"}, {"model": "big"}]
    )
    assert [one.name for one in made.data] == ["reviews", "glue-sst2"]
    assert [one.name for one in made.backbones] == ["small", "big"]


def test_a_model_folder_beside_the_recipe_is_found_from_anywhere(tmp_path: Path):
    (tmp_path / "model").mkdir()
    made = recipe_from({**MINIMAL, "backbone": {"model": "model"}}, tmp_path, "r.toml")
    assert made.backbones[0].model == str(tmp_path / "model")


def test_reading_files(tmp_path: Path):
    path = tmp_path / "r.toml"
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(tmp_path)
    path.write_text("[data]\npath = 'x'\nlabel = \n")
    with pytest.raises(RecipeError, match="line 3"):
        load_recipe(path)
    path.write_bytes(b"[data]\npath = '\xff'\n")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(path)
    path.write_text('﻿[data]\npath = "x.csv"\n[backbone]\nmodel = "m"\n[[method]]\nkind = "head"\n', encoding="utf-8")
    assert load_recipe(path).name == "r"


def test_overrides_set_values_of_every_type():
    document = {"training": {"epochs": 3}, "method": [{"kind": "lora"}, {"kind": "head", "name": "probe"}]}
    changed = apply_overrides(
        document,
        ["training.epochs=1", "training.learning_rate=[1e-4, 1e-3]", "backbone.model=org/x", "data.split.test=0.2",
         "method.0.rank=4", "method.probe.seeds=2", "method.weight_decay=0.0"],
    )  # fmt: skip
    assert changed["training"] == {"epochs": 1, "learning_rate": [1e-4, 1e-3]}
    assert changed["backbone"] == {"model": "org/x"}
    assert changed["data"] == {"split": {"test": 0.2}}
    assert changed["method"] == [
        {"kind": "lora", "rank": 4, "weight_decay": 0.0},
        {"kind": "head", "name": "probe", "seeds": 2, "weight_decay": 0.0},
    ]
    assert document["training"] == {"epochs": 3}


@pytest.mark.parametrize(
    "override", ["epochs=1", "training.epochs", "method.2.rank=1", "method.ia3.x=1", ".=1", "training.epochs.x=1"]
)
def test_an_override_that_fits_nothing_is_refused(override: str):
    with pytest.raises(RecipeError, match="--set"):
        apply_overrides({"training": {"epochs": 1}, "method": [{"kind": "lora"}, {"kind": "head"}]}, [override])


def test_a_resolved_recipe_gives_the_same_recipe_from_another_folder():
    made = recipe(
        data={"path": "reviews.csv", "where": {"stars": ">= 3"}, "sample": 100},
        training={"learning_rate": [1e-4, 5e-4], "seeds": [4, 2], "metric": "accuracy"},
        method=[{"kind": "lora", "rank": [2, 4], "name": "mine"}, {"kind": "ia3", "seeds": 1}],
    )
    again = recipe_from(resolved(made), Path("/elsewhere"), "frozen.toml")
    assert again.data[0].path == Path("/base/reviews.csv")
    assert again.metric == "accuracy"
    old = [
        (c.base_name, c.method.kind, c.method.settings, c.training, e.seeds)
        for e in made.methods
        for c in e.configurations
    ]
    new = [
        (c.base_name, c.method.kind, c.method.settings, c.training, e.seeds)
        for e in again.methods
        for c in e.configurations
    ]
    assert new == old
    assert resolved(again) == resolved(made)


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=True) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    "path", "text", "label", "sample", "where", "split", "model", "epochs", "learning_rate", "betas", "seeds",
    "metric", "kind", "rank", "target_modules", "name", "precision", "evaluate_every",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["data", "backbone", "training", "method"]), st.sampled_from(KEYS), JSONISH)
def test_any_value_anywhere_makes_a_recipe_or_a_refusal(table: str, key: str, value: Any):
    document = copy.deepcopy(MINIMAL)
    document.setdefault("training", {})
    target = document[table][0] if table == "method" else document[table]
    target[key] = value
    try:
        made = recipe_from(document, Path("/base"), "r.toml")
    except RecipeError:
        return
    json.dumps(resolved(made), allow_nan=False)


def test_track_below_a_table_is_told_where_it_belongs():
    document = {"data": {"path": "x.csv"}, "backbone": {"model": "m"}, "method": [{"kind": "head", "track": ["wandb"]}]}
    with pytest.raises(RecipeError, match="stands above all tables"):
        recipe_from(document, Path(), "recipe.toml")


def test_a_curve_ends_with_all_texts_and_a_recipe_without_one_has_them_alone():
    assert recipe(data={"path": "x.csv", "curve": [0.3, 0.1]}).data[0].train_shares == [0.1, 0.3, 1.0]
    assert recipe(data={"path": "x.csv", "curve": [1, 0.5, 0.5]}).data[0].train_shares == [0.5, 1.0]
    assert recipe().data[0].train_shares == [1.0]


def test_slices_a_curve_and_the_cost_survive_freezing():
    made = recipe(data={"path": "x.csv", "curve": [0.1], "slices": ["source", "language"]}, compare={"cost": "serving"})
    again = recipe_from(resolved(made), Path("/elsewhere"), "frozen.toml")
    assert (again.cost, again.data[0].curve, again.data[0].slices) == ("serving", [0.1, 1.0], ["source", "language"])
    assert recipe().cost == "trainable" and resolved(recipe())["compare"] == {"cost": "trainable"}
    assert not {"slices", "curve"} & resolved(recipe())["data"][0].keys()
    assert recipe_from(apply_overrides(MINIMAL, ["compare.cost=seconds"]), Path("/base"), "r.toml").cost == "seconds"
