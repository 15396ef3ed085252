"""Baselines in whole runs: beside trained trials, on one label, several labels and pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetune.cli.entry import run_command_line
from fleetune.compare.summary import compare
from fleetune.errors import MethodError, UserError
from fleetune.experiment import run_recipe
from fleetune.lab.check import check
from fleetune.lab.export import choose_trial, export_trial
from fleetune.lab.recipe import load_recipe
from fleetune.lab.results import load_results
from fleetune.lab.runner import run
from fleetune.methods.tfidf import TfIdf
from fleetune.metrics import softmax
from tests.conftest import BAD, GOOD, PLAIN

BASELINES = [{"kind": "majority"}, {"kind": "tfidf"}, {"kind": "zero_shot"}]
Write = Callable[..., Path]


def several_labels(path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    lines = ["text,joy,anger,calm"]
    for _ in range(120):
        chosen = rng.integers(0, 2, 3)
        words = [*rng.choice(PLAIN, 4), *(str(rng.choice(GOOD)) for _ in range(chosen[0])), *rng.choice(BAD, chosen[1])]
        lines.append(f"{' '.join(words)},{chosen[0]},{chosen[1]},{chosen[2]}")
    path.write_text("\n".join(lines))
    return {"label": ["joy", "anger", "calm"]}


def pairs(path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    lines = ["first,second,label"]
    for row in range(160):
        one, other = (" ".join(rng.choice([*GOOD, *BAD, *PLAIN], 6)) for _ in range(2))
        lines.append(f"{one},{one + ' it' if row % 2 else other},{'same' if row % 2 else 'other'}")
    path.write_text("\n".join(lines))
    return {"text": ["first", "second"]}


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize("make", [several_labels, pairs])
def test_several_labels_and_pairs(
    write_recipe: Write, tiny_backbones: Callable[[str], Path], tmp_path: Path, make: Any, architecture: str
):
    data = {"path": "made.csv", **make(tmp_path / "made.csv"), "leaks": "allow"}
    data["split"] = {"validation": 0.2, "test": 0.3}
    backbone = {"model": str(tiny_backbones(architecture))}
    training = {"metric": "f1_macro", "precision": "fp32", "learning_rate": [1e-3, 1e-2]}
    recipe = load_recipe(write_recipe(data=data, backbone=backbone, method=BASELINES, training=training))
    result = run_recipe(recipe, tmp_path / "run")
    assert result.summary.to_json()["trials"] == {"done": 3, "failed": 0, "skipped": 0}
    rows = {row.name: row for row in result.comparison.rows}
    assert rows["tfidf"].mean > max(rows["majority"].mean, 0.6)
    assert not rows["majority"].degenerate and result.comparison.verdict.recommended is None
    notes = load_results(tmp_path / "run").trials[2].notes
    expected = "continuations of a prompt" if architecture == "llama" else "cosine, which this model was not trained"
    assert any(expected in note for note in notes)


@pytest.fixture
def beside(write_recipe: Write) -> Path:
    return write_recipe(method=[{"kind": "head"}, *BASELINES])


def test_baselines_beside_a_trained_method(beside: Path, tmp_path: Path):
    result = run_recipe(load_recipe(beside), tmp_path / "run")
    assert result.summary.done == 5
    results = load_results(tmp_path / "run")
    by_kind = {trial.kind: trial for trial in results.trials}
    majority, tfidf, zero_shot = by_kind["majority"], by_kind["tfidf"], by_kind["zero_shot"]
    assert [trial.seed for trial in results.trials] == [0, 1, 0, 0, 0]
    assert majority.parameters == {"adapter": 0, "head": 0, "trainable": 0, "total": 0}
    coefficients = tfidf.parameters["trainable"]
    assert tfidf.parameters == {"adapter": 0, "head": coefficients, "trainable": coefficients, "total": coefficients}
    assert coefficients > 100 and zero_shot.parameters["trainable"] == 0 < zero_shot.parameters["total"]
    assert all(by_kind[kind].bundle_bytes is None for kind in ("majority", "tfidf", "zero_shot"))
    assert (tfidf.layout, tfidf.precision, zero_shot.precision) == (None, None, "fp32")
    labels, logits = majority.predictions["test"]
    counts = np.array(list(results.audits[0]["class_counts"]["train"].values()))
    np.testing.assert_allclose(softmax(logits), np.tile(counts / counts.sum(), (len(labels), 1)), rtol=1e-5)
    assert [(entry["step"], entry["best"]) for entry in tfidf.history] == [(0, True)]
    assert result.report is not None and "baseline" in result.report.read_text()
    row = compare(results.trials).row("tfidf").to_json()
    assert (row["seeds"], row["baseline"], row["bundle_bytes"]) == (1, True, None)


def test_a_baseline_is_never_exported_and_a_better_one_is_named(beside: Path, tmp_path: Path):
    folder = tmp_path / "run"
    run(load_recipe(beside), folder)
    results = load_results(folder)
    assert choose_trial(results, "best").kind == "head"
    identity = next(trial.id for trial in results.trials if trial.kind == "majority")
    for wanted in ("majority", "majority seed 0", identity):
        with pytest.raises(UserError, match="'majority' is a baseline") as caught:
            export_trial(folder, wanted, tmp_path / "bundle")
        assert len(str(caught.value).splitlines()) == 1
    saved = export_trial(folder, "best", tmp_path / "bundle")
    assert (
        saved.remark is not None and "the baseline tfidf is better on validation: mean accuracy 1.0000" in saved.remark
    )
    assert export_trial(folder, "head", tmp_path / "other").remark is None


def test_a_failure_stays_in_the_baseline_and_is_tried_again(
    beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("one by nought")

    with monkeypatch.context() as patch:
        patch.setattr(TfIdf, "fit", broken)
        summary = run(load_recipe(beside), tmp_path / "run")
    assert summary.to_json()["trials"] == {"done": 4, "failed": 1, "skipped": 0}
    failed = [trial for trial in load_results(tmp_path / "run").trials if trial.status == "failed"]
    assert [(trial.kind, trial.reason) for trial in failed] == [("tfidf", "ZeroDivisionError: one by nought")]
    again = run(load_recipe(tmp_path / "run" / "recipe.toml"), tmp_path / "run")
    assert again.to_json()["trials"] == {"done": 1, "failed": 0, "skipped": 4}


def test_a_fault_of_the_users_stays_in_the_baseline_too(write_recipe: Write, tmp_path: Path):
    methods = [{"kind": "zero_shot", "score": "continuation"}, {"kind": "majority"}]
    summary = run(load_recipe(write_recipe(method=methods)), tmp_path / "run")
    assert (summary.done, summary.failed) == (1, 1)
    reason = load_results(tmp_path / "run").trials[0].reason
    assert reason is not None and "no head that scores the next token" in reason


def test_label_texts_that_do_not_fit_are_refused_before_anything_is_trained(write_recipe: Write, tmp_path: Path):
    methods = [{"kind": "head"}, {"kind": "zero_shot", "label_texts": ["one"]}]
    with pytest.raises(MethodError, match="1 texts for 2 labels: neg, pos"):
        run(load_recipe(write_recipe(method=methods)), tmp_path / "run")
    assert not (tmp_path / "run" / "ledger.sqlite").exists()


def test_a_check_forecasts_baselines_and_asks_no_more_seeds_of_them(beside: Path, capsys: pytest.CaptureFixture[str]):
    found = check(load_recipe(beside)).to_json()
    assert [trial["parameters"]["adapter"] for trial in found["trials"]] == [0] * 5
    assert all(trial["forecast"]["seconds"] >= 0 for trial in found["trials"])
    assert [fleet["layout"] for fleet in found["fleets"]] == ["packed", None, None, "packed"]
    assert [line.split(":")[0] for line in found["warnings"] if "seed(s)" in line] == ["head"]
    json.dumps(found, allow_nan=False)
    assert run_command_line(["check", str(beside)]) == 0
    assert "tfidf: no model" in capsys.readouterr().out
