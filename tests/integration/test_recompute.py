"""Every number of a report comes out again from the run's files by code that shares nothing with the package."""

from __future__ import annotations

import ast
import json
import random
import re
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from fleetune.lab.recipe import load_recipe
from fleetune.lab.results import load_results
from fleetune.lab.runner import run as train
from fleetune.lab.test_uses import log_scores
from fleetune.report.html import write_report
from tests.conftest import BAD, GOOD, PLAIN
from tests.recompute import main, recompute
from tests.recomputed.printed import Checks, in_words, read
from tests.recomputed.scores import Judged, draws_of

ALLOWED = {"numpy", "scipy", "pandas", "pyarrow", "sklearn", "tests"}
NOT_RECOMPUTED = {
    "table suspect-labels",
    "the environment: versions and hardware",
    "settings that all configurations share: they are the recipe's",
}
SPLIT = {"validation": 0.25, "test": 0.3}
LORA, HEAD, TFIDF = {"kind": "lora", "rank": [2, 4]}, {"kind": "head"}, {"kind": "tfidf"}
RUNS: dict[str, dict[str, Any]] = {
    "two labels": {
        "data": {"label": "label", "slices": ["size"], "curve": [0.5]},
        "method": [LORA, HEAD, TFIDF, {"kind": "majority"}],
        "training": {"metric": "accuracy", "seeds": 3},
    },
    "three labels": {
        "data": {"label": "label"},
        "method": [LORA, HEAD, TFIDF],
        "training": {"metric": "f1_macro", "seeds": 9},
    },
    "several labels a text": {
        "data": {"label": ["joy", "anger", "calm"], "slices": ["size"]},
        "method": [LORA, TFIDF],
        "training": {"metric": "f1_micro", "seeds": 2, "thresholds": "tuned"},
    },
}
QUALITY = {"lora r=2": 0.8, "lora r=4": 0.95, "head": 0.3, "tfidf": 0.7}


def write_texts(path: Path, labels: int) -> None:
    """Writes texts whose labels follow from their words, now and then not."""
    rng = random.Random(labels)
    lines = ["text,size,label,joy,anger,calm"]
    for number in range(180):
        label = number % labels
        words = [*rng.choices(PLAIN, k=rng.randint(3, 9)), *rng.choices([BAD, GOOD, PLAIN][label], k=2)]
        rng.shuffle(words)
        shown = label if rng.random() < 0.85 else rng.randrange(labels)
        several = [int(any(word in kind for word in words)) for kind in (GOOD[:4], BAD)] + [int("it" in words)]
        size = "long" if len(words) > 8 else "short"
        text = " ".join([*words, PLAIN[number % 15], PLAIN[number // 15]])
        lines.append(f"{text},{size},{'abc'[shown]},{','.join(map(str, several))}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(params=list(RUNS))
def run(request: pytest.FixtureRequest, tiny_bert: Path, tmp_path: Path) -> Path:
    import tomli_w

    tables = RUNS[request.param]
    write_texts(tmp_path / "texts.csv", 3 if request.param == "three labels" else 2)
    document = {
        "data": {"path": "texts.csv", "text": "text", "leaks": "drop", "split": SPLIT} | tables["data"],
        "backbone": {"model": str(tiny_bert), "name": "tiny"},
        "training": {"epochs": 1, "precision": "fp32", "learning_rate": 2e-2} | tables["training"],
        "method": tables["method"],
    }
    path = tmp_path / "tiny.toml"
    path.write_text(tomli_w.dumps(document))
    train(load_recipe(path), tmp_path / "run")
    return tmp_path / "run"


def test_every_number_comes_out_again_and_a_wrong_one_is_found(run: Path, tmp_path: Path) -> None:
    write(run)
    untaught = recompute(run)
    teach(run)
    write(run)
    checks = recompute(run)
    assert untaught.wrong == [] and checks.wrong == []
    assert untaught.count > 1_500 and checks.count > 2_000
    assert json.loads((run / "report" / "comparison.json").read_text())["tests"], "nothing could be tested"
    assert set(untaught.skipped + checks.skipped) <= NOT_RECOMPUTED
    for plant in (wrong_in_comparison, wrong_on_the_page, wrong_in_a_figure, wrong_prediction, wrong_in_the_answer):
        spoilt = tmp_path / plant.__name__
        shutil.copytree(run, spoilt)
        where = plant(spoilt)
        wrong = recompute(spoilt).wrong
        assert any(where in one for one in wrong), (plant.__name__, wrong)


def write(run: Path) -> None:
    write_report(log_scores(load_results(run), "report"), run / "report", figures=False)


def teach(run: Path) -> None:
    """Gives every trial logits that know something, and losses below chance: of tiny models' own little can be said."""
    with closing(sqlite3.connect(run / "ledger.sqlite")) as db, db:
        named = dict(db.execute("SELECT id, name FROM trials"))
        db.execute("DELETE FROM meta WHERE key = 'seal'")
        db.execute("DELETE FROM artifacts WHERE kind = 'predictions'")
        db.execute("UPDATE metrics SET value = value / 3 WHERE name IN ('loss', 'log_loss')")
        db.execute("UPDATE steps SET loss = loss / 3")
    for number, path in enumerate(sorted(run.glob("trials/*/predictions.parquet"))):
        table = pyarrow.parquet.read_table(path)
        columns = [name for name in table.column_names if name.startswith("logit_")]
        several = "label_0" in table.column_names
        labels = [f"label_{place}" for place in range(len(columns))] if several else ["label"]
        truth = np.stack([table[name].to_numpy() for name in labels], axis=1)
        truth = truth if several else truth == np.arange(len(columns))
        rng = np.random.default_rng(number)
        knows = rng.random(truth.shape if several else (len(truth), 1)) < QUALITY.get(named[path.parent.name], 0.0)
        logits = rng.normal(0.0, 1.0, truth.shape) + knows * (truth * 5.0 - 2.5)
        for name, values in zip(columns, logits.T, strict=True):
            place = table.column_names.index(name)
            table = table.set_column(place, name, pyarrow.array(values, pyarrow.float32()))
        pyarrow.parquet.write_table(table, path)


def wrong_in_comparison(folder: Path) -> str:
    path = folder / "report" / "comparison.json"
    said = json.loads(path.read_text())
    said["rows"][0]["interval"][1] += 1e-5
    path.write_text(json.dumps(said))
    return f"comparison.json: row {said['rows'][0]['name']!r}, high"


def wrong_on_the_page(folder: Path) -> str:
    """A mean in the table of configurations is written 0.001 higher than it is."""
    return changed(folder / "report" / "index.html", '<table class="overview', "page: configurations")


def wrong_in_a_figure(folder: Path) -> str:
    return changed(folder / "report" / "index.html", 'aria-label="Numbers: F1 by label', "page: numbers of lab")


def wrong_in_the_answer(folder: Path) -> str:
    return changed(folder / "report" / "index.html", '<div class="answer">', "page: answer")


def changed(path: Path, after: str, where: str) -> str:
    """Changes the third digit of the first score that stands after a string, and returns `where`."""
    text = path.read_text(encoding="utf-8")
    found = re.compile(r">?\b0\.\d{3}").search(text, text.index(after))
    assert found
    place = found.end() - 1
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :], encoding="utf-8")
    return where


def wrong_prediction(folder: Path) -> str:
    """The logits of one text of the test split are turned round in one trial."""
    said = json.loads((folder / "report" / "comparison.json").read_text())
    name = said["rows"][0]["name"]
    path = next(path for path in sorted(folder.glob("trials/*/predictions.parquet")) if is_of(folder, path, name))
    table = pyarrow.parquet.read_table(path)
    place = table["split"].to_pylist().index("test")
    logits = [one for one in table.column_names if one.startswith("logit_")]
    for column in logits:
        values = table[column].to_pylist()
        values[place] = -values[place]
        number = table.column_names.index(column)
        table = table.set_column(number, column, pyarrow.array(values, pyarrow.float32()))
    pyarrow.parquet.write_table(table, path)
    return f"comparison.json: row {name!r}, "


def is_of(folder: Path, path: Path, name: str) -> bool:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        found = db.execute("SELECT name, train_share FROM trials WHERE id = ?", (path.parent.name,)).fetchone()
    return bool(found == (name, 1))


def test_nothing_of_the_package_is_imported() -> None:
    folder = Path(__file__).resolve().parents[1]
    files = [folder / "recompute.py", *(folder / "recomputed").glob("*.py")]
    assert len(files) > 5
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = name.split(".")[0]
                assert top in ALLOWED | set(sys.stdlib_module_names), f"{path.name} imports {name}"
                assert top != "tests" or name.startswith("tests.recomputed"), f"{path.name} imports {name}"


@pytest.mark.parametrize(
    ("text", "value", "slack"),
    [
        ("0.812", 0.812, 0.0005), ("−0.003", -0.003, 0.0005), ("73,728", 73_728, 0.5), ("± 0.01", 0.01, 0.005),
        ("1.23 MB", 1.23e6, 5e3), ("12.3 T", 1.23e13, 5e10), ("4.7 %", 0.047, 0.0005), ("2 min 5 s", 125, 0.5),
        ("1 h 3 min", 3780, 60.5), ("1.2e-05", 1.2e-5, 5e-7), ("3.4 s", 3.4, 0.05), ("22.7M", 22.7e6, 5e4),
    ],
)  # fmt: skip
def test_a_printed_number_is_read_with_what_rounding_hides(text: str, value: float, slack: float) -> None:
    found = read(text)
    assert found is not None
    assert (found.value, found.slack) == (pytest.approx(value), pytest.approx(slack))


def test_numbers_are_found_in_sentences_and_not_in_names() -> None:
    sentence = "lora r=8 has 0.857 at 1.2K; p = 0.031 after 15 comparisons (4.7 %)."
    assert in_words(sentence, ["lora r=8"]) == ["0.857", "1.2K", "0.031", "15", "4.7 %"]


@pytest.mark.parametrize(("text", "value", "right"), [("0.812", 0.81249, True), ("0.812", 0.8126, False),
                                                      ("–", None, True), ("–", 0.5, False), ("0.5", None, False),
                                                      ("< 0.001", 0.0004, True), ("< 0.001", 0.01, False)])  # fmt: skip
def test_a_printed_number_is_right_to_its_digits(text: str, value: float | None, right: bool) -> None:
    checks = Checks()
    checks.printed("somewhere", text, value)
    assert (checks.wrong == []) is right


def test_the_script_needs_a_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["recompute.py"])
    assert main() == 2
    assert "RUN_FOLDER" in capsys.readouterr().out


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("labels", [2, 4])
def test_a_draw_scores_what_its_texts_do_when_each_is_written_as_often(several: bool, labels: int) -> None:
    rng = np.random.default_rng(labels)
    truth = rng.integers(0, 2, (40, labels)) if several else rng.integers(0, labels, 40)
    logits = rng.normal(0.0, 1.5, (40, labels))
    decided = (logits > 0.2).astype(np.int64) if several else logits.argmax(axis=1)
    bases, averages = ("f1", "precision", "recall"), ("macro", "micro", "weighted")
    metrics = [f"{base}_{average}" for base in bases for average in averages]
    metrics += ["matthews", "roc_auc", "log_loss", "ece", "loss", "exact_match" if several else "accuracy"]
    for draw in draws_of(40)[:5]:
        again = np.repeat(np.arange(40), draw.astype(int))
        repeated = Judged(truth[again], logits[again], decided[again], several)
        for metric in metrics + (["f1"] if labels == 2 and not several else []):
            drawn = Judged(truth, logits, decided, several).drawn(metric, draw[None, :])[0]
            assert drawn == pytest.approx(repeated.score(metric), abs=1e-12), metric
