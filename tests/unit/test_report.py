"""The page stands alone, shows what was measured, hides nothing that failed, and takes no text for markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference

from fleetune.compare.summary import compare
from fleetune.report import words
from fleetune.report.figure import Figure
from fleetune.report.figures.confusion import confusion_panels, label_panels, per_label_table
from fleetune.report.figures.cost import SECONDS, TRAINABLE, quality_against_cost
from fleetune.report.figures.curves import learning_curves, loss_panels, thinned
from fleetune.report.figures.quality import majority_score, metric_bars
from fleetune.report.html import render, write_report
from fleetune.report.page import build_page
from tests.unit.synthetic_runs import METHODS, grid_run, multi_class_run, multi_label_run, run, trial, troubled_run

HOSTILE = ["</script><script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "{{ 7 * 7 }} & 'so on'"]
ATTRIBUTES_THAT_FETCH = {"src", "href", "srcset", "action", "data", "poster", "background"}


class Elements(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text: list[str] = []
        self._script: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = None
        if tag in ("script", "style"):
            self._script = dict(attrs).get("id") or f"{tag} {len(self.scripts)}"

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text.append(data)
        else:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(multi_class_run(), tmp_path_factory.mktemp("report") / "report")


@pytest.fixture(scope="module")
def page(written: Path) -> Elements:
    return Elements(written.read_text(encoding="utf-8"))


def test_the_page_asks_nothing_of_the_network(written: Path, page: Elements) -> None:
    for tag, attributes in page.tags:
        for name in ATTRIBUTES_THAT_FETCH & set(attributes):
            assert (attributes[name] or "").startswith(("#", "data:")), f"<{tag} {name}={attributes[name]}>"
        assert tag not in ("link", "iframe", "object", "embed") or attributes.get("href") == "data:,"
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    assert "http" not in policy and "unsafe-eval" not in policy
    style = next(text for name, text in page.scripts.items() if name.startswith("style"))
    assert "url(" not in style and "@import" not in style


def test_the_drawing_library_is_there_once_and_the_page_is_small(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert text.count("window.vegaEmbed") == 1
    assert len(text.encode()) < 1_500_000


def test_every_figure_has_a_drawing_numbers_and_words(page: Elements) -> None:
    charts = [attributes for _, attributes in page.tags if attributes.get("class") == "chart"]
    keys = [attributes["data-spec"] for attributes in charts]
    assert len(keys) == len(set(keys)) and len(keys) >= 15
    for attributes in charts:
        assert attributes["role"] == "img" and len(attributes["aria-label"] or "") > 20
        spec = json.loads(page.scripts[attributes["data-spec"] or ""])
        assert spec["width"] == "container" and any(spec["datasets"].values())
    assert sum(tag == "figure" for tag, _ in page.tags) == len(charts)
    assert sum(attributes.get("class") == "numbers" for _, attributes in page.tags) == len(charts)


def test_every_figure_is_written_as_svg_and_png_and_stale_ones_go(written: Path, page: Elements) -> None:
    folder = written.parent / "figures"
    keys = {(a["data-spec"] or "").removeprefix("spec-") for _, a in page.tags if a.get("class") == "chart"}
    for kind in ("svg", "png"):
        assert {path.stem for path in folder.glob(f"*.{kind}")} == keys
    assert all(path.read_text(encoding="utf-8").startswith("<svg") for path in folder.glob("*.svg"))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    one = run([trial("head", 0, ["no", "yes"], losses=[], history=[])], audits=[])
    write_report(one, written.parent.parent / "second")
    write_report(one, written.parent)
    gone = [folder / name for name in ("loss-1.svg", "loss-1.png")]
    assert not any(path.exists() for path in gone)


def test_comparison_json_is_what_compare_gives(tmp_path: Path) -> None:
    synthetic = troubled_run()
    write_report(synthetic, tmp_path, figures=False)
    assert json.loads((tmp_path / "comparison.json").read_text()) == compare(synthetic.trials).to_json()
    assert not (tmp_path / "figures").exists()


def test_the_page_shows_scores_costs_data_and_how_to_repeat_it(page: Elements) -> None:
    row = compare(multi_class_run().trials).row("lora")
    assert row.interval is not None
    interval = f"{row.interval[0]:.3f} to {row.interval[1]:.3f}"
    assert f"{row.mean:.3f} {interval} {row.validation:.3f} 2 ± {row.spread:.3f}" in page.words
    for wanted in (
        "73,728",
        "learning_rate 5e-5",
        "ragged row",
        "1,360",
        "fleetune run recipe.toml",
        "embedded:tweets",
    ):
        assert wanted in page.words
    assert "trained and saved as the head" in page.words and "Layout packed: the parity probe" in page.words
    assert "2.9.1" in page.words


def test_settings_that_all_share_are_shown_once_and_the_table_shows_the_rest(page: Elements) -> None:
    assert page.words.count("weight_decay") == 1
    assert page.words.count("learning_rate") >= len(METHODS)


def test_the_page_is_the_same_each_time() -> None:
    assert render(troubled_run()) == render(troubled_run())


def test_hostile_names_stay_text_in_markup_and_in_specifications() -> None:
    trials = [
        trial(kind, seed, HOSTILE, method=f"{kind} {HOSTILE[0]}", reason=None, notes=[HOSTILE[1]], data=HOSTILE[2])
        for kind in ("lora", "head")
        for seed in range(2)
    ]
    trials[0] = replace(trials[0], status="failed", reason=HOSTILE[0])
    text = render(replace(run(trials), name=HOSTILE[0], recipe_text=HOSTILE[1], environment={HOSTILE[0]: HOSTILE[1]}))
    found, clean = Elements(text), Elements(render(multi_class_run()))
    assert not [tag for tag, _ in found.tags if tag == "img"]
    specs = [name for name in found.scripts if name.startswith("spec-")]
    for parsed in (found, clean):
        drawn = [name for name in parsed.scripts if name.startswith("spec-")]
        assert sum(tag == "script" for tag, _ in parsed.tags) == len(drawn) + 3
    by_label = json.loads(found.scripts["spec-labels"])["datasets"]
    assert {row["label"] for rows in by_label.values() for row in rows} == set(HOSTILE)
    assert all(json.loads(found.scripts[name]) for name in specs)
    assert "{{ 7 * 7 }}" in found.words
    for label in HOSTILE:
        assert " ".join(label.split()) in found.words


def test_failed_degenerate_and_unfinished_trials_are_on_the_page() -> None:
    found = Elements(render(troubled_run())).words
    assert "of 9 trials; 1 failed, 1 pending" in found
    assert "Seed 0 failed: loss is nan at step 17." in found
    assert "Seed 1: predicts 'no' for every text." in found
    assert "Seed 2 is pending." in found


def test_a_run_in_which_nothing_finished_has_a_page() -> None:
    trials = [replace(one, status="failed", reason="out of memory", predictions={}, history=[], losses=[], seconds=None)
              for one in multi_class_run().trials]  # fmt: skip
    found = Elements(render(run(trials))).words
    assert "No recommendation" in found and "12 failed" in found and "out of memory" in found
    assert "There are no trials" in Elements(render(replace(run([trial("head", 0, ["a", "b"])]), trials=[]))).words


def test_audits_with_little_in_them_do_not_break_the_page() -> None:
    found = Elements(render(run([trial("head", 0, ["no", "yes"])], audits=[{"name": "bare"}]))).words
    assert "bare" in found


def test_logits_that_are_not_numbers_do_not_break_the_page() -> None:
    synthetic = multi_class_run()
    labels, logits = synthetic.trials[0].predictions["test"]
    broken = replace(synthetic.trials[0], predictions={"test": (labels, np.full_like(logits, np.nan))})
    found = Elements(render(replace(synthetic, trials=[broken, *synthetic.trials[1:]]))).words
    assert "Seed 0: logits are not numbers." in found


def test_metric_bars_hold_every_seed_and_the_majority_baseline() -> None:
    trials = multi_class_run().trials
    comparison = compare(trials)
    table = metric_bars(comparison, comparison.ranked, "score").frame()
    for one in trials:
        labels, logits = one.predictions["test"]
        found = table[(table["configuration"] == one.method) & (table["seed"] == one.seed)]["score"].item()
        assert found == pytest.approx(reference.f1_score(labels, logits.argmax(1), average="macro"))
    labels = trials[0].predictions["test"][0]
    most = np.full_like(labels, np.bincount(labels).argmax())
    assert table["majority"].unique() == pytest.approx(reference.f1_score(labels, most, average="macro"))


def test_the_majority_baseline_is_left_out_where_it_says_little() -> None:
    comparison = compare(multi_label_run().trials)
    assert majority_score(comparison.rows, "f1_macro", "test") is None
    assert majority_score(compare(multi_class_run().trials).rows, "log_loss", "test") is None


def test_costs_are_those_of_the_trials() -> None:
    trials = multi_class_run().trials
    rows = compare(trials).ranked
    trainable, seconds = (quality_against_cost(rows, cost, "cost") for cost in (TRAINABLE, SECONDS))
    assert trainable is not None and seconds is not None
    by_name = trainable.frame().set_index("configuration")
    assert by_name["trainable"].to_dict() == {one.method: one.parameters["trainable"] for one in trials}
    means = {kind: np.mean([one.seconds for one in trials if one.method == kind]) for kind in METHODS}
    assert seconds.frame().set_index("configuration")["seconds"].to_dict() == pytest.approx(means)


def test_confusion_panels_sum_the_seeds() -> None:
    comparison = compare(multi_class_run().trials)
    row = comparison.row("bitfit")
    table = confusion_panels([row], "test", "confusion")[0].frame()
    expected = sum(
        reference.confusion_matrix(one.predictions["test"][0], one.predictions["test"][1].argmax(1))
        for one in row.configuration.done
    )
    assert table["texts"].to_numpy().reshape(3, 3).tolist() == np.asarray(expected).tolist()
    assert list(table["true"].unique()) == ["negative", "neutral", "positive"]


def test_large_confusion_matrices_keep_every_text_in_few_rows() -> None:
    names = [str(index) for index in range(30)]
    comparison = compare([trial("lora", 0, names)])
    figure = confusion_panels(comparison.rows, "test", "confusion")[0]
    assert figure.frame()["texts"].sum() == 300 and len(figure.frame()) < 300
    assert figure.spec()["layer"][0]["encoding"]["y"]["scale"]["domain"] == names


def test_multi_label_confusions_are_one_a_label() -> None:
    comparison = compare(multi_label_run().trials)
    row = comparison.row("lora")
    panels = label_panels(row, "test", "confusion")
    assert {panel.title for panel in panels} == set(row.configuration.first.label_names)
    for panel in panels:
        index = row.configuration.first.label_names.index(panel.title)
        expected = sum(
            reference.confusion_matrix(one.predictions["test"][0][:, index], one.predictions["test"][1][:, index] >= 0)
            for one in row.configuration.done
        )
        assert panel.frame()["texts"].to_numpy().reshape(2, 2).tolist() == np.asarray(expected).tolist()


def test_scores_by_label_are_means_over_seeds() -> None:
    comparison = compare(multi_class_run().trials)
    row = comparison.row("full")
    table = per_label_table([row], "test").set_index("label")
    scores = [
        reference.f1_score(one.predictions["test"][0], one.predictions["test"][1].argmax(1), average=None)
        for one in row.configuration.done
    ]
    assert table["f1"].tolist() == pytest.approx(np.mean(scores, axis=0).tolist())


def test_curves_are_means_over_seeds_with_their_range_and_losses_keep_their_mean() -> None:
    trials = multi_class_run(seeds=3).trials
    rows = compare(trials).ranked
    (figure,) = learning_curves(rows, "f1_macro", "metric")
    table = figure.frame()
    assert len(table) == len(METHODS) * 3
    for _, line in table.iterrows():
        at = [
            one["metrics"]["f1_macro"]
            for trial in trials
            for one in trial.history
            if trial.method == line["configuration"] and one["epoch"] == line["epoch"]
        ]
        wanted = (len(at), np.mean(at), min(at), max(at))
        assert (line["seeds"], line["mean"], line["lowest"], line["highest"]) == pytest.approx(wanted)
    panels = loss_panels([row.configuration for row in rows], "loss")
    losses = panels[0].frame()
    training = losses[losses["split"] == "training"]
    seeds = [trial.losses for trial in next(row for row in rows if row.name == panels[0].title).configuration.trials]
    assert len(training) == 60
    assert training["mean"].mean() == pytest.approx(np.mean([loss for one in seeds for _, loss in one]))
    scales = {json.dumps(panel.spec()["layer"][1]["encoding"]["y"]["scale"]["domain"]) for panel in panels}
    assert len(scales) == 1


def test_many_configurations_have_curves_by_method_on_one_scale() -> None:
    rows = compare(grid_run(seeds=1, evaluations=3).trials).ranked
    figures = learning_curves(rows, "f1_macro", "curve")
    assert {figure.title for figure in figures} == {"lora", "ia3", "bitfit"}
    assert sum(figure.frame()["configuration"].nunique() for figure in figures) == len(rows)
    assert len({json.dumps(one.spec()["layer"][1]["encoding"]["y"]["scale"]) for one in figures}) == 1
    lora = next(figure for figure in figures if figure.title == "lora").frame()
    assert set(lora["settings"]) == {f"learning_rate {rate}, rank {rank}" for rate in ("0.0001", "0.0005", "0.002")
                                     for rank in (4, 16)}  # fmt: skip


def test_thinning_keeps_short_curves_and_the_ends_of_long_ones() -> None:
    assert thinned([(1, 0.5), (2, 0.25)]) == [(1.0, 0.5), (2.0, 0.25)]
    long = thinned([(step, float(step)) for step in range(1, 1001)], points=10)
    assert len(long) == 10 and long[0] == (50.5, 50.5) and long[-1] == (950.5, 950.5)
    assert thinned([]) == []


def test_figure_keys_are_file_names_and_specifications_use_the_text_colour() -> None:
    page = build_page(multi_label_run(), compare(multi_label_run().trials))
    for figure in page.figures:
        assert re.fullmatch(r"[a-z0-9-]+", figure.key)
        assert figure.spec()["config"]["axis"]["labelColor"] == "currentColor"
    assert len({figure.key for figure in page.figures}) == len(page.figures)


def test_two_data_sets_have_their_own_tables_and_figures() -> None:
    names = ["no", "yes"]
    trials = [
        trial(kind, seed, names, data=data)
        for data in ("Näh & fern", "b")
        for kind in ("lora", "head")
        for seed in (0, 1)
    ]
    text = render(run(trials))
    found = Elements(text)
    assert sum(attributes.get("class") == "overview sortable" for _, attributes in found.tags) == 2
    assert {"spec-score-1-nah-fern", "spec-score-2-b"} <= set(found.scripts)


def test_a_figure_draws_as_png(written: Path) -> None:
    figure: Figure = build_page(troubled_run(), compare(troubled_run().trials)).figures[0]
    assert figure.png(scale=1.0).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("written_as", "value"),
    [
        (words.duration(59.6), "1 min 0 s"),
        (words.duration(7.25), "7.2 s"),
        (words.duration(3725), "1 h 2 min"),
        (words.size(999), "999 B"),
        (words.size(1_250_000), "1.25 MB"),
        (words.setting(5e-5), "5e-5"),
        (words.setting([1, "a", None]), "1, a, none"),
        (words.setting(True), "yes"),
        (words.score(float("nan")), "–"),
        (words.integer(1234567), "1,234,567"),
        (words.compact(22_713_216), "22.7M"),
        (words.metric_title("f1_macro"), "F1 (macro)"),
        (words.key("Confusion", "Zürich & <b>"), "confusion-zurich-b"),
    ],
)
def test_numbers_are_written_for_readers(written_as: Any, value: str) -> None:
    assert written_as == value


def test_folders_of_the_recipe_stay_at_home():
    text = render(replace(multi_class_run(), recipe_text='[data]\npath = "/home/somebody/secret place/reviews.csv"\n'))
    assert "reviews.csv" in text and "somebody" not in text
