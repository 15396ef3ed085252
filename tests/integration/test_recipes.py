"""Every recipe in recipes/, rehearsed with tiny models of the same architecture and local data of the same shape."""

from __future__ import annotations

import csv
import json
import random
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import tomli_w

from fleetune.compare.summary import Comparison, compare
from fleetune.engine.shape import shape_from_config
from fleetune.lab.predictions import read_predictions
from fleetune.lab.recipe import Recipe, load_recipe
from fleetune.lab.results import RunResults, load_results
from fleetune.lab.runner import run
from tests.conftest import BAD, GOOD, PLAIN

RECIPES = Path(__file__).parents[2] / "recipes"
EMOTIONS = ["anger", "anticipation", "disgust", "fear", "joy", "love", "optimism", "pessimism", "sadness", "surprise",
            "trust"]  # fmt: skip
TINY = {
    "distilbert/distilbert-base-cased": "distilbert",
    "distilbert/distilbert-base-uncased": "distilbert",
    "google-bert/bert-base-uncased": "bert",
    "google/gemma-1.1-2b-it": "gemma",
    "Alibaba-NLP/gte-Qwen1.5-7B-instruct": "qwen2",
}
BERT = {"model_type": "bert"}
DISTILBERT = {"model_type": "distilbert", "vocab_size": 28996}
GEMMA = {
    "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8,
    "num_hidden_layers": 18, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256000,
}  # fmt: skip
QWEN = {
    "model_type": "qwen2", "hidden_size": 4096, "intermediate_size": 13440, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32, "vocab_size": 151646,
}  # fmt: skip


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """Returns texts whose label can be seen in their words, none of them twice."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        label = number % 2
        words = [*rng.choices(PLAIN, k=6), *rng.choices([BAD, GOOD][label], k=3)]
        rng.shuffle(words)
        found.append((" ".join(words), label))
    return found


def split_of(columns: Callable[[str, int], dict[str, Any]], count: int, seed: int, labelled: bool = True) -> Any:
    rows = [columns(text, label if labelled else -1) for text, label in sentences(count, seed)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def hub_data(name: str) -> datasets.DatasetDict:
    """Returns a data set with the columns, types and splits of the one of the hub called so."""
    if name == "stanfordnlp/imdb":
        features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
        sizes = {"train": (400, True), "test": (400, True), "unsupervised": (20, False)}
        return _made(features, sizes, lambda text, label: {"text": text, "label": label})
    if name.startswith("SemEvalWorkshop"):
        columns = {"ID": datasets.Value("string"), "Tweet": datasets.Value("string")}
        features = columns | {emotion: datasets.Value("bool") for emotion in EMOTIONS}
        sizes = {"train": (90, True), "validation": (44, True), "test": (44, True)}
        return _made(features, sizes, _emotions)
    label = datasets.ClassLabel(names=["negative", "positive"])
    if name.endswith("mrpc"):
        features = {column: datasets.Value("string") for column in ("sentence1", "sentence2")} | {"label": label}
        sizes = {"train": (60, True), "validation": (30, True), "test": (30, True)}
        return _made(features | {"idx": datasets.Value("int32")}, sizes, _halves)
    features = {"sentence": datasets.Value("string"), "label": label, "idx": datasets.Value("int32")}
    sizes = {"train": (60, True), "validation": (30, True), "test": (20, False)}
    return _made(features, sizes, lambda text, own: {"sentence": text, "label": own, "idx": 0})


def _halves(text: str, label: int) -> dict[str, Any]:
    middle = len(text) // 2
    return {"sentence1": text[:middle], "sentence2": text[middle:], "label": label, "idx": 0}


def _emotions(text: str, label: int) -> dict[str, Any]:
    chosen = {emotion: (hash_of(text) >> place & 3) == 0 for place, emotion in enumerate(EMOTIONS)}
    return {"ID": "x", "Tweet": text, **chosen, "joy": bool(label)}


def hash_of(text: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(text[:12]))


def _made(features: Any, sizes: dict[str, tuple[int, bool]], columns: Any) -> datasets.DatasetDict:
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                split_of(columns, count, seed, labelled), features=datasets.Features(features)
            )
            for seed, (split, (count, labelled)) in enumerate(sizes.items())
        }
    )


def dirty_csv(path: Path) -> None:
    """Writes the IMDB file's columns with lines that no reader can use."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "sentiment"])
        for number, (text, label) in enumerate(sentences(700, 5)):
            writer.writerow([f"{text} <br /><br /> {number}", ["negative", "positive"][label]])
            if number % 100 == 50:
                writer.writerow([text, "positive", "a third field"])
                writer.writerow(["", "negative"])


@pytest.fixture
def rehearse(
    tmp_path: Path, tiny_backbones: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Recipe, RunResults]]:
    """Returns what runs a recipe over tiny models and local data; all else stays as the recipe has it."""

    def rehearsed(name: str, **training: Any) -> tuple[Recipe, RunResults]:
        monkeypatch.setenv("WANDB_MODE", "offline")
        document = tomllib.loads((RECIPES / name).read_text("utf-8"))
        for key, own in (("data", _local_data), ("backbone", lambda table, _: _tiny_model(table, tiny_backbones))):
            tables = document[key] if isinstance(document[key], list) else [document[key]]
            document[key] = [own(table, tmp_path) for table in tables]
        document["training"] |= training
        path = tmp_path / name
        path.write_text(tomli_w.dumps(document), "utf-8")
        recipe = load_recipe(path)
        summary = run(recipe, tmp_path / "run")
        results = load_results(tmp_path / "run")
        assert summary.failed == 0, [trial.reason for trial in results.trials]
        assert summary.done == len(results.trials)
        return recipe, results

    return rehearsed


def _local_data(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    if "hf" not in table:
        dirty_csv(folder / table["path"])
        return table
    place = folder / str(table["hf"]).replace("/", "-")
    if not place.exists():
        hub_data(table["hf"]).save_to_disk(str(place))
    kept = {key: value for key, value in table.items() if key not in ("hf", "revision")}
    return {**kept, "path": str(place)}


def _tiny_model(table: dict[str, Any], tiny_backbones: Callable[[str], Path]) -> dict[str, Any]:
    return {**table, "model": str(tiny_backbones(TINY[table["model"]]))}


def names(results: RunResults) -> Counter[str]:
    return Counter(trial.method for trial in results.trials)


def compared(results: RunResults) -> Comparison:
    return compare(results.trials)


def test_every_recipe_is_rehearsed_here() -> None:
    rehearsed = {"imdb-distilbert.toml", "imdb-distilbert-honest.toml", "glue-bert.toml", "imdb-csv-distilbert.toml",
                 "emotions-gemma-qwen.toml", "glue-bert-query-lora.toml"}  # fmt: skip
    # Those over a backbone that comes as a package are run as they are, and documented.
    embedded = {path.name for path in RECIPES.glob("*.toml") if "embedded:" in path.read_text("utf-8")}
    assert {path.name for path in RECIPES.glob("*.toml")} == rehearsed | embedded


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_is_valid(path: Path) -> None:
    assert load_recipe(path).methods


def test_imdb_distilbert(rehearse: Callable[..., tuple[Recipe, RunResults]]) -> None:
    _, results = rehearse("imdb-distilbert.toml")
    assert sorted(names(results).values()) == [1, 1, 1, 1]
    (audit,) = results.audits
    assert (audit["train"], audit["validation"]) == (128, 32)
    for trial in results.trials:
        assert len(trial.history) == 10
        assert trial.history[-1]["step"] == 80
        assert len(trial.predictions["validation"][0]) == 32


def test_imdb_distilbert_honest(rehearse: Callable[..., tuple[Recipe, RunResults]]) -> None:
    _, results = rehearse("imdb-distilbert-honest.toml", epochs=1, seeds=2)
    assert len({trial.configuration for trial in results.trials}) == 1 + 4
    assert "tf-idf" in {row.name for row in compared(results).rows}


def test_glue_bert(rehearse: Callable[..., tuple[Recipe, RunResults]], tmp_path: Path) -> None:
    _, results = rehearse("glue-bert.toml", epochs=1)
    by_data = Counter(trial.data for trial in results.trials)
    assert by_data == {"sst2": 6, "cola": 6, "mrpc": 6}
    assert {(trial.data, trial.metric) for trial in results.trials} == {
        ("sst2", "accuracy"),
        ("cola", "matthews"),
        ("mrpc", "f1"),
    }
    rates = {(trial.data, trial.kind, trial.training["learning_rate"]) for trial in results.trials}
    assert {rate for rate in rates if rate[1] == "lora"} == {("sst2", "lora", 5e-4), ("mrpc", "lora", 5e-4),
                                                             ("cola", "lora", 1e-3)}  # fmt: skip
    assert {rate for data, kind, rate in rates if (data, kind) == ("cola", "bitfit")} == {1e-3, 1e-5}
    for trial in results.trials:
        # SST-2's and CoLA's test labels are not published: predicted, never scored.
        predicted = read_predictions(tmp_path / "run" / "trials" / trial.id / "predictions.parquet")
        assert len(predicted["test"][1]) == (30 if trial.data == "mrpc" else 20)
        assert ("test" in trial.predictions) == (trial.data == "mrpc")
    page = json.dumps(compared(results).to_json())
    assert "NaN" not in page


def test_imdb_csv(rehearse: Callable[..., tuple[Recipe, RunResults]]) -> None:
    _, results = rehearse("imdb-csv-distilbert.toml")
    assert names(results) == {"lora": 1, "full": 1}
    (audit,) = results.audits
    assert audit["quarantined"] == 14
    assert audit["accepted"] == 700
    assert audit["train"] + audit["validation"] + audit["test"] == 70
    assert audit["labels"] == ["negative", "positive"]
    metrics = results.trials[0].history[-1]["metrics"]
    assert {"accuracy", "precision", "recall"} <= metrics.keys()


def test_emotions(rehearse: Callable[..., tuple[Recipe, RunResults]], tmp_path: Path) -> None:
    _, results = rehearse("emotions-gemma-qwen.toml")
    assert {(trial.method, trial.backbone) for trial in results.trials} == {
        ("lora", "gemma"),
        ("ia3", "gemma"),
        ("qlora", "qwen"),
    }
    for trial in results.trials:
        assert trial.multi_label
        assert trial.label_names == EMOTIONS
        assert {"f1_micro", "f1_macro", "exact_match", "loss"} <= trial.history[-1]["metrics"].keys()
        assert "accuracy" not in trial.history[-1]["metrics"]
        for kept in ("best", "last"):
            assert list((tmp_path / "run" / "trials" / trial.id / kept).glob("*.safetensors"))
    assert list((tmp_path / "run").rglob("*.wandb"))


def test_glue_query_lora(rehearse: Callable[..., tuple[Recipe, RunResults]]) -> None:
    _, results = rehearse("glue-bert-query-lora.toml", epochs=1)
    assert Counter(trial.data for trial in results.trials) == {"mrpc": 4, "sst2": 4}
    assert {trial.settings["rank"] for trial in results.trials if trial.kind == "lora"} == {1, 4, 16}


GOLDEN: list[tuple[str, dict[str, Any], int, dict[str, set[int]]]] = [
    (
        "imdb-distilbert.toml",
        DISTILBERT,
        2,
        {"lora": {2_359_296, 2_359_296 + 6 * 2 * 64 * (768 + 3072), 1_179_648}, "ia3": {41_472}},
    ),
    (
        "glue-bert.toml",
        BERT,
        2,
        {"lora": {294_912, 589_824, 1_179_648}, "bitfit": {102_912}, "full": {109_482_240}},
    ),
    ("glue-bert-query-lora.toml", BERT, 2, {"lora": {18_432, 73_728, 294_912}, "bitfit": {102_912}}),
    ("imdb-csv-distilbert.toml", DISTILBERT, 2, {"lora": {147_456}, "full": {65_190_912}}),
    ("emotions-gemma-qwen.toml", GEMMA, 11, {"lora": {18 * 8 * 12_800}, "ia3": {18 * (2048 + 256 + 256 + 2048)}}),
    ("emotions-gemma-qwen.toml", QWEN, 11, {"lora": {32 * 8 * 4 * 8_192}}),
]
"""Trained parameters without the head, by the recipe's method, over the model's published configuration."""


@pytest.mark.parametrize(("name", "config", "labels", "expected"), GOLDEN)
def test_golden_counts(
    tmp_path: Path, name: str, config: dict[str, Any], labels: int, expected: dict[str, set[int]]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = shape_from_config(tmp_path, labels)
    counts: dict[str, set[int]] = {}
    for entry in load_recipe(RECIPES / name).methods:
        if entry.kind in expected:
            for configuration in entry.configurations:
                counts.setdefault(entry.kind, set()).add(configuration.method.expected_parameters(shape))
    assert counts == expected
