"""`TextClassifier` learns, predicts, and is the same after saving and loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import transformers
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

from fleetune import Full, LoRA, TextClassifier
from fleetune.errors import (
    BackboneError,
    BundleError,
    DataError,
    MethodError,
    RecipeError,
    TrialFailedError,
)
from fleetune.metrics import softmax
from tests.conftest import BAD, GOOD, PLAIN

SETTINGS: dict[str, Any] = {"epochs": 5, "learning_rate": 1e-2, "precision": "fp32", "max_tokens": 32}


def examples(texts: int = 60, seed: int = 0) -> tuple[list[str], list[str]]:
    """Returns texts with telling words, and their labels."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(texts):
        label, words = (("good", GOOD), ("bad", BAD))[number % 2]
        text = " ".join([*rng.choice(PLAIN, 1), *rng.choice(words, 3), *rng.choice(PLAIN, int(rng.integers(0, 3)))])
        pairs.append((text, label))
    return [text for text, _ in pairs], [label for _, label in pairs]


TEXTS, NAMES = examples()
MANY, MANY_NAMES = examples(240)
NEW, NEW_NAMES = examples(24, seed=1)


@pytest.fixture(scope="module")
def fitted(tiny_bert: Path) -> TextClassifier:
    method = LoRA(rank=4, target_modules=["all-linear"])
    return TextClassifier(str(tiny_bert), method, **SETTINGS).fit(MANY, MANY_NAMES)


def test_it_learns(fitted: TextClassifier) -> None:
    assert fitted.classes_.tolist() == ["bad", "good"]
    assert fitted.score(NEW, NEW_NAMES) > 0.9
    probabilities = fitted.predict_proba(NEW)
    assert probabilities.shape == (24, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    np.testing.assert_array_equal(fitted.predict(NEW), fitted.classes_[probabilities.argmax(axis=1)])
    assert len(fitted.history_) == 5
    assert fitted.history_[0].keys() >= {"step", "epoch", "f1_macro", "accuracy"}


def test_order_and_company_of_texts_do_not_matter(fitted: TextClassifier) -> None:
    together = fitted.predict_proba(NEW)
    alone = np.concatenate([fitted.predict_proba([text]) for text in reversed(NEW)])[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("merge", [False, True])
def test_it_is_the_same_after_saving_and_loading(fitted: TextClassifier, tmp_path: Path, merge: bool) -> None:
    assert fitted.save(tmp_path / "b", merge=merge) < 1e-5
    loaded = TextClassifier.load(tmp_path / "b", precision="fp32")
    np.testing.assert_allclose(loaded.predict_proba(NEW), fitted.predict_proba(NEW), atol=1e-5 if merge else 0)
    assert loaded.temperature_ == fitted.temperature_ != 1.0
    assert loaded.classes_.tolist() == fitted.classes_.tolist()
    assert loaded.history_ == json.loads(json.dumps(fitted.history_))
    assert loaded.get_params()["learning_rate"] == SETTINGS["learning_rate"]
    assert isinstance(loaded.method, LoRA)
    assert loaded.method.settings == fitted.method_.settings
    assert loaded.save(tmp_path / "again") < 1e-5
    again = TextClassifier.load(tmp_path / "again", precision="fp32")
    np.testing.assert_allclose(again.predict_proba(NEW), fitted.predict_proba(NEW), atol=1e-5)


def test_a_merged_bundle_needs_neither_backbone_nor_fleetune(fitted: TextClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "b", merge=True)
    pipeline = transformers.pipeline("text-classification", str(tmp_path / "b"), truncation=True)
    answers = pipeline(NEW)
    assert [answer["label"] for answer in answers] == fitted.predict(NEW).tolist()
    # A pipeline knows no temperature.
    expected = softmax(fitted.decision_function(NEW)).max(axis=1)
    np.testing.assert_allclose([a["score"] for a in answers], expected, atol=1e-5)


def test_the_bundles_tokenizer_is_the_one_of_training(fitted: TextClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "b")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    assert tokenizer(NEW)["input_ids"] == fitted.tokenizer_(NEW)["input_ids"]
    (tmp_path / "b" / "tokenizer.json").write_text(
        (tmp_path / "b" / "tokenizer.json").read_text().replace("good", "goad")
    )
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        TextClassifier.load(tmp_path / "b")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "2"], ["10", "2"]),
        ([10, 2], [2, 10]),
        (np.array([1, 0]), [0, 1]),
        ([1.5, -2.0], [-2.0, 1.5]),
        ([True, False], [False, True]),
        (pd.Series(["b", "a"]), ["a", "b"]),
    ],
    ids=["str", "int", "numpy", "float", "bool", "pandas"],
)
def test_labels_keep_their_type_and_order(tiny_bert: Path, tmp_path: Path, labels: Any, classes: list[Any]) -> None:
    first, second = list(labels)
    y = [first if name == "good" else second for name in NAMES]
    classifier = TextClassifier(str(tiny_bert), "head", **{**SETTINGS, "epochs": 0.5}).fit(TEXTS, y)
    assert classifier.classes_.tolist() == classes
    classifier.save(tmp_path / "b")
    loaded = TextClassifier.load(tmp_path / "b", precision="fp32")
    assert loaded.classes_.tolist() == classes
    assert loaded.classes_.dtype == classifier.classes_.dtype
    np.testing.assert_array_equal(loaded.predict(NEW), classifier.predict(NEW))


def test_several_labels_a_text(tiny_bert: Path, tmp_path: Path) -> None:
    wanted = [{name, "film"} if "film" in text else {name} for text, name in zip(TEXTS, NAMES, strict=True)]
    wanted[0] = set()
    fields = {**SETTINGS, "epochs": 20, "learning_rate": 3e-3, "validation": 0.0}
    lists = TextClassifier(str(tiny_bert), Full(), **fields).fit(TEXTS, [sorted(labels) for labels in wanted])
    assert lists.multi_label
    assert lists.classes_.tolist() == ["bad", "film", "good"]
    predicted = lists.predict(TEXTS)
    assert np.mean([set(labels) == right for labels, right in zip(predicted, wanted, strict=True)]) > 0.8
    assert lists.score(TEXTS, wanted) > 0.8

    matrix = np.array([[label in labels for label in lists.classes_] for labels in wanted], dtype=int)
    frame = pd.DataFrame(matrix, columns=lists.classes_)
    indicator = TextClassifier(str(tiny_bert), Full(), **fields).fit(TEXTS, frame)
    np.testing.assert_array_equal(indicator.predict_proba(TEXTS), lists.predict_proba(TEXTS))
    np.testing.assert_array_equal(indicator.predict(TEXTS), lists.predict_proba(TEXTS) >= 0.5)
    assert indicator.score(TEXTS, matrix) == pytest.approx(lists.score(TEXTS, wanted))
    for number, classifier in enumerate((lists, indicator)):
        classifier.thresholds_ = np.array([0.5, 0.0, 0.5])
        classifier.save(tmp_path / str(number))
        loaded = TextClassifier.load(tmp_path / str(number), precision="fp32")
        np.testing.assert_array_equal(loaded.thresholds_, [0.5, 0.0, 0.5])
        assert loaded.classes_.tolist() == classifier.classes_.tolist()
        assert (
            np.array_equal(loaded.predict(TEXTS[:5]), classifier.predict(TEXTS[:5]))
            if number
            else (loaded.predict(TEXTS[:5]) == classifier.predict(TEXTS[:5]))
        )
        assert (
            all("film" in labels for labels in loaded.predict(TEXTS))
            if number == 0
            else loaded.predict(TEXTS)[:, 1].all()
        )


def test_pairs_of_texts(tiny_bert: Path, tmp_path: Path) -> None:
    pairs = [(text, PLAIN[number % 15]) for number, text in enumerate(TEXTS)]
    settings = {**SETTINGS, "epochs": 1}
    classifier = TextClassifier(str(tiny_bert), **settings).fit(pairs, NAMES)
    expected = classifier.predict_proba(pairs)
    for form in (np.array(pairs), pd.DataFrame(pairs), [list(pair) for pair in pairs]):
        np.testing.assert_array_equal(classifier.predict_proba(form), expected)
    assert np.abs(classifier.predict_proba([(b, a) for a, b in pairs]) - expected).max() > 1e-4
    classifier.save(tmp_path / "b")
    loaded = TextClassifier.load(tmp_path / "b", precision="fp32")
    np.testing.assert_array_equal(loaded.predict_proba(pairs), expected)
    with pytest.raises(DataError, match="trained on pairs"):
        loaded.predict(TEXTS)
    loaded.save(tmp_path / "again")


def test_it_is_a_scikit_learn_estimator(tiny_bert: Path) -> None:
    classifier = TextClassifier(str(tiny_bert), LoRA(rank=2), **SETTINGS)
    copied = clone(classifier)
    assert isinstance(copied.method, LoRA)
    assert copied.method.settings == LoRA(rank=2).settings
    assert {**copied.get_params(), "method": None} == {**classifier.get_params(), "method": None}
    assert copied.set_params(epochs=1, method="bitfit").epochs == 1
    grid = {"method": ["head", Full()]}
    search = GridSearchCV(clone(classifier).set_params(epochs=4), grid, cv=2, error_score="raise").fit(TEXTS, NAMES)
    assert search.best_params_["method"].kind == "full"
    assert search.predict(NEW).shape == (24,)


def test_forms_of_texts_are_all_one(fitted: TextClassifier) -> None:
    expected = fitted.predict_proba(NEW)
    for form in (tuple(NEW), np.array(NEW), np.array(NEW, dtype=object), pd.Series(NEW, index=range(50, 74))):
        np.testing.assert_array_equal(fitted.predict_proba(form), expected)
    assert fitted.predict_proba([]).shape == (0, 2)
    assert fitted.predict([]).shape == (0,)


@pytest.mark.parametrize(
    ("texts", "labels", "said"),
    [
        ([], [], "there are no texts"),
        (TEXTS, NAMES[:-1], "60 texts and 59 labels"),
        (TEXTS, ["good"] * 60, "one class only"),
        ("a text", ["good"], "a list of strings"),
        ([*TEXTS[:-1], None], NAMES, "text 59 is None"),
        ([*TEXTS[:-1], 3], NAMES, "text 59 is 3"),
        ([*TEXTS[:-1], float("nan")], NAMES, "text 59 is nan"),
        ([("a", "b"), ("a",)], ["x", "y"], "a pair of strings"),
        ([("a", "b", "c"), ("a", "b", "c")], ["x", "y"], "a pair of strings"),
        (TEXTS, [*NAMES[:-1], None], "none missing"),
        (TEXTS, [*NAMES[:-1], 1], "all strings or all numbers"),
        (TEXTS, [1.0] * 59 + [float("nan")], "none missing"),
        (TEXTS, [["good"]] * 59 + ["bad"], "some a single label"),
        (TEXTS, np.full((60, 2), 2), "0 or 1"),
        (TEXTS, [[]] * 60, "no text has a label"),
    ],
)
def test_wrong_input_is_named(tiny_bert: Path, texts: Any, labels: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        TextClassifier(str(tiny_bert), **SETTINGS).fit(texts, labels)


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"epochs": 0}, RecipeError, "epochs"),
        ({"validation": 1.0}, RecipeError, "validation"),
        ({"metric": "f2"}, RecipeError, "metric"),
        ({"metric": "exact_match"}, RecipeError, "accuracy"),
        ({"method": "lorra"}, RecipeError, "lora"),
        ({"method": LoRA(target_modules=["q_proj"])}, MethodError, "q_proj"),
        ({"backbone": "/nowhere"}, BackboneError, "does not exist"),
        ({"learning_rate": 1e30, "validation": 0}, TrialFailedError, "learning_rate"),
    ],
)
def test_wrong_parameters_are_named(tiny_bert: Path, fields: dict[str, Any], error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        TextClassifier(**{"backbone": str(tiny_bert), **SETTINGS, **fields}).fit(TEXTS, NAMES)


def test_texts_longer_than_the_backbone_takes(tiny_bert: Path) -> None:
    with pytest.raises(RecipeError, match="max_tokens=64"):
        TextClassifier(str(tiny_bert), **{**SETTINGS, "max_tokens": 100}).fit(
            [" ".join(TEXTS), *TEXTS], ["good", *NAMES]
        )


def test_not_fitted_is_said(tmp_path: Path) -> None:
    for action in (lambda c: c.predict(["a"]), lambda c: c.save(tmp_path / "b"), lambda c: c.multi_label):
        with pytest.raises(NotFittedError):
            action(TextClassifier())


def test_the_embedded_backbone_learns_in_seconds(tmp_path: Path) -> None:
    topics = {
        "cooking": ["boil the potatoes in salted water", "bake the bread until brown", "stir the soup and add pepper"],
        "football": ["the striker scored a late goal", "the referee showed a red card", "they won the cup final"],
    }
    extra = [
        "today",
        "again",
        "slowly",
        "as always",
        "for once",
        "they said",
        "of course",
        "in the end",
        "at noon",
        "now",
    ]
    texts = [f"{text} {word}" for part in topics.values() for text in part for word in extra]
    labels = [topic for topic, part in topics.items() for _ in part for _ in extra]
    classifier = TextClassifier(epochs=2, learning_rate=2e-3, max_tokens=32, validation=0.0).fit(texts, labels)
    new = ["fry the onions in butter", "the goalkeeper saved the penalty"]
    assert classifier.predict(new).tolist() == ["cooking", "football"]
    classifier.save(tmp_path / "b")
    loaded = TextClassifier.load(tmp_path / "b")
    np.testing.assert_array_equal(loaded.predict_proba(new), classifier.predict_proba(new))
    assert (
        json.loads((tmp_path / "b" / "adapter_config.json").read_text())["base_model_name_or_path"] == "embedded:minilm"
    )
