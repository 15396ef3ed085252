"""The whole story by the command line: a labelled file goes in; comparison, report and classifier come out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetune import Experiment, Head, LoRA, TextClassifier
from fleetune.cli.entry import run_command_line
from fleetune.lab.predictions import read_predictions
from fleetune.lab.status import read_status

Captured = pytest.CaptureFixture[str]
WriteRecipe = Callable[..., Path]
LEARNS = {"epochs": 4, "precision": "fp32", "learning_rate": 2e-2, "seeds": 2, "metric": "accuracy"}


def asked(capsys: Captured, *arguments: str | Path, code: int = 0) -> Any:
    """Returns what a command prints with --json: one object on stdout and nothing else there."""
    capsys.readouterr()
    assert run_command_line([*map(str, arguments), "--json"]) == code, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_from_a_recipe_to_a_classifier(write_recipe: WriteRecipe, tmp_path: Path, capsys: Captured):
    recipe, run, bundle = write_recipe(training=LEARNS), tmp_path / "run", tmp_path / "bundle"

    seen = asked(capsys, "check", recipe)
    assert set(seen) == {"data", "trials", "fleets", "warnings"}
    (data,) = seen["data"]
    assert data["records"] == data["accepted"] + data["quarantined"] == 120
    assert data["train"] + data["validation"] + data["test"] == 120 - data["dropped"] and data["truncated"] == 0
    assert [trial["parameters"]["trainable"] for trial in seen["trials"]] == [578, 578, 66, 66]
    assert all(set(trial["forecast"]) == {"seconds", "peak_bytes"} for trial in seen["trials"])
    assert seen["fleets"][0]["trials"] == [trial["id"] for trial in seen["trials"]]
    assert seen["fleets"][0]["forecast"]["seconds"] == pytest.approx(
        sum(trial["forecast"]["seconds"] for trial in seen["trials"]), abs=0.3
    )
    assert (seen["fleets"][0]["layout"], seen["fleets"][0]["precision"]) == ("packed", "fp32")
    assert any("seeds" in warning for warning in seen["warnings"])
    assert not run.exists()

    done = asked(capsys, "run", recipe, "--out", run)
    assert set(done) == {
        "run",
        "trials",
        "seconds",
        "texts_per_second",
        "tokens_per_second",
        "utilisation",
        "peak_bytes",
    }
    assert done["trials"] == {"done": 4, "failed": 0, "skipped": 0}
    assert 0 < done["utilisation"] < 1

    status = asked(capsys, "status", run)
    assert [trial["id"] for trial in status["trials"]] == [trial["id"] for trial in seen["trials"]]
    assert status["counts"]["done"] == 4 and not status["alive"]

    comparison = asked(capsys, "compare", run)
    assert (comparison["metric"], comparison["split"], comparison["verdict"]["winner"]) == ("accuracy", "test", None)
    rows = {row["name"]: row for row in comparison["rows"]}
    assert set(rows) == {"lora", "head"} and rows["lora"]["seeds"] == 2 and rows["lora"]["trainable"] == 578
    recomputed = [_accuracy(run, trial["id"]) for trial in seen["trials"] if trial["method"] == "lora"]
    assert rows["lora"]["mean"] == pytest.approx(sum(recomputed) / 2)
    assert json.loads((run / "report" / "comparison.json").read_text())["rows"] == comparison["rows"]

    page = Path(asked(capsys, "report", run)["report"])
    assert page == run / "report" / "index.html" and "tiny" in page.read_text()

    saved = asked(capsys, "export", run, "lora", "--to", bundle)
    assert saved["max_difference"] <= 1e-4 and (bundle / "adapter_config.json").exists()
    texts = (run.parent / "reviews.csv").read_text().splitlines()[1:3]
    texts = [line.rpartition(",")[0] for line in texts]
    read = asked(capsys, "predict", bundle, *texts)["predictions"]
    assert len(read) == 2 and all(entry["probabilities"][entry["label"]] >= 0.5 for entry in read)
    assert sum(read[0]["probabilities"].values()) == pytest.approx(1)
    classifier = TextClassifier.load(bundle)
    assert list(classifier.predict(texts)) == [entry["label"] for entry in read]

    again = asked(capsys, "run", run / "recipe.toml")
    assert again["trials"] == {"done": 0, "failed": 0, "skipped": 4} and again["run"] == str(run)


def _accuracy(run: Path, trial: str) -> float:
    labels, logits = read_predictions(run / "trials" / trial / "predictions.parquet")["test"]
    return float((logits.argmax(axis=1) == labels).mean())


def test_predict_reads_files_and_pipes(write_recipe: WriteRecipe, tmp_path: Path, capsys: Captured):
    recipe = write_recipe(training={**LEARNS, "seeds": 1}, method=[{"kind": "head"}])
    asked(capsys, "run", recipe, "--out", tmp_path / "run")
    bundle = tmp_path / "bundle"
    assert run_command_line(["export", str(tmp_path / "run"), "--to", str(bundle)]) == 0
    assert "logits differ" in capsys.readouterr().out
    (tmp_path / "lines.txt").write_text("a good film\n\nan awful, dull book\n")
    by_line = asked(capsys, "predict", bundle, "--file", tmp_path / "lines.txt")["predictions"]
    by_column = asked(capsys, "predict", bundle, "--file", tmp_path / "reviews.csv")["predictions"]
    given = asked(capsys, "predict", bundle, "a good film", "an awful, dull book")["predictions"]
    piped = subprocess.run(
        [sys.executable, "-m", "fleetune.cli", "predict", str(bundle), "--json"],
        input="a good film\nan awful, dull book\n", capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert by_line == given == json.loads(piped.stdout)["predictions"]
    assert len(by_column) == 120
    assert run_command_line(["predict", str(bundle), "--file", str(tmp_path / "reviews.csv"), "--text", "txt"]) == 2
    assert "--text COLUMN" in capsys.readouterr().err
    assert run_command_line(["export", str(tmp_path / "run"), "--to", str(bundle)]) == 2
    assert run_command_line(["export", str(tmp_path / "run"), "--to", str(tmp_path / "o"), "--onnx"]) == 2


def test_a_matrix_of_data_and_backbones(
    write_recipe: WriteRecipe, write_texts: Callable[..., Path], tiny_backbones: Callable[[str], Path], tmp_path: Path,
    capsys: Captured,
):  # fmt: skip
    second = write_texts("three.csv", texts=150, labels=("neg", "pos", "none"))
    split = {"validation": 0.2, "test": 0.2}
    recipe = write_recipe(
        data=[
            {"path": "reviews.csv", "leaks": "drop", "split": split, "name": "two"},
            {"path": second.name, "leaks": "drop", "split": split, "name": "three/labels"},
        ],
        backbone=[{"model": str(tiny_backbones(name)), "name": name} for name in ("roberta", "llama")],
        method=[{"kind": "norm", "seeds": 1}, {"kind": "full", "seeds": 1, "learning_rate": 1e-3}],
    )
    write_texts("reviews.csv")
    done = asked(capsys, "run", recipe, "--out", tmp_path / "run")
    assert done["trials"] == {"done": 8, "failed": 0, "skipped": 0}
    rows = asked(capsys, "compare", tmp_path / "run")["rows"]
    assert {(row["data"], row["backbone"], row["method"]) for row in rows} == {
        (data, model, method) for data in ("two", "three/labels") for model in ("roberta", "llama")
        for method in ("norm", "full")
    }  # fmt: skip
    audits = sorted(path.parent.name for path in (tmp_path / "run" / "data").glob("*/audit.json"))
    assert audits == ["three_labels", "two"]
    assert (tmp_path / "run" / "report" / "index.html").exists()


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_and_ends_like_one_that_was_not(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: Captured
):
    recipe = write_recipe(training={**LEARNS, "epochs": 30, "evaluate_every": 5, "learning_rate": 1e-3})
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    command = [sys.executable, "-m", "fleetune.cli", "run", str(recipe), "--out", str(stopped)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    _wait_for_steps(stopped, process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143
    assert told.strip().splitlines()[-1] == f"To go on type: fleetune run {stopped / 'recipe.toml'}"
    assert "Traceback" not in told
    before = read_status(stopped)
    assert before.counts["pending"] == 4 and 0 < before.trials[0].step < 150

    asked(capsys, "run", recipe, "--out", stopped)
    asked(capsys, "run", recipe, "--out", straight)
    assert [trial.step for trial in read_status(stopped).trials] == [150] * 4
    for trial in read_status(stopped).trials:
        ours = read_predictions(stopped / "trials" / trial.id / "predictions.parquet")
        theirs = read_predictions(straight / "trials" / trial.id / "predictions.parquet")
        for split, (labels, logits) in theirs.items():
            assert (ours[split][0] == labels).all()
            np.testing.assert_allclose(ours[split][1], logits, atol=1e-5)


def _wait_for_steps(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "ledger.sqlite").exists():
            try:
                if any(trial.step > 5 for trial in read_status(folder).trials):
                    return
            except Exception:
                pass
        time.sleep(0.05)
    raise AssertionError("the run ended or did not begin")


def test_a_diverging_trial_fails_alone_and_the_exit_code_says_so(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: Captured
):
    methods = [{"kind": "lora", "learning_rate": 1e30, "weight_decay": 1e30}, {"kind": "head"}]
    recipe = write_recipe(training={**LEARNS, "seeds": 1, "max_grad_norm": 0.0}, method=methods)
    done = asked(capsys, "run", recipe, "--out", tmp_path / "run", code=1)
    assert done["trials"] == {"done": 1, "failed": 1, "skipped": 0}
    trials = asked(capsys, "status", tmp_path / "run")["trials"]
    assert [trial["status"] for trial in trials] == ["failed", "done"] and "loss" in trials[0]["reason"]


def test_a_method_that_does_not_fit_is_refused_before_training(
    write_recipe: WriteRecipe, tiny_backbones: Callable[[str], Path], tmp_path: Path, capsys: Captured
):
    recipe = write_recipe(backbone={"model": str(tiny_backbones("llama"))}, method=[{"kind": "bitfit"}])
    assert run_command_line(["run", str(recipe), "--out", str(tmp_path / "run")]) == 2
    assert "bias" in capsys.readouterr().err
    recipe = write_recipe(method=[{"kind": "lora", "target_modules": ["q_proj"]}])
    assert run_command_line(["check", str(recipe)]) == 2
    told = capsys.readouterr().err
    assert "'q_proj' matches no linear module" in told and "attention.self.query" in told
    assert not (tmp_path / "run").exists()


def test_an_experiment_from_python(tiny_bert: Path, write_texts: Callable[..., Path], tmp_path: Path):
    import pandas as pd

    frame = pd.read_csv(write_texts()).rename(columns={"text": "review", "label": "mood"})
    experiment = Experiment(
        data=frame,
        text="review",
        label="mood",
        backbone=tiny_bert,
        methods=[LoRA(rank=2), Head(), {"kind": "bitfit", "learning_rate": 1e-2}],
        training={"epochs": 1, "precision": "fp32", "metric": "accuracy"},
        seeds=[3, 5],
        out=tmp_path / "run",
    )
    result = experiment.run()
    assert set(result.frame["name"]) == {"lora", "head", "bitfit"} and (result.frame["seeds"] == 2).all()
    assert result.report is not None and result.report.exists() and result.folder == tmp_path / "run"
    assert result.export(tmp_path / "bundle").max_difference <= 1e-4


def test_init_on_a_file_leads_to_a_report(
    write_texts: Callable[..., Path], tiny_bert: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
):
    path = write_texts("by hand.csv")
    path.write_bytes(
        path.read_text().replace("found", "café").encode("cp1252") + b'"",pos\r\na text without label,\r\n'
    )
    monkeypatch.chdir(tmp_path)
    assert run_command_line(["init", "by hand.csv", "--model", str(tiny_bert)]) == 0
    assert "fleetune run recipe.toml" in capsys.readouterr().out
    assert run_command_line(["check", "recipe.toml"]) == 0
    assert run_command_line(["run", "recipe.toml", "--set", "training.epochs=1"]) == 0
    printed = capsys.readouterr().out
    assert "report: runs/recipe/report/index.html" in printed
    assert (tmp_path / "runs" / "recipe" / "report" / "index.html").exists()
