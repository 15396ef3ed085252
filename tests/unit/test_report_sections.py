"""Each section of the page says what its numbers say: costs, sweeps, tables, tests, and what was found out besides."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetune.compare.claims import Claim
from fleetune.compare.held_out import TestUse
from fleetune.compare.summary import compare
from fleetune.report import findings, words
from fleetune.report.figures.calibration import reliability_panels
from fleetune.report.figures.cost import TRAINABLE, pareto_front, quality_against_cost
from fleetune.report.figures.curves import banded
from fleetune.report.figures.growth import data_curve_figure, expected_best_figure
from fleetune.report.figures.sweeps import numeric_axes, scores_by_split, sweep_panels, sweep_table
from fleetune.report.found import findings_of
from fleetune.report.html import render, rendered
from fleetune.report.overview import overview, pairs_table
from fleetune.report.page import build_page
from fleetune.report.table import Column, table_view
from tests.unit.synthetic_runs import binary_run, grid_run, multi_class_run, run, trial, troubled_run, with_tests

PLACES = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(PLACES, st.sampled_from(["f1_macro", "log_loss"]))
def test_nothing_on_the_front_is_beaten_and_all_else_is(points: list[tuple[int, int]], metric: str) -> None:
    costs, scores = np.array([float(cost) for cost, _ in points]), np.array([float(score) for _, score in points])
    front = pareto_front(costs, scores, metric, np.ones(len(points), dtype=bool))
    gains = scores if metric == "f1_macro" else -scores
    for index, on_front in enumerate(front):
        cheaper = (costs < costs[index]) & (gains >= gains[index])
        better = (costs <= costs[index]) & (gains > gains[index])
        assert on_front == (not (cheaper | better).any())


def test_degenerate_rows_are_drawn_but_never_on_the_front() -> None:
    figure = quality_against_cost(compare(troubled_run().trials).ranked, TRAINABLE, "cost")
    assert figure is not None
    table = figure.frame().set_index("configuration")
    assert table.loc["bitfit", "standing"] == "degenerate" and not table.loc["bitfit", "on_front"]
    assert table["on_front"].any()


def test_rows_of_no_cost_have_no_place_on_the_axis() -> None:
    rows = compare([trial("head", 0, ["no", "yes"], parameters={"trainable": 0})]).ranked
    assert quality_against_cost(rows, TRAINABLE, "cost") is None


def test_a_sweep_has_each_setting_with_its_seeds_on_both_splits() -> None:
    rows = [row for row in compare(grid_run(seeds=2, evaluations=2).trials).ranked if row.name.startswith("lora")]
    assert numeric_axes(rows) == ["learning_rate", "rank"]
    table = sweep_table(rows, "learning_rate", scores_by_split(rows))
    assert len(table) == 6 * 2 * 2
    for row in rows:
        found = table[(table["configuration"] == row.name) & (table["split"] == "test")]
        assert dict(zip(found["seed"], found["score"], strict=True)) == pytest.approx(row.scores)
        assert set(found["others"]) == {f"rank {row.configuration.first.settings['rank']}"}


def test_sweeps_are_of_a_method_and_of_settings_that_vary_in_it() -> None:
    panels = sweep_panels(compare(grid_run(seeds=1, evaluations=2).trials).ranked, "sweep")
    titles = {group.title for group in panels}
    swept = [("lora", "learning_rate"), ("lora", "rank"), ("ia3", "learning_rate"), ("bitfit", "learning_rate")]
    assert titles == {f"{method}: F1 (macro) against {axis}" for method, axis in swept}
    for group in panels:
        scales = [figure.spec()["layer"][0]["encoding"]["x"]["scale"]["type"] for figure in group.figures]
        assert scales == ["log", "log"] and len(group.figures) == 2
    assert sweep_panels(compare(multi_class_run().trials).ranked, "sweep") == []


def test_a_band_has_the_mean_and_range_of_the_seeds_at_each_step() -> None:
    table = banded([(10, 0.5), (10, 0.7), (20, 0.9), (20, float("nan"))])
    assert table.to_numpy().tolist() == pytest.approx(np.array([[10, 2, 0.6, 0.5, 0.7], [20, 1, 0.9, 0.9, 0.9]]))
    long = banded([(step, float(step)) for step in range(1, 1001)], most=10)
    assert len(long) == 10 and long["step"].iloc[0] == 1 and long["step"].iloc[-1] == 1000


def test_the_table_has_every_cost_that_is_known_and_no_column_of_dashes() -> None:
    rows = compare(grid_run(seeds=2, evaluations=2).trials).ranked
    shown = overview(rows, None)
    assert shown.columns[0] == "F1 (macro)" and shown.columns[-1] == "Operations per text served"
    line = dict(zip(shown.columns, shown.lines[0].cells, strict=True))
    first = rows[0].configuration.first
    assert line["Trained"].detail == f"{first.parameters['adapter']:,} + {first.parameters['head']:,}"
    assert line["Operations"].text == "21 T" and line["Operations"].value == 2.1e13
    speeds = [one.evaluation_texts_per_second or 0.0 for one in rows[0].configuration.done]
    assert line["Texts/s in evaluation"].value == pytest.approx(np.mean(speeds))
    older = [
        replace(one, operations=None, serving_operations=None, evaluation_texts_per_second=None)
        for one in binary_run().trials
    ]
    assert overview(compare(older).ranked, None).columns[-1] == "Texts/s in training"


def test_settings_that_the_name_has_are_not_said_twice() -> None:
    shown = overview(compare(grid_run(seeds=1, evaluations=2).trials).ranked, None)
    line = next(line for line in shown.lines if line.name == "lora (learning_rate 0.0005, rank 4)")
    assert "learning_rate" not in line.settings and "rank" not in line.settings
    # 16 is what the method has where nothing is said.
    assert line.settings == "target_modules query, value"


def test_tests_of_pairs_show_what_the_tests_say() -> None:
    tests = with_tests(grid_run(seeds=2, evaluations=2)).tests
    significant = replace(tests[0], p_adjusted=0.01, interval=None, p_seeds=None)
    table = pairs_table((significant, *tests[1:]))
    assert table is not None and table.total == len(tests)
    texts = [cell.text for cell in table.rows[0]]
    assert texts[:2] == [tests[0].a, tests[0].b] and texts[3] == "–" and texts[5] == "–" and texts[7] == "0.010"
    assert table.rows[0][2].detail == "demonstrated" and table.rows[1][2].detail == ""
    assert pairs_table(()) is None


def test_key_points_are_the_claims_and_lead_to_sections_that_are_there() -> None:
    synthetic = grid_run(seeds=2, evaluations=2)
    comparison = with_tests(synthetic)
    page = build_page(synthetic, comparison)
    assert [point.text for point in page.points] == [claim.text for claim in comparison.claims]
    assert [point.anchor for point in page.points] == ["configurations", "tests", "configurations"]
    text = render(synthetic, replace(comparison, claims=(Claim("<b>bold</b> claim", "cost"),)))
    assert "<b>bold" not in text and "&lt;b&gt;bold&lt;/b&gt; claim" in text and 'href="#cost"' in text


def test_sections_stand_in_the_order_of_the_question() -> None:
    synthetic = replace(
        grid_run(seeds=2, evaluations=2), test_uses=[TestUse("2026-01-01T00:00:00Z", "run", "f1_macro", 12)]
    )
    text = render(synthetic, with_tests(synthetic))
    order = ["answer", "configurations", "tests", "cost", "training", "sweeps", "labels", "data", "test-uses", "repeat"]
    places = [text.index(f'id="{anchor}"') for anchor in order]
    assert places == sorted(places)
    assert all(text.count(f'id="{anchor}"') == 1 for anchor in order)


def test_every_drawing_keeps_to_the_library_s_schema() -> None:
    synthetic = grid_run(seeds=1, evaluations=2)
    for figure in build_page(synthetic, with_tests(synthetic)).figures[::4]:
        with alt.data_transformers.enable("default", max_rows=None):
            assert figure.chart().to_dict(validate=True)


def test_sixty_trials_make_a_small_page() -> None:
    assert len(render(grid_run(evaluations=4)).encode()) < 3_000_000


FRAME = pd.DataFrame(
    {"name": ["b", "a", "c"], "score": [0.25, float("nan"), 1.0], "count": [1200, 3, 4], "good": [True, False, True]}
)


def test_a_table_of_a_frame_is_written_and_sorted_by_its_values() -> None:
    table = table_view("key", "Title", "", FRAME)
    assert [(column.title, column.kind) for column in table.columns] == [
        ("Name", "text"), ("Score", "number"), ("Count", "number"), ("Good", "number")]  # fmt: skip
    assert [[cell.text for cell in row] for row in table.rows][:2] == [
        ["b", "0.25", "1,200", "yes"],
        ["a", "–", "3", "no"],
    ]
    assert table.rows[1][1].value is None and table.rows[0][2].value == 1200.0


def test_a_table_shows_the_columns_asked_for_and_so_many_rows() -> None:
    columns = {"score": Column("Points", words.score, True), "absent": Column(), "name": Column()}
    table = table_view("key", "Title", "", FRAME, columns, limit=2)
    assert [column.title for column in table.columns] == ["Points", "Name"]
    assert [row[0].text for row in table.rows] == ["0.250", "–"] and table.total == 3
    assert table_view("key", "Title", "", FRAME.head(0)).rows == []


def bins(name: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"configuration": name, "stage": ["as trained", "as trained", "calibrated"], "confidence": [0.6, 0.9, 0.8]}
        | {"correct": [0.5, 0.8, 0.8], "count": [10, 0, 40]}
    )


def test_reliability_shows_filled_bins_of_both_stages() -> None:
    (figure,) = reliability_panels(bins("lora"), "reliability")
    assert figure.frame()["count"].tolist() == [10, 40]
    assert "at confidence 0.800 0.800 right" in figure.alternative
    assert len(reliability_panels(pd.concat([bins(str(number)) for number in range(9)]), "r")) == 6


def test_more_settings_and_more_texts_are_drawn_as_given() -> None:
    tried = pd.DataFrame({"method": ["lora", "lora"], "settings_tried": [1, 2], "scored": [0.7, 0.8]})
    best = expected_best_figure(tried, "f1_macro", "best")
    assert best is not None and "lora 0.800 after 2" in best.alternative and best.svg().startswith("<svg")
    sizes = pd.DataFrame(
        {"name": "lora", "share": [0.1, 1.0], "texts": [90, 900], "mean": [0.6, 0.8], "low": [None, 0.75]}
        | {"high": [None, 0.85]}
    )
    curve = data_curve_figure(sizes, "f1_macro", "curve")
    assert curve is not None and "lora 0.800 at 900" in curve.alternative and curve.svg().startswith("<svg")
    unknown = data_curve_figure(sizes.assign(texts=None), "f1_macro", "curve")
    assert unknown is not None and "share of the training texts" in unknown.title
    assert expected_best_figure(tried.head(0), "f1_macro", "best") is None


def parts() -> list[Any]:
    nothing = pd.DataFrame()
    errors = pd.DataFrame({"configuration": ["lora"], "ece": [0.1], "calibrated_ece": [0.05], "temperatures": ["1.4"]})
    weak = pd.DataFrame(
        {"other": ["ia3"], "column": ["label"], "value": ["<i>joy</i>"], "texts": [40], "chosen_mean": [0.5]}
        | {"other_mean": [0.6], "difference": [0.1], "low": [0.02], "high": [0.18], "holds": [True]}
    )
    suspect = pd.DataFrame(
        {"split": ["test"], "place": ["a.csv:3"], "text": ["x" * 1000], "given": ["no"], "suggested": ["yes"]}
        | {"quality": [0.02], "disagreeing": [9], "trials": [10]}
    )
    divided = pd.DataFrame(
        {"place": ["a.csv:9"], "text": ["short"], "truth": ["no"], "right": [0.5], "decision of lora": ["no"]}
    )
    return [
        findings.calibration_part(bins("lora"), errors, None, "test"),
        findings.slices_part(nothing, weak),
        findings.disagreements_part(divided),
        findings.label_errors_part(suspect),
    ]


def test_what_was_found_out_is_on_the_page_and_taken_for_text() -> None:
    synthetic = binary_run()
    page = replace(build_page(synthetic, compare(synthetic.trials)), later=parts())
    text = rendered("report.html.j2", page)
    for part in parts():
        assert f'<section id="{part.key}"' in text and f'href="#{part.key}"' in text
    assert "&lt;i&gt;joy&lt;/i&gt;" in text and "<i>joy" not in text
    assert "x" * 300 + " …" in text and "x" * 301 not in text
    assert "reliability-1" in {figure.key for figure in page.figures}


def test_what_was_not_found_out_has_no_section() -> None:
    nothing = pd.DataFrame()
    assert findings.slices_part(nothing, nothing) is None
    assert findings.disagreements_part(nothing) is None
    assert findings.label_errors_part(nothing) is None
    assert findings.test_uses_part([]) is None


def test_each_look_at_the_test_scores_is_listed_the_latest_first() -> None:
    uses = [TestUse(f"2026-01-0{day}T00:00:00Z", "compare", "f1_macro", day) for day in (1, 2)]
    part = findings.test_uses_part(uses)
    assert part is not None and "shown 2 times" in part.notes[0]
    assert [row[0].text for row in part.tables[0].rows] == ["2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"]


def test_a_budget_has_its_grids_and_what_fewer_settings_would_give() -> None:
    grids = pd.DataFrame(
        {"data": ["a"], "backbone": ["b"], "method": ["lora"], "settings": [2], "trials": [4], "axes": ["rank: 4, 8"]}
        | {"chosen": ["lora"], "remarks": ["rank 8 is the highest of 4, 8"]}
    )
    tried = pd.DataFrame({"method": ["lora", "lora"], "settings_tried": [1, 2], "scored": [0.7, 0.8]})
    part = findings.budget_part(grids, ["Unequal."], {"a": ("f1_macro", tried)})
    assert [figure.key for figure in part.figures] == ["expected-best"] and part.notes == ["Unequal."]
    assert part.tables[0].columns[0].title == "Method"
    alone = findings.budget_part(grids, [], {"a": ("f1_macro", tried.head(1))})
    assert alone.figures == []


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (words.operations(1.23e13), "12.3 T"),
        (words.operations(2.9e9), "2.9 G"),
        (words.operations(None), "–"),
        (words.signed(-0.0312), "−0.031"),
        (words.signed(0.5), "+0.500"),
        (words.between((0.25, 0.5)), "0.250 to 0.500"),
        (words.between(None), "–"),
        (words.probability(0.0004), "< 0.001"),
        (words.probability(0.0625), "0.062"),
        (words.capitalised("f1 (macro)"), "F1 (macro)"),
    ],
)
def test_costs_and_differences_are_written_for_readers(written: str, value: str) -> None:
    assert written == value


def test_specifications_hold_no_more_rows_than_the_numbers() -> None:
    synthetic = grid_run(seeds=2, evaluations=2)
    for figure in build_page(synthetic, with_tests(synthetic)).figures:
        assert len(json.dumps(figure.spec())) < 60_000


def test_of_settings_that_validation_does_not_tell_apart_no_test_score_chooses() -> None:
    kept = [trial("lora", seed, ["no", "yes"], quality=0.6, training={"learning_rate": 1e-3}) for seed in range(2)]
    lucky = [
        trial("lora", seed, ["no", "yes"], quality=0.9, variant=1, training={"learning_rate": 1e-4})
        for seed in range(2)
    ]
    lucky = [
        replace(one, predictions={**one.predictions, "validation": other.predictions["validation"]})
        for one, other in zip(lucky, kept, strict=True)
    ]
    made = run([*kept, *lucky])
    comparison = compare(made.trials)
    assert comparison.ranked[0].name != comparison.rows[0].name
    part = findings_of(made, comparison).on_training[0]
    assert part is not None
    chosen = [column.title for column in part.tables[0].columns].index("Chosen on validation")
    assert part.tables[0].rows[0][chosen].text == comparison.rows[0].name == comparison.references["tweets"]
    best = part.figures[0].frame().set_index("settings_tried")
    assert best.loc[2, "scored"] == pytest.approx(comparison.rows[0].mean)
