"""The answer of the page: one for each data set, and no number that crowns what no test has shown."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from fleetune.cli.tables import print_comparison
from fleetune.compare.result import TrialResult
from fleetune.compare.summary import Comparison, compare
from fleetune.report.figures.quality import STANDINGS, standing
from fleetune.report.found import findings_of
from fleetune.report.html import rendered
from fleetune.report.page import Page, build_page
from fleetune.report.side_by_side import TEMPLATE, build_side_by_side
from fleetune.report.tables import as_markdown
from tests.unit.synthetic_runs import SyntheticRun, multi_class_run, run, trial
from tests.unit.test_compare import with_accuracy

SIX = range(6)


def two_data_sets() -> SyntheticRun:
    """Two data sets of which each has its own best configuration."""
    means = {"easy": {"lora": 0.90, "head": 0.70}, "hard": {"lora": 0.60, "head": 0.80}}
    trials = [
        with_accuracy(kind, seed, mean + seed / 100, data=data, id=f"{data} {kind} {seed}")
        for data, of_data in means.items()
        for kind, mean in of_data.items()
        for seed in range(3)
    ]
    return run(trials, "both", audits=[])


def page_of(made: SyntheticRun) -> tuple[Page, Comparison]:
    comparison = compare(made.trials)
    return build_page(made, comparison), comparison


def test_each_data_set_has_its_recommendation_on_the_page() -> None:
    made = two_data_sets()
    page, comparison = page_of(made)
    text = rendered("report.html.j2", page)
    answer = text[text.index('<div class="answer">') : text.index('<section id="configurations"')]
    assert re.findall(r"Recommended on (\w+): <strong>(.+?)</strong>", answer) == [
        ("easy", "lora · easy"), ("hard", "head · hard"),
    ]  # fmt: skip
    for verdict in comparison.verdicts.values():
        assert answer.count(verdict.reason) == 1
    marked = re.findall(
        r'<span class="name">([^<]+)</span>(?:(?!</tr>).)*?<span class="mark recommended', text, re.DOTALL
    )
    assert sorted(marked) == ["head · hard", "lora · easy"]
    assert [section.labels.lead for section in page.sections] == ["lora · easy", "head · hard"]


def test_runs_side_by_side_have_an_answer_for_each_data_set() -> None:
    page = build_side_by_side(two_data_sets(), multi_class_run())
    text = rendered(TEMPLATE, page)
    assert "Recommended on easy: <strong>lora · easy</strong>" in text
    assert "Recommended on hard: <strong>head · hard</strong>" in text
    assert text.count('<p class="recommended">') == 3


def test_the_tile_has_the_mean_of_what_is_recommended_and_not_the_highest() -> None:
    trials = [
        with_accuracy(kind, seed, accuracy)
        for kind, scores in {"full": [0.88, 0.90, 0.91], "lora": [0.86, 0.90, 0.88]}.items()
        for seed, accuracy in enumerate(scores)
    ]
    page, comparison = page_of(run(trials))
    assert comparison.ranked[0].name == "full" and comparison.verdict.recommended == "lora"
    assert ("Mean accuracy", "0.880", "lora") in page.tiles
    assert not any(re.search("highest|lowest|best", " ".join(tile), re.IGNORECASE) for tile in page.tiles)


def test_where_nothing_is_recommended_no_mean_is_a_tile() -> None:
    page, comparison = page_of(run([with_accuracy("lora", 0, 0.9), with_accuracy("head", 0, 0.8)]))
    assert comparison.verdict.recommended is None
    assert not any(name.startswith("Mean") for name, _, _ in page.tiles)


def swapped() -> Comparison:
    """A comparison in which test says of the two the contrary of what validation chose by."""
    trials = []
    for kind, validation, test in (("full", 0.90, 0.80), ("head", 0.80, 0.90)):
        for seed in SIX:
            one, other = (with_accuracy(kind, seed, mean + seed / 100) for mean in (validation, test))
            held = {"validation": one.predictions["test"], "test": other.predictions["test"]}
            trials.append(replace(one, predictions=held))
    return compare(trials)


def test_what_is_better_but_not_chosen_is_called_that_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    comparison = swapped()
    assert standing(comparison.row("head")) == "better, but not chosen"
    assert standing(comparison.row("full")) == "tied with the best"
    print_comparison(comparison)
    for table in (capsys.readouterr().out, as_markdown(comparison)):
        said = {name: next(line for line in table.splitlines() if name in line) for name in ("full", "head")}
        assert "better, but not chosen" in said["head"] and "better, but not chosen" not in said["full"]
    page = build_page(run([trial for row in comparison.rows for trial in row.configuration.trials]), comparison)
    marks = {line.name: [text for _, text in line.marks] for line in page.sections[0].overview.lines}
    assert "better, but not chosen" in marks["head"] and "better, but not chosen" not in marks["full"]
    assert "tied with the best" not in marks["head"]


@pytest.mark.parametrize(
    ("said", "words"),
    [("chosen", 0), ("tied", 0), ("ahead", 1), ("behind", 2), ("outpaced", 2), ("not comparable", 3)],
)
def test_every_standing_has_its_words(said: str, words: int) -> None:
    row = swapped().rows[0]
    assert standing(replace(row, standing=said)) == STANDINGS[words]  # type: ignore[arg-type]
    assert standing(replace(row, standing=said, degenerate={0: "nothing"})) == "degenerate"  # type: ignore[arg-type]


def tuned(backbone: str, rate: float, seed: int, quality: float) -> TrialResult:
    training = {"learning_rate": rate, "epochs": 3.0}
    variant = len(backbone) + round(rate * 1e4)
    return trial("lora", seed, ["no", "yes"], quality=quality, variant=variant, training=training, backbone=backbone)


def test_one_method_on_two_backbones_is_two_lines_of_expected_bests() -> None:
    qualities = {("small", 1e-3): 0.6, ("small", 1e-2): 0.8, ("larger", 1e-3): 0.7, ("larger", 1e-2): 0.9}
    made = run([tuned(*key, seed, quality) for key, quality in qualities.items() for seed in range(2)])
    part = findings_of(made, compare(made.trials)).on_training[0]
    assert part is not None
    [figure] = part.figures
    table = figure.frame()
    assert sorted(zip(table["method"], table["settings_tried"], strict=True)) == [
        (f"lora · {backbone}", tried) for backbone in ("larger", "small") for tried in (1, 2)
    ]
    alone = run([one for one in made.trials if one.backbone == "small"])
    part = findings_of(alone, compare(alone.trials)).on_training[0]
    assert part is not None and set(part.figures[0].frame()["method"]) == {"lora"}


def test_thresholds_say_whose_they_are() -> None:
    made = run([trial(kind, seed, ["no", "yes"]) for kind in ("lora", "head") for seed in range(3)])
    page, comparison = page_of(made)
    part = next(part for part in page.later if part.key == "calibration")
    table = next(table for table in part.tables if table.key == "operating-points")
    place = [column.title for column in table.columns].index("Configuration")
    assert {row[place].text for row in table.rows} == {comparison.lead_on("tweets")}
    assert "each with its own threshold" in table.caption


def test_the_recommended_is_looked_at_first_although_a_seed_learned_nothing() -> None:
    trials = [with_accuracy("lora", seed, score) for seed, score in enumerate((0.90, 0.92, 0.50))]
    trials += [with_accuracy("head", seed, score) for seed, score in enumerate((0.80, 0.50, 0.50))]
    made = run([*trials, *(with_accuracy("full", seed, 0.50) for seed in range(3))])
    page, comparison = page_of(made)
    assert comparison.verdict.recommended == "lora" and comparison.row("lora").degenerate
    part = next(part for part in page.later if part.key == "calibration")
    errors = next(table for table in part.tables if table.key == "calibration-errors")
    assert [row[0].text for row in errors.rows] == ["lora"]
    assert np.isfinite(comparison.row("lora").mean)
