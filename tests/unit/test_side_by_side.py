"""Two runs on one page: both as they are, where they differ, and no claim of one against the other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fleetune.cli.entry import run_command_line
from fleetune.compare.summary import compare
from fleetune.report.html import rendered
from fleetune.report.side_by_side import TEMPLATE, build_side_by_side, differing, flat_recipe, write_side_by_side
from tests.unit.synthetic_runs import SyntheticRun, multi_class_run, multi_label_run, with_texts

RECIPE = """
[data]
path = "a.csv"
split = { test = 0.1 }

[[method]]
kind = "lora"
rank = [4, 8]

[[method]]
kind = "lora"
rank = 16

[[method]]
name = "mine"
kind = "ia3"
"""


def kept(run: SyntheticRun, name: str, first: str = "text 0") -> SyntheticRun:
    return with_texts(replace(run, name=name), first)


def test_settings_have_full_names_and_methods_their_own() -> None:
    found = flat_recipe(RECIPE)
    assert found["data.split.test"] == "0.1" and found["method mine.kind"] == "ia3"
    assert found["method lora #1.rank"] == "4, 8" and found["method lora #2.rank"] == "16"


def test_only_what_differs_is_listed_with_a_dash_where_there_is_nothing() -> None:
    assert differing({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}) == [("b", "2", "3"), ("c", "–", "4")]
    assert differing({"a": "1"}, {"a": "1"}) == []


def test_scores_on_the_same_texts_stand_in_one_figure() -> None:
    run = multi_class_run()
    page = build_side_by_side(kept(run, "one"), kept(run, "two"))
    assert page.notes == ["Both runs are scored on the same 300 test texts of tweets."]
    (figure,) = page.scores
    table = figure.frame()
    means = {row.name: row.mean for row in compare(run.trials).rows}
    for name in ("one", "two"):
        own = table[table["run"] == name].set_index("configuration")["mean"]
        assert own.to_dict() == pytest.approx({f"{key} · {name}": mean for key, mean in means.items()})
    assert figure.svg().startswith("<svg") and "no difference between the runs was tested" in figure.caption


def test_scores_on_other_texts_are_never_in_one_figure() -> None:
    run = multi_class_run()
    other = build_side_by_side(kept(run, "one"), kept(run, "two", first="another text"))
    assert other.scores == [] and "but the texts are not" in other.notes[0]
    unknown = build_side_by_side(run, replace(run, name="two"))
    assert unknown.scores == [] and "is not kept" in unknown.notes[0]
    apart = build_side_by_side(run, multi_label_run())
    assert apart.scores == [] and "do not compare" in apart.notes[0]


def test_the_page_shows_both_runs_and_where_they_differ(tmp_path: Path) -> None:
    run = multi_class_run()
    changed = replace(
        run,
        recipe_text=run.recipe_text.replace("rank = 8", "rank = 4"),
        environment=run.environment | {"torch": "2.10.0"},
    )
    other = kept(changed, "<b>two</b>")
    path = write_side_by_side(kept(run, "one"), other, tmp_path / "deep" / "compare-two.html")
    text = path.read_text(encoding="utf-8")
    assert "<b>two" not in text and "&lt;b&gt;two&lt;/b&gt;" in text
    assert text.count('class="overview sortable"') == 2 and text.count("window.vegaEmbed") == 1
    recipes, machines = build_side_by_side(kept(run, "one"), other).differences
    assert [[cell.text for cell in row] for row in recipes.rows] == [["method lora.rank", "8", "4"]]
    assert [[cell.text for cell in row] for row in machines.rows] == [["torch", "2.9.1", "2.10.0"]]


def test_runs_of_one_name_are_told_apart_and_a_recipe_that_is_none_is_shown_whole() -> None:
    run = multi_class_run()
    page = build_side_by_side(run, replace(run, recipe_text="not = = toml"))
    assert [side.name for side in page.sides] == ["demo (first)", "demo (second)"]
    assert any(row[0].text == "recipe" for row in page.differences[0].rows)
    assert "Nothing is claimed of one against the other" in rendered(TEMPLATE, page)


def test_the_command_writes_into_the_first_run_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"one": kept(multi_class_run(), "one"), "two": kept(multi_class_run(), "two")}
    monkeypatch.setattr("fleetune.lab.results.load_results", lambda folder: runs[folder.name])
    folders = [str(tmp_path / name) for name in runs]
    assert run_command_line(["report", "--compare", *folders, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert Path(answer["report"]) == tmp_path / "one" / "report" / "compare-two.html"
    assert answer["runs"] == folders and Path(answer["report"]).stat().st_size == answer["bytes"]
    assert run_command_line(["report", "--compare", *folders, "--out", str(tmp_path / "both.html")]) == 0
    assert (tmp_path / "both.html").exists()


@pytest.mark.parametrize(
    "arguments", [["report"], ["report", "a", "--compare", "b", "c"], ["report", "a", "--out", "page.html"]]
)
def test_one_run_or_two_and_nothing_else(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(arguments) == 2
    said = capsys.readouterr().err
    assert "fleetune report --compare A B" in said and len(said.strip().splitlines()) == 2
