"""What a recipe or a user says of long texts holds in training, saving, loading and prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from fleetune import TextClassifier
from fleetune.bundle.manifest import MANIFEST, digest_of, read_manifest
from fleetune.data.cutting import Cutting
from fleetune.errors import RecipeError
from fleetune.lab.check import check
from fleetune.lab.export import export_trial
from fleetune.lab.inputs import gather_inputs
from fleetune.lab.recipe import Recipe, load_recipe
from fleetune.lab.results import load_results
from fleetune.lab.runner import run
from fleetune.report.html import render
from tests.conftest import BAD, GOOD, PLAIN

ROOM = 8
SETTINGS: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-2, "precision": "fp32", "max_tokens": ROOM + 2}


def examples(texts: int = 40) -> tuple[list[str], list[str]]:
    """Returns texts of 5 to 24 words whose last words tell their label."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(texts):
        label, words = (("good", GOOD), ("bad", BAD))[number % 2]
        found.append((" ".join([*rng.choice(PLAIN, int(rng.integers(3, 23))), *rng.choice(words, 2)]), label))
    return [text for text, _ in found], [label for _, label in found]


TEXTS, NAMES = examples()
LONG = [text for text in TEXTS if len(text.split()) > ROOM][:6]


def windows(text: str, stride: int, most: int) -> list[str]:
    """Returns the windows of a text of more than `ROOM` words, as texts."""
    words = text.split()
    starts = [0]
    while starts[-1] + ROOM < len(words):
        starts.append(min(starts[-1] + stride, len(words) - ROOM))
    return [" ".join(words[start : start + ROOM]) for start in starts[:most]]


def ends(text: str) -> str:
    """Returns the two words at the beginning and the six at the end of a text of more than `ROOM` words."""
    words = text.split()
    return " ".join([*words[:2], *words[-6:]])


CASES: list[tuple[dict[str, Any], Callable[[TextClassifier, str], Any]]] = [
    ({}, lambda fitted, text: fitted.decision_function([" ".join(text.split()[:ROOM])])[0]),
    ({"long_texts": "head_tail"}, lambda fitted, text: fitted.decision_function([ends(text)])[0]),
    (
        {"long_texts": "windows", "max_windows": 3},
        lambda fitted, text: fitted.decision_function(windows(text, 5, 3)).mean(axis=0),
    ),
    (
        {"long_texts": "windows", "window_stride": 3, "window_pool": "max"},
        lambda fitted, text: fitted.decision_function(windows(text, 3, 8)).max(axis=0),
    ),
]


@pytest.mark.parametrize(("fields", "expected"), CASES, ids=["head", "head_tail", "windows-mean", "windows-max"])
def test_a_classifier_reads_long_texts_the_same_after_loading(
    tiny_bert: Path, tmp_path: Path, fields: dict[str, Any], expected: Callable[[TextClassifier, str], Any]
) -> None:
    fitted: TextClassifier = clone(TextClassifier(str(tiny_bert), **SETTINGS, **fields)).fit(TEXTS, NAMES)
    logits = fitted.decision_function(LONG)
    np.testing.assert_allclose(logits, [expected(fitted, text) for text in LONG], atol=1e-5)
    assert fitted.save(tmp_path / "b") < 1e-5
    assert read_manifest(tmp_path / "b").long_texts == Cutting(**fields)
    loaded = TextClassifier.load(tmp_path / "b", precision="fp32")
    assert {name: getattr(loaded, name) for name in fields} == fields
    np.testing.assert_array_equal(loaded.decision_function(LONG), logits)


def test_a_bundle_that_says_nothing_of_long_texts_cuts_them(tiny_bert: Path, tmp_path: Path) -> None:
    fitted = TextClassifier(str(tiny_bert), "head", **SETTINGS).fit(TEXTS, NAMES)
    fitted.save(tmp_path / "b")
    fields = json.loads((tmp_path / "b" / MANIFEST).read_text())
    del fields["sha256"], fields["long_texts"]
    (tmp_path / "b" / MANIFEST).write_text(json.dumps({**fields, "sha256": digest_of(fields)}))
    loaded = TextClassifier.load(tmp_path / "b", precision="fp32")
    np.testing.assert_array_equal(loaded.decision_function(LONG), fitted.decision_function(LONG))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"long_texts": "window"}, "windows"),
        ({"max_windows": 4}, 'max_windows goes with long_texts = "windows"'),
        ({"long_texts": "windows", "window_stride": 9}, "Give at most 8"),
    ],
)
def test_wrong_settings_are_named(tiny_bert: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        TextClassifier(str(tiny_bert), **SETTINGS, **fields).fit(TEXTS, NAMES)


def test_pairs_are_not_read_in_windows(tiny_bert: Path) -> None:
    with pytest.raises(RecipeError, match='"head_tail"'):
        TextClassifier(str(tiny_bert), **SETTINGS, long_texts="windows").fit(
            list(zip(TEXTS, TEXTS, strict=True)), NAMES
        )


@pytest.fixture
def recipe_with(write_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., Recipe]:
    """Returns what reads a recipe over texts of 5 to 24 words, with some settings of [data]."""
    lines = [f"{text},{label}" for text, label in zip(TEXTS, NAMES, strict=True)]
    (tmp_path / "long.csv").write_text("\n".join(["text,label", *lines]))

    def make(**fields: Any) -> Recipe:
        data = {"path": "long.csv", "leaks": "drop", "max_tokens": ROOM + 2, **fields}
        training = {"epochs": 1, "precision": "fp32", "seeds": 1, "metric": "accuracy"}
        return load_recipe(write_recipe(data=data, training=training, method=[{"kind": "lora", "rank": 2}]))

    return make


WINDOWS: dict[str, Any] = {"long_texts": "windows", "max_windows": 3, "window_stride": 4, "window_pool": "max"}
WHOLE = 'long_texts = "windows" reads them whole'
LENGTHS = np.array([len(text.split()) for text in TEXTS])


def test_a_run_trains_in_windows_and_its_bundle_predicts_in_them(
    recipe_with: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe, folder = recipe_with(**WINDOWS), tmp_path / "runs" / "windows"
    assert run(recipe, folder).done == 1
    results = load_results(folder)
    audit = results.audits[0]
    assert 0 < audit["truncated"] < audit["windowed"]
    assert audit["truncated"] == (LENGTHS > ROOM + 2 * 4).sum() and audit["windowed"] == (LENGTHS > ROOM).sum()
    page = render(results)
    assert "Read in several windows" in page and "Cut after the last window" in page
    # The file alone, which somebody damaged: the ledger has the recipe, too.
    (folder / "recipe.toml").write_text((folder / "recipe.toml").read_text().replace("max_tokens = ", "max_tokens = 1"))
    report = export_trial(folder, "best", tmp_path / "bundle")
    assert report.max_difference < 1e-5
    loaded = TextClassifier.load(tmp_path / "bundle", precision="fp32")
    assert loaded.cutting_ == recipe.data[0].cutting == Cutting(**WINDOWS)
    dataset = gather_inputs(recipe).prepared["long"].dataset
    texts = [dataset.texts[index] for index in dataset.splits["test"]]
    np.testing.assert_allclose(loaded.decision_function(texts), results.trials[0].predictions["test"][1], atol=1e-5)
    assert run(recipe, folder).skipped == 1


@pytest.mark.parametrize(
    ("fields", "cut", "said"),
    [
        ({}, ROOM, 'cuts {share} of the texts; long_texts = "head_tail" keeps their ends too; ' + WHOLE),
        ({"long_texts": "head_tail"}, ROOM, 'cuts {share} of the texts; ' + WHOLE),
        (WINDOWS, ROOM + 2 * 4, "max_windows = 3 cuts {share} of the texts; more windows read on"),
        ({**WINDOWS, "max_windows": 5}, 24, ""),
    ],
)  # fmt: skip
def test_a_check_says_what_is_cut_and_what_would_not_cut_it(
    recipe_with: Callable[..., Recipe], fields: dict[str, Any], cut: int, said: str
) -> None:
    found = check(recipe_with(**fields))
    share = f"{(cut < LENGTHS).mean():.0%}"
    assert found.audits["long"].truncated == (cut < LENGTHS).sum()
    warnings = [line for line in found.warnings if " cuts " in line]
    assert len(warnings) == bool(said)
    assert not said or warnings[0].endswith(said.format(share=share))
    assert all(forecast.seconds > 0 for forecast in found.forecasts.values())
