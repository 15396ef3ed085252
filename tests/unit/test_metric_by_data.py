"""Data sets with metrics and methods of their own: planned, scored, ranked and reported each by its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sklearn.metrics as reference

from fleetune.cli.tables import print_comparison
from fleetune.compare.summary import compare
from fleetune.errors import RecipeError
from fleetune.lab.plan import plan
from fleetune.lab.recipe import Recipe, recipe_from, resolved
from fleetune.report.html import render
from fleetune.report.page import build_page
from tests.unit.synthetic_runs import SyntheticRun, run, trial

GLUE: dict[str, Any] = {
    "data": [
        {"hf": "glue/sst2", "name": "sst2", "text": "sentence"},
        {"hf": "glue/cola", "name": "cola", "text": "sentence", "metric": "matthews"},
        {"hf": "glue/mrpc", "name": "mrpc", "text": ["sentence1", "sentence2"], "metric": "f1"},
    ],
    "backbone": {"model": "m"},
    "training": {"metric": "accuracy", "seeds": 1},
    "method": [
        {"kind": "lora", "rank": [8, 16], "learning_rate": 5e-4, "data": ["sst2", "mrpc"]},
        {"kind": "lora", "rank": [8, 16], "learning_rate": 1e-3, "data": "cola"},
        {"kind": "bitfit", "learning_rate": 1e-3},
    ],
}


def glue(**tables: Any) -> Recipe:
    return recipe_from({**GLUE, **tables}, Path("/base"), "r.toml")


def planned(recipe: Recipe) -> list[tuple[str, str, str, float]]:
    trials = plan(recipe, lambda trials: True).trials
    return [(one.data.name, one.name, one.training.metric, one.training.learning_rate) for one in trials]


def test_each_data_set_has_its_metric_and_its_methods() -> None:
    made = planned(glue())
    assert [one[:3] for one in made] == [
        (data, name, metric)
        for data, metric in (("sst2", "accuracy"), ("cola", "matthews"), ("mrpc", "f1"))
        for name in ("lora r=8", "lora r=16", "bitfit")
    ]
    assert {one[3] for one in made if one[0] == "cola"} == {1e-3}
    assert {one[3] for one in made if one[0] != "cola" and one[1] != "bitfit"} == {5e-4}


def test_a_frozen_recipe_plans_the_same_trials() -> None:
    frozen = recipe_from(json.loads(json.dumps(resolved(glue()))), Path("/elsewhere"), "frozen.toml")
    assert planned(frozen) == planned(glue())
    ids = [[one.id for one in plan(recipe, lambda trials: True).trials] for recipe in (glue(), frozen)]
    assert ids[0] == ids[1] and len(set(ids[0])) == 9


def test_a_metric_from_the_data_is_the_one_from_training() -> None:
    one_of = {"backbone": {"model": "m"}, "method": [{"kind": "head"}]}
    by_data = recipe_from({"data": {"path": "x", "metric": "loss"}, **one_of}, Path(), "r")
    by_training = recipe_from({"data": {"path": "x"}, "training": {"metric": "loss"}, **one_of}, Path(), "r")
    assert by_data.metric == by_training.metric == "loss"
    assert glue().metric == "accuracy"
    first, second = (plan(recipe, lambda trials: True).trials[0].id for recipe in (by_data, by_training))
    assert first == second


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"data": {"path": "x", "metric": "f1_makro"}}, "r.toml: [data].metric = \"f1_makro\""),
        ({"data": {"path": "x", "metric": ["f1"]}}, "[data].metric"),
        ({"data": [{"path": "x"}, {"path": "y", "metric": "mathews"}]}, "[[data]] 'y'.metric = \"mathews\""),
        ({"method": [{"kind": "head", "data": ["colla"]}]}, "(head).data: none is called 'colla'; did you mean"),
        ({"method": [{"kind": "head", "data": []}]}, "a list of names was expected"),
        ({"method": [{"kind": "head", "data": 3}]}, "a list of names was expected"),
        ({"method": [{"kind": "head", "data": ["sst2", "mrpc"]}]}, "no [[method]] takes 'cola'"),
        ({"method": [{"kind": "head", "metric": "f1"}]}, 'type metric = "…" in its [[data]]'),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_place(tables: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        glue(**tables)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_weights_by_label_are_one_value_and_lists_of_them_an_axis() -> None:
    def weights(value: Any) -> list[Any]:
        made = glue(training={"class_weights": value}, method=[{"kind": "head"}])
        return [one.training.class_weights for one in made.methods[0].configurations]

    assert weights([1.0, 3.5]) == [(1.0, 3.5)]
    assert weights("balanced") == ["balanced"]
    assert weights(["none", "balanced"]) == ["none", "balanced"]
    assert weights(["none", [1, 2.5]]) == ["none", (1.0, 2.5)]
    wrong: list[Any] = [[1.0, 0.0], [1.0, float("inf")], [1.0, "2"], "balance", []]
    for one in wrong:
        with pytest.raises(RecipeError, match=r"\[training\]\.class_weights"):
            weights(one)


@pytest.mark.parametrize("value", [0.0, 1.0, 1, "tune", -0.5, True])
def test_a_threshold_lies_between_0_and_1(value: Any) -> None:
    with pytest.raises(RecipeError, match="thresholds"):
        glue(training={"thresholds": value})
    made = glue(training={"thresholds": ["tuned", 0.3]}, method=[{"kind": "head"}])
    assert [one.training.thresholds for one in made.methods[0].configurations] == ["tuned", 0.3]


def run_on_two(losses: str = "log_loss") -> SyntheticRun:
    trials = [
        trial(kind, seed, ["no", "yes"], data=data, metric=metric)
        for data, metric in (("easy", "accuracy"), ("hard", losses))
        for kind in ("lora", "head")
        for seed in range(3)
    ]
    trials = [replace(one, training=one.training | {"metric": one.metric}, id=f"{one.data}{one.id}") for one in trials]
    return run(trials, audits=[])


def test_rows_are_scored_ranked_and_judged_by_their_own_metric() -> None:
    synthetic = run_on_two()
    comparison = compare(synthetic.trials)
    assert [(row.configuration.first.data, row.metric) for row in comparison.rows] == [
        ("easy", "accuracy"), ("easy", "accuracy"), ("hard", "log_loss"), ("hard", "log_loss"),
    ]  # fmt: skip
    labels, logits = synthetic.trials[0].predictions["test"]
    assert comparison.rows[0].scores[0] == pytest.approx(reference.accuracy_score(labels, logits.argmax(axis=1)))
    ranked = comparison.ranked
    assert ranked[0].mean > ranked[1].mean, "a high accuracy is good"
    assert ranked[2].mean < ranked[3].mean, "a low loss is good"
    assert [row.configuration.first.data for row in ranked] == ["easy", "easy", "hard", "hard"]
    assert "highest mean accuracy" in comparison.verdict.reason and "lowest mean log loss" in comparison.verdict.reason
    content = comparison.to_json()
    assert content["metric"] == "accuracy"
    assert [row["metric"] for row in content["rows"]] == ["accuracy", "accuracy", "log_loss", "log_loss"]
    assert list(comparison.frame()["metric"]) == [row["metric"] for row in content["rows"]]
    assert {row.metric for row in compare(synthetic.trials, metric="matthews").rows} == {"matthews"}


def test_the_report_and_the_table_name_each_metric(capsys: pytest.CaptureFixture[str]) -> None:
    synthetic = run_on_two()
    page = build_page(synthetic, compare(synthetic.trials))
    assert [section.overview.columns[0] for section in page.sections] == ["Accuracy", "Log loss"]
    assert [section.quality[0].title for section in page.sections] == [
        "Accuracy by configuration", "Log loss by configuration",
    ]  # fmt: skip
    curves = [figure for part in page.parts if part.key == "training" for figure in part.figures]
    assert [figure.title.split(" on ")[0] for figure in curves] == ["Accuracy", "Loss", "Log loss", "Loss"]
    assert all(len(figure.frame()["configuration"].unique()) == 2 for figure in curves)
    assert "Scored by each data set&#39;s own metric" in render(synthetic)
    print_comparison(compare(synthetic.trials))
    printed = capsys.readouterr().out
    assert "score on test" in printed and " accuracy" in printed and " log_loss" in printed
