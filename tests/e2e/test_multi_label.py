"""Texts with several labels, and data sets with their own metrics, by the command line from end to end."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef, multilabel_confusion_matrix

from fleetune import TextClassifier
from fleetune.classifier import _dataset
from fleetune.cli.entry import run_command_line
from fleetune.data.arrays import read_labels, read_texts
from fleetune.lab.predictions import read_predictions
from fleetune.lab.results import load_results
from fleetune.metrics import sigmoid
from fleetune.report.page import build_page
from fleetune.thresholds import cross_fitted_thresholds, tuned_thresholds
from tests.conftest import BAD, GOOD, PLAIN

Captured = pytest.CaptureFixture[str]
WriteRecipe = Callable[..., Path]
NAMES = ["joy", "gloom", "plain"]
FILES = {"leaks": "drop", "split": {"validation": 0.3, "test": 0.3}}
LEARNS = {"epochs": 4, "precision": "fp32", "learning_rate": 2e-2, "seeds": 2, "metric": "f1_macro"}


def asked(capsys: Captured, *arguments: str | Path, code: int = 0) -> Any:
    capsys.readouterr()
    assert run_command_line([*map(str, arguments), "--json"]) == code, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def write_flags(path: Path, texts: int = 240) -> Path:
    """Writes texts of which a third has each label by its words, some none and some two; `plain` is rare and noise."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *NAMES])
        for number in range(texts):
            joy, gloom = rng.random() < 0.35, rng.random() < 0.35
            words = [*rng.choices(GOOD, k=2 * joy), *rng.choices(BAD, k=2 * gloom), *rng.choices(PLAIN, k=4)]
            rng.shuffle(words)
            known = [PLAIN[number % 15], PLAIN[number // 15 % 15], PLAIN[number // 225]]
            writer.writerow([" ".join([*words, *known]), int(joy), int(gloom), int(rng.random() < 0.1)])
    return path


def test_several_labels_from_a_recipe_to_a_classifier(write_recipe: WriteRecipe, tmp_path: Path, capsys: Captured):
    flags = write_flags(tmp_path / "flags.csv")
    data = {"path": flags.name, "label": NAMES, **FILES}
    methods = [{"kind": "lora", "rank": 2}, {"kind": "head", "loss": "focal", "class_weights": [1.0, 1.0, 4.0]}]
    recipe, run = write_recipe(data=data, training=LEARNS, method=methods), tmp_path / "run"
    assert asked(capsys, "run", recipe, "--out", run)["trials"] == {"done": 4, "failed": 0, "skipped": 0}

    comparison = asked(capsys, "compare", run)
    rows = {row["name"]: row for row in comparison["rows"]}
    assert (comparison["metric"], rows["lora"]["metric"]) == ("f1_macro", "f1_macro")
    results = load_results(run)
    thresholds = {}
    for trial in results.trials:
        predictions = read_predictions(run / "trials" / trial.id / "predictions.parquet")
        labels, logits = predictions["validation"]
        thresholds[trial.id] = tuned_thresholds(labels, sigmoid(logits))
        truth, values = predictions["test"]
        chosen = (sigmoid(values) >= thresholds[trial.id]).astype(int)
        expected = f1_score(truth, chosen, average="macro", zero_division=0)
        assert rows[trial.method]["scores"][str(trial.seed)] == pytest.approx(expected)
        assert trial.scores("test")["f1_micro"] == pytest.approx(f1_score(truth, chosen, average="micro"))
        assert trial.scores("test")["exact_match"] == pytest.approx((truth == chosen).all(axis=1).mean())
        assert "accuracy" not in trial.scores("test")
        crossed = (sigmoid(logits) >= cross_fitted_thresholds(labels, sigmoid(logits))).astype(int)
        best = max(entry["metrics"]["f1_macro"] for entry in trial.history)
        assert best == pytest.approx(f1_score(labels, crossed, average="macro", zero_division=0), abs=1e-9)
    assert any((values != 0.5).any() for values in thresholds.values())

    from fleetune.compare.summary import compare

    page = build_page(results, compare(results.trials))
    (section,) = (one.labels for one in page.sections)
    lead = [trial for trial in results.trials if trial.method == section.lead]
    for record in section.label_rows:
        place = NAMES.index(record["label"])
        assert record["threshold"] == pytest.approx(np.mean([thresholds[trial.id][place] for trial in lead]))
    assert section.confusion is not None and len(section.confusion.figures) == len(NAMES)
    assert "tuned for each label's F1 on validation alone" in section.confusion.caption
    summed = sum(multilabel_confusion_matrix(trial.predictions["test"][0], trial.decisions("test")) for trial in lead)
    for figure in section.confusion.figures:
        cells = figure.frame()["texts"].to_numpy().reshape(2, 2)
        np.testing.assert_array_equal(cells, np.asarray(summed)[NAMES.index(figure.title)])
    html = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert '<th scope="col">Threshold</th>' in html and "weights and focus included" in html

    saved = asked(capsys, "export", run, "lora", "--to", tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "fleetune.json").read_text())
    np.testing.assert_allclose(manifest["thresholds"], thresholds[saved["trial"]])
    assert manifest["training"]["scores"]["test"]["exact_match"] >= 0.0
    texts = pd.read_csv(flags)["text"].tolist()[:12]
    read = asked(capsys, "predict", tmp_path / "bundle", *texts)["predictions"]
    for one in read:
        given = [name for name, limit in zip(NAMES, manifest["thresholds"], strict=True)
                 if one["probabilities"][name] >= limit]  # fmt: skip
        assert one["labels"] == given
    assert len({tuple(one["labels"]) for one in read}) > 1
    assert asked(capsys, "run", run / "recipe.toml")["trials"]["skipped"] == 4


def test_weights_of_another_number_and_metrics_of_other_labels_are_refused(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: Captured
):
    data = {"path": write_flags(tmp_path / "flags.csv", 60).name, "label": NAMES, **FILES}
    for training, said in (
        ({**LEARNS, "class_weights": [1.0, 2.0]}, "class_weights has 2 numbers, and there are 3 labels"),
        ({**LEARNS, "metric": "accuracy"}, 'metric = "exact_match"'),
    ):
        recipe = write_recipe(data=data, training=training, method=[{"kind": "head"}])
        assert run_command_line(["run", str(recipe), "--out", str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err


def test_thresholds_of_a_text_classifier(tiny_bert: Path, tmp_path: Path):
    table = pd.read_csv(write_flags(tmp_path / "flags.csv"))
    texts, labels = table["text"].tolist(), table[NAMES].to_numpy()
    common: dict[str, Any] = {"epochs": 3, "learning_rate": 1e-2, "precision": "fp32", "validation": 0.3}
    tuned = TextClassifier(str(tiny_bert), class_weights=[1.0, 1.0, 3.0], loss="focal", **common).fit(texts, labels)
    assert tuned.thresholds_ is not None and (tuned.thresholds_ != 0.5).any()
    held_out = tuned._split(_dataset(read_texts(texts), read_labels(labels)))["validation"]
    assert 50 < len(held_out) < 90
    probabilities = tuned.predict_proba([texts[index] for index in held_out])
    expected = tuned_thresholds(labels[held_out], probabilities)
    assert tuned.thresholds_.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    np.testing.assert_array_equal(tuned.predict(texts), tuned.predict_proba(texts) >= tuned.thresholds_)
    tuned.save(tmp_path / "bundle")
    loaded = TextClassifier.load(tmp_path / "bundle")
    assert loaded.thresholds_ is not None and loaded.thresholds_.tolist() == tuned.thresholds_.tolist()
    assert (loaded.loss, list(loaded.class_weights), loaded.thresholds) == ("focal", [1.0, 1.0, 3.0], "tuned")
    fixed = TextClassifier(str(tiny_bert), thresholds=0.25, **common).fit(texts, labels)
    assert fixed.thresholds_ is not None and fixed.thresholds_.tolist() == [0.25] * 3
    alone = TextClassifier(str(tiny_bert), **{**common, "validation": 0.0}).fit(texts, labels)
    assert alone.thresholds_ is not None and alone.thresholds_.tolist() == [0.5] * 3


def test_data_sets_with_their_own_metrics_and_a_test_without_labels(
    write_recipe: WriteRecipe, write_texts: Callable[..., Path], tmp_path: Path, capsys: Captured
):
    write_texts("one.csv", 120)
    write_texts("two.csv", 135)
    (tmp_path / "unseen.csv").write_text("text\nthe great film\na sad, dull book\n")
    data = [
        {"name": "one", "path": "one.csv", **FILES},
        {"name": "two", "train": "two.csv", "test": "unseen.csv", "metric": "matthews", **FILES},
    ]
    methods = [{"kind": "head", "data": ["one"]}, {"kind": "head", "data": ["two"], "learning_rate": 1e-2}]
    recipe = write_recipe(data=data, training={**LEARNS, "metric": "accuracy"}, method=methods)
    run = tmp_path / "run"
    checked = asked(capsys, "check", recipe)
    assert any("two: the 2 texts of test have no labels" in warning for warning in checked["warnings"])
    assert not any("2 test texts can hardly" in warning for warning in checked["warnings"])
    asked(capsys, "run", recipe, "--out", run)

    comparison = asked(capsys, "compare", run)
    assert comparison["split"] == "validation", "one data set has no other labels to score by"
    rows = {row["data"]: row for row in comparison["rows"]}
    assert (rows["one"]["metric"], rows["two"]["metric"]) == ("accuracy", "matthews")
    for trial in load_results(run).trials:
        predictions = read_predictions(run / "trials" / trial.id / "predictions.parquet")
        labels, logits = predictions["validation"]
        scores = {
            "accuracy": (labels == logits.argmax(1)).mean(),
            "matthews": matthews_corrcoef(labels, logits.argmax(1)),
        }
        assert rows[trial.data]["scores"][str(trial.seed)] == pytest.approx(scores[trial.metric])
        assert ("test" in trial.predictions) == (trial.data == "one")
        if trial.data == "two":
            assert predictions["test"][1].shape == (2, 2) and np.isfinite(predictions["test"][1]).all()
            assert predictions["test"][0].tolist() == [-1, -1]
    status = asked(capsys, "status", run)
    for trial, result in zip(status["trials"], load_results(run).trials, strict=True):
        best = [entry["metrics"][result.metric] for entry in result.history if entry["best"]]
        assert (trial["metric"], trial["value"]) == (result.metric, pytest.approx(best[-1]))
    html = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "Test texts without labels, not scored" in html and "no score is claimed" in html

    assert run_command_line(["export", str(run), "best", "--to", str(tmp_path / "bundle")]) == 2
    assert "one, two" in capsys.readouterr().err
    assert asked(capsys, "export", run, "two", "--to", tmp_path / "bundle")["max_difference"] <= 1e-4
    assert asked(capsys, "run", run / "recipe.toml")["trials"] == {"done": 0, "failed": 0, "skipped": 4}
