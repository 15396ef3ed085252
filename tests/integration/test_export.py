"""An exported bundle decides and explains itself: temperature, thresholds for a wish, and a card whose code runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from scipy.special import expit, softmax

from fleetune import TextClassifier
from fleetune.bundle.manifest import MANIFEST, digest_of
from fleetune.calibration import fit_temperature
from fleetune.cli.entry import run_command_line
from fleetune.lab.results import load_results
from fleetune.thresholds import threshold_for
from tests.e2e.test_multi_label import FILES, NAMES, asked, write_flags

Captured = pytest.CaptureFixture[str]
WriteRecipe = Callable[..., Path]
LEARNS = {"epochs": 2, "precision": "fp32", "learning_rate": 2e-2, "seeds": 2, "metric": "f1_macro"}
TEXTS = ["the good, great day", "an awful and dull book", "we found a place", "sad"]


def run_of(write_recipe: WriteRecipe, tmp_path: Path, capsys: Captured, **tables: Any) -> Path:
    recipe = write_recipe(**{"training": LEARNS, "method": [{"kind": "lora", "rank": 2}], **tables})
    asked(capsys, "run", recipe, "--out", tmp_path / "run")
    return tmp_path / "run"


def manifest_of(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / MANIFEST).read_text("utf-8")))


def run_blocks(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Runs each block of Python in the card as it stands, in the bundle's folder; returns what it leaves."""
    monkeypatch.chdir(bundle)
    text = (bundle / "README.md").read_text("utf-8")
    found: list[dict[str, Any]] = []
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        scope: dict[str, Any] = {}
        exec(block, scope)
        found.append(scope)
    return found


def check_blocks(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain = run_blocks(bundle, monkeypatch)
    np.testing.assert_allclose(np.array(plain["probabilities"]), ours["probabilities"], atol=1e-4)
    assert [list(one) if isinstance(one, tuple) else one for one in ours["labels"]] == plain["labels"]


def test_two_labels_with_a_wished_precision(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
):
    run = run_of(write_recipe, tmp_path, capsys)
    saved = asked(capsys, "export", run, "--to", tmp_path / "plain")
    trial = next(one for one in load_results(run).trials if one.id == saved["trial"])
    temperature = fit_temperature(*trial.predictions["validation"])
    before = manifest_of(tmp_path / "plain")
    assert before["temperature"] == saved["temperature"] == pytest.approx(temperature) and temperature != 1.0
    assert before["positive_threshold"] is None and saved["thresholds"] == []

    classifier = TextClassifier.load(tmp_path / "plain", precision="fp32")
    logits = classifier.decision_function(TEXTS).astype(float)
    np.testing.assert_allclose(classifier.predict_proba(TEXTS), softmax(logits / temperature, axis=1), atol=1e-12)
    assert classifier.predict(TEXTS).tolist() == [before["labels"][place] for place in logits.argmax(axis=1)]
    told = asked(capsys, "predict", tmp_path / "plain", *TEXTS)["predictions"]
    assert [one["label"] for one in told] == classifier.predict(TEXTS).tolist()
    assert told[0]["probabilities"]["pos"] == pytest.approx(classifier.predict_proba(TEXTS)[0, 1], abs=1e-6)
    check_blocks(tmp_path / "plain", monkeypatch)

    wished = asked(capsys, "export", run, "--to", tmp_path / "bundle", "--recall", "0.97")
    (point,) = wished["thresholds"]
    labels, logits = trial.predictions["validation"]
    scores = softmax(logits.astype(float) / temperature, axis=1)[:, 1]
    after = manifest_of(tmp_path / "bundle")
    assert point["label"] == "pos" and point["threshold"] == after["positive_threshold"]
    assert after["positive_threshold"] == pytest.approx(threshold_for(labels == 1, scores, recall=0.97))
    assert point["validation_recall"] >= 0.97
    labels, logits = trial.predictions["test"]
    chosen = softmax(logits.astype(float) / temperature, axis=1)[:, 1] >= after["positive_threshold"]
    assert point["recall"] == pytest.approx(chosen[labels == 1].mean())
    assert after["training"]["scores"]["test"]["recall"] == pytest.approx(point["recall"])
    assert after["training"]["wished"] == {"recall": 0.97}
    check_blocks(tmp_path / "bundle", monkeypatch)
    deciding = TextClassifier.load(tmp_path / "bundle")
    deciding.positive_threshold_ = 0.0
    deciding.save(tmp_path / "always")
    told = asked(capsys, "predict", tmp_path / "always", *TEXTS)["predictions"]
    assert {one["label"] for one in told} == {"pos"} and set(deciding.predict(TEXTS)) == {"pos"}

    assert run_command_line(["export", str(run), "--to", str(tmp_path / "told"), "--precision", "0.6"]) == 0
    assert "test is to be believed" in capsys.readouterr().out
    for wrong, said in ((["--precision", "1.5"], "no share"), (["--precision", "0.9", "--recall", "0.9"], "both")):
        assert run_command_line(["export", str(run), "--to", str(tmp_path / "none"), *wrong]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_several_labels_with_a_wish_and_a_card_made_again(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
):
    data = {"path": write_flags(tmp_path / "flags.csv").name, "label": NAMES, **FILES}
    run, bundle = run_of(write_recipe, tmp_path, capsys, data=data), tmp_path / "bundle"
    plain = asked(capsys, "export", run, "--to", tmp_path / "plain")
    saved = asked(capsys, "export", run, plain["trial"], "--to", bundle, "--precision", "0.95")
    before, after = manifest_of(tmp_path / "plain"), manifest_of(bundle)
    reached = {point["label"]: point for point in saved["thresholds"]}
    assert list(reached) == NAMES
    missed = [name for name in NAMES if reached[name]["threshold"] is None]
    assert missed == ["plain"], "a label that is noise keeps no precision of 0.95"
    for name, old, new in zip(NAMES, before["thresholds"], after["thresholds"], strict=True):
        assert new == (old if name in missed else reached[name]["threshold"])
        assert name in missed or reached[name]["validation_precision"] >= 0.95

    classifier = TextClassifier.load(bundle)
    logits = classifier.decision_function(TEXTS).astype(float)
    expected = expit(logits / after["temperature"]) >= after["thresholds"]
    assert classifier.predict(TEXTS) == [tuple(np.array(NAMES)[row].tolist()) for row in expected]
    check_blocks(bundle, monkeypatch)

    card = bundle / "README.md"
    assert (
        ModelCard.load(card).data.base_model is None and str(tmp_path) not in card.read_text().split("## Training")[0]
    )
    made, _ = card.read_text(), card.write_text("mended by hand")
    assert TextClassifier.load(bundle).classes_.tolist() == NAMES, "a card is no part of the checksums"
    told = asked(capsys, "card", run, "--to", bundle)
    assert Path(told["card"]) == card and card.read_text() == made
    other = next(one.id for one in load_results(run).trials if one.id != saved["trial"])
    assert run_command_line(["card", str(run), other, "--to", str(bundle)]) == 2
    assert "holds trial" in capsys.readouterr().err
    assert run_command_line(["card", str(run), saved["trial"], "--to", str(bundle)]) == 0


@pytest.mark.parametrize(("kind", "merge"), [("lora", True), ("bitfit", False)])
def test_other_forms_keep_the_temperature_and_their_code_runs(
    write_recipe: WriteRecipe,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    merge: bool,
):
    run = run_of(write_recipe, tmp_path, capsys, method=[{"kind": kind}], training={**LEARNS, "seeds": 1})
    asked(capsys, "export", run, "--to", tmp_path / "bundle", *(["--merge"] if merge else []))
    facts = manifest_of(tmp_path / "bundle")
    assert facts["form"] == ("merged" if merge else "parameters") and facts["temperature"] != 1.0
    check_blocks(tmp_path / "bundle", monkeypatch)


def test_more_than_two_labels_have_no_threshold_and_an_older_bundle_has_no_temperature(
    write_recipe: WriteRecipe, write_texts: Callable[..., Path], tmp_path: Path, capsys: Captured
):
    data = {"path": write_texts("three.csv", 120, ("neg", "pos", "so")).name, **FILES}
    run = run_of(write_recipe, tmp_path, capsys, data=data, training={**LEARNS, "seeds": 1})
    assert run_command_line(["export", str(run), "--to", str(tmp_path / "none"), "--precision", "0.9"]) == 2
    assert "with 3 labels of which a text has one there is none" in capsys.readouterr().err

    bundle = tmp_path / "bundle"
    asked(capsys, "export", run, "--to", bundle)
    facts = manifest_of(bundle)
    for name in ("sha256", "temperature", "positive_threshold"):
        del facts[name]
    (bundle / MANIFEST).write_text(json.dumps({**facts, "sha256": digest_of(facts)}))
    older = TextClassifier.load(bundle)
    assert (older.temperature_, older.positive_threshold_) == (1.0, None)
    np.testing.assert_allclose(
        older.predict_proba(TEXTS), softmax(older.decision_function(TEXTS).astype(float), axis=1)
    )


def test_compare_prints_tables(write_recipe: WriteRecipe, tmp_path: Path, capsys: Captured):
    run = run_of(write_recipe, tmp_path, capsys, training={**LEARNS, "seeds": 1})
    for wanted, start in (("csv", "name,data,"), ("md", "| configuration |"), ("latex", "% needs")):
        assert run_command_line(["compare", str(run), "--format", wanted]) == 0
        assert capsys.readouterr().out.startswith(start)
    assert run_command_line(["compare", str(run), "--format", "csv", "--json"]) == 2
    assert "Give one of them" in capsys.readouterr().err
    assert run_command_line(["compare", str(run), "--format", "xls"]) == 2
