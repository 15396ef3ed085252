"""Baselines: what they compute, how recipes take them, and what comparisons make of them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from fleetune.compare.result import TrialResult
from fleetune.compare.summary import Comparison, compare
from fleetune.data.arrays import GivenTexts
from fleetune.errors import MethodError, RecipeError
from fleetune.lab.plan import Plan, plan
from fleetune.lab.recipe import load_recipe, recipe_from, resolved
from fleetune.methods import all_baselines, all_methods, get
from fleetune.methods.baseline import Task
from fleetune.methods.tfidf import STRENGTHS, TfIdf
from fleetune.methods.zero_shot import ZeroShot
from fleetune.metrics import evaluate, sigmoid, softmax
from tests.unit.synthetic_runs import trial
from tests.unit.test_compare import NAMES, with_accuracy

WORDS = [
    "good",
    "great",
    "fine",
    "bad",
    "awful",
    "poor",
    "the",
    "a",
    "film",
    "book",
    "meal",
    "was",
    "is",
    "and",
    "very",
]
TOKEN = r"(?u)\w+|[^\w\s]"


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(4, 10))) + "!" * int(rng.integers(0, 2)) for _ in range(count)]


def classes_of(given: list[str]) -> np.ndarray:
    return np.array([0 if "good" in text else 1 if "bad" in text else 2 for text in given])


def sets_of(given: list[str]) -> np.ndarray:
    return np.array([[word in text for word in ("good", "film", "very")] for text in given]).astype(np.uint8)


def task(labels: np.ndarray, first: list[str], second: list[str] | None = None, **changes: Any) -> Task:
    return Task(["x", "y", "z"], GivenTexts(first, second), labels, **changes)


def by_hand(train: list[str], test: list[str]) -> tuple[Any, Any]:
    kinds = [
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=TOKEN),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), min_df=2, sublinear_tf=True),
    ]
    return hstack([kind.fit_transform(train) for kind in kinds]), hstack([kind.transform(test) for kind in kinds])


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_tfidf_gives_scikit_learns_probabilities(weights: str):
    train, test = texts(80), texts(30, seed=1)
    labels = classes_of(train)
    fitted = TfIdf(C=2.0).fit(task(labels, train, class_weights=weights))
    features, held_out = by_hand(train, test)
    model = LogisticRegression(C=2.0, max_iter=1000, class_weight=None if weights == "none" else weights)
    model.fit(features, labels)
    logits = fitted.logits(GivenTexts(test, None))
    np.testing.assert_allclose(softmax(logits), model.predict_proba(held_out), atol=1e-3)
    assert fitted.parameters == model.coef_.size + model.intercept_.size


def test_tfidf_fits_each_of_several_labels_by_itself():
    train, test = texts(80), texts(30, seed=1)
    labels = sets_of(train)
    logits = TfIdf(C=2.0).fit(task(labels, train)).logits(GivenTexts(test, None))
    features, held_out = by_hand(train, test)
    for place in range(3):
        model = LogisticRegression(C=2.0, max_iter=1000).fit(features, labels[:, place])
        np.testing.assert_allclose(sigmoid(logits[:, place]), model.predict_proba(held_out)[:, 1], atol=1e-3)


def test_balanced_positives_count_by_their_odds_as_in_training():
    train, labels = texts(80), sets_of(texts(80))
    logits = TfIdf(C=2.0).fit(task(labels, train, class_weights="balanced")).logits(GivenTexts(train, None))
    weights = np.where(labels[:, 1] == 1, (labels[:, 1] == 0).sum() / (labels[:, 1] == 1).sum(), 1.0)
    model = LogisticRegression(C=2.0, max_iter=1000)
    features, _ = by_hand(train, train)
    model.fit(features, labels[:, 1], sample_weight=weights)
    np.testing.assert_allclose(sigmoid(logits[:, 1]), model.predict_proba(features)[:, 1], atol=1e-3)


def test_tfidf_sees_whether_the_texts_of_a_pair_agree():
    first, second = texts(400), texts(400, seed=1)
    second = [a if row % 2 else b for row, (a, b) in enumerate(zip(first, second, strict=True))]
    labels = np.arange(400) % 2
    fitted = TfIdf().fit(task(labels[:300], first[:300], second[:300]))
    logits = fitted.logits(GivenTexts(first[300:], second[300:]))
    assert evaluate(labels[300:], logits)["accuracy"] > 0.9


def test_two_classes_have_two_logits():
    train = texts(60)
    labels = (classes_of(train) == 0).astype(np.int64)
    fitted = TfIdf(C=1.0).fit(Task(["no", "yes"], GivenTexts(train, None), labels))
    features, _ = by_hand(train, train)
    model = LogisticRegression(C=1.0, max_iter=1000).fit(features, labels)
    np.testing.assert_allclose(
        softmax(fitted.logits(GivenTexts(train, None))), model.predict_proba(features), atol=1e-3
    )


@pytest.mark.parametrize("kind", ["majority", "tfidf"])
@pytest.mark.parametrize("labels", [np.zeros(40, dtype=np.int64), np.arange(40) % 2 * 2])
def test_labels_that_training_lacks_get_small_probabilities_and_no_infinity(kind: str, labels: np.ndarray):
    logits = get(kind)().fit(task(labels, texts(40))).logits(GivenTexts(texts(10, seed=1), None))  # type: ignore[attr-defined]
    absent = [label for label in range(3) if label not in labels]
    assert np.isfinite(logits).all()
    assert (softmax(logits)[:, absent] > 1e-3).all() and (softmax(logits)[:, absent] < 0.02).all()


def test_a_label_that_every_text_has_is_no_obstacle():
    labels = sets_of(texts(40))
    labels[:, 0], labels[:, 1] = 1, 0
    logits = TfIdf(C=1.0).fit(task(labels, texts(40))).logits(GivenTexts(texts(10), None))
    assert np.isfinite(logits).all() and (logits[:, 0] > 3).all() and (logits[:, 1] < -3).all()


def test_the_strength_is_chosen_within_training_and_is_neither_too_weak_nor_too_strong():
    train, test = texts(300), texts(300, seed=1)
    flip = np.random.default_rng(0).random(300) < 0.3
    labels = np.where(flip, (classes_of(train) + 1) % 3, classes_of(train))
    truth = classes_of(test)

    def loss(**settings: Any) -> float:
        logits = TfIdf(**settings).fit(task(labels, train)).logits(GivenTexts(test, None))
        return evaluate(truth, logits)["log_loss"]

    by_strength = [loss(C=strength) for strength in (STRENGTHS[0], STRENGTHS[-1])]
    assert loss() < min(by_strength) - 0.02


def test_tfidf_says_what_to_do_where_nothing_occurs_twice():
    with pytest.raises(MethodError, match="set min_df = 1"):
        TfIdf().fit(task(np.array([0, 1]), ["one", "another"]))


def test_tfidf_is_the_same_each_time():
    train = texts(100)
    first, second = (TfIdf().fit(task(classes_of(train), train)).logits(GivenTexts(train, None)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_majoritys_probabilities_are_the_frequencies():
    labels = np.array([0, 1, 1, 1, 2, 2, 1, 0])
    logits = get("majority")().fit(task(labels, texts(8))).logits(GivenTexts(texts(4), None))  # type: ignore[attr-defined]
    np.testing.assert_allclose(softmax(logits), np.tile([0.25, 0.5, 0.25], (4, 1)))
    several = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 0], [1, 0, 1]], dtype=np.uint8)
    logits = get("majority")().fit(task(several, texts(4))).logits(GivenTexts(texts(2), None))  # type: ignore[attr-defined]
    np.testing.assert_allclose(sigmoid(logits), np.tile([0.75, 0.125, 0.5], (2, 1)))


class FakeModel:
    """Holds every continuation the likelier the longer it is, whatever was asked, and a little by the text's length."""

    generates, encodes_sentences = True, False

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def cut(self, texts: GivenTexts) -> GivenTexts:
        return texts

    def vectors(self, texts: GivenTexts) -> np.ndarray:
        return np.array([[1.0, 0.0] if "good" in text else [0.6, 0.8] for text in texts.first], dtype=np.float32)

    def log_likelihoods(self, prompts: Any, continuations: Any, chat: bool = False) -> tuple[np.ndarray, np.ndarray]:
        self.prompts += prompts
        liking = np.array([float(len(word)) for word in continuations])
        tokens = np.array([len(word.split()) for word in continuations])
        text = np.array([0.1 * ("good" in prompt) for prompt in prompts])
        return liking + text[:, None] * np.arange(len(continuations)), np.tile(tokens, (len(prompts), 1))


def test_calibration_takes_off_what_the_model_prefers_anyway():
    labels = np.zeros(2, dtype=np.int64)
    given = GivenTexts(["good film", "bad film"], None)
    raw = ZeroShot(calibrate=False).fit(task(labels, ["a", "b"], model=FakeModel())).logits(given)
    calibrated = ZeroShot().fit(task(labels, ["a", "b"], model=FakeModel())).logits(given)
    # Adding one number to all logits of a text changes no probability.
    np.testing.assert_allclose(softmax(calibrated)[1], np.full(3, 1 / 3))
    np.testing.assert_allclose(softmax(calibrated)[0], softmax(np.array([0.0, 0.1, 0.2])[None])[0])
    np.testing.assert_allclose(raw[1], [2.0, 2.0, 2.0], err_msg="a blank and a name of one letter")


def test_each_label_is_asked_for_by_yes_and_no_where_there_may_be_several():
    model = FakeModel()
    method = ZeroShot(label_texts={"x": "joy", "y": "anger", "z": "a_b"}, calibrate=False)
    logits = method.fit(task(np.zeros((2, 3), np.uint8), ["a", "b"], model=model)).logits(
        GivenTexts(["t1", "t2"], None)
    )
    np.testing.assert_allclose(logits, np.full((2, 3), 1.0))
    assert [prompt.split("\n")[0] for prompt in model.prompts] == ["t1"] * 3 + ["t2"] * 3
    assert ['"joy"' in prompt for prompt in model.prompts] == [True, False, False] * 2


def test_length_normalisation_divides_by_tokens():
    method = ZeroShot(label_texts=["a b", "c", "d e f"], calibrate=False, length_normalisation=True)
    logits = method.fit(task(np.zeros(1, np.int64), ["a"], model=FakeModel())).logits(GivenTexts(["x"], None))
    np.testing.assert_allclose(logits, [[4 / 2, 2 / 1, 6 / 3]])


def test_cosines_are_scaled_and_calibrated():
    method = ZeroShot(score="cosine", label_texts=["good", "bad", "poor"], calibrate=False)
    logits = method.fit(task(np.zeros(1, np.int64), ["a"], model=FakeModel())).logits(GivenTexts(["good", "bad"], None))
    np.testing.assert_allclose(logits, [[20, 12, 12], [12, 20, 20]], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "multi_label", "pairs", "message"),
    [
        ({"label_texts": ["a", "b"]}, False, False, "2 texts for 3 labels: x, y, z"),
        ({"label_texts": {"x": "a", "y": "b"}}, False, False, "lacks 'z'"),
        ({"label_texts": {"x": "a", "y": "b", "z": "c", "w": "d"}}, False, False, "'w' in label_texts is no label"),
        ({"prompt": "is it {labels}?"}, False, False, r"lacks \{text\}"),
        ({"prompt": "{text}?"}, False, True, r"lacks \{text_a\}"),
        ({"prompt": "{text}?"}, True, False, r"lacks \{label\}"),
        ({"prompt": "{text} is {label}?"}, False, False, r"has \{label\}"),
    ],
)
def test_prompts_and_label_texts_must_fit_the_labels(settings: Any, multi_label: bool, pairs: bool, message: str):
    with pytest.raises(MethodError, match=message):
        ZeroShot(**settings).check_labels(["x", "y", "z"], multi_label, pairs)


def document(*methods: dict[str, Any], **tables: Any) -> dict[str, Any]:
    training = {"learning_rate": [1e-4, 1e-3], "seeds": 5, "class_weights": "balanced"}
    return {
        "data": {"path": "x.csv"},
        "backbone": {"model": "m"},
        "training": training,
        "method": list(methods),
    } | tables


def planned(content: dict[str, Any]) -> Plan:
    return plan(recipe_from(content, Path(), "recipe.toml"), lambda trials: True)


JUDGED = {"metric": "f1_macro", "thresholds": "tuned"}


def test_a_baseline_is_one_trial_whatever_the_training():
    made = planned(document({"kind": "lora"}, {"kind": "majority"}, {"kind": "tfidf", "C": [0.1, 1.0]}))
    assert [one.label for one in made.trials[10:]] == ["majority seed 0", "tfidf C=0.1 seed 0", "tfidf C=1 seed 0"]
    assert [one.training_settings for one in made.trials[10:]] == [
        JUDGED, *[{"class_weights": "balanced", **JUDGED}] * 2
    ]  # fmt: skip
    assert [len(fleet.trials) for fleet in made.fleets] == [10, 1, 1, 1]
    other = planned(document({"kind": "majority"}, training={"epochs": 9, "seeds": [3]}))
    assert other.trials[0].id == made.trials[10].id


def test_what_reads_no_model_is_there_once_for_all_backbones():
    backbones = [{"model": "m", "name": "a"}, {"model": "n", "name": "b"}]
    made = planned(document({"kind": "tfidf"}, {"kind": "zero_shot"}, backbone=backbones))
    assert [(one.name, one.backbone.name) for one in made.trials] == [
        ("tfidf", "a"), ("zero_shot", "a"), ("zero_shot", "b")
    ]  # fmt: skip
    assert made.trials[0].id == planned(document({"kind": "tfidf"}, backbone=backbones[1])).trials[0].id
    firsts = [trial(kind, 0, NAMES, backbone=base) for kind, base in (("lora", "a"), ("lora", "b"))]
    firsts.append(replace(baseline("tfidf", 0.5), backbone="a"))
    assert [row.name for row in compare(firsts).rows] == ["lora · a", "lora · b", "tfidf"]


@pytest.mark.parametrize("key", ["learning_rate", "seeds", "epochs"])
def test_a_baselines_own_table_takes_no_training_settings(key: str):
    with pytest.raises(RecipeError, match=rf"\(majority\)\.{key}: a baseline"):
        planned(document({"kind": "majority", key: 1}))


def test_an_unknown_setting_and_placeholder_are_named():
    with pytest.raises(RecipeError, match=r"\(tfidf\)\.ngram is not a known key; did you mean 'ngrams'"):
        planned(document({"kind": "tfidf", "ngram": [1, 2]}))
    with pytest.raises(RecipeError, match=r"prompt: unknown placeholder \{txt\}"):
        planned(document({"kind": "zero_shot", "prompt": "{txt}?"}))
    with pytest.raises(RecipeError, match=r"characters = \[4, 2\]"):
        planned(document({"kind": "tfidf", "characters": [4, 2]}))


def test_a_frozen_recipe_gives_the_same_baselines(tmp_path: Path):
    import tomli_w

    (tmp_path / "x.csv").write_text("text,label\n")
    settings = {"label_texts": {"a b": "A", "c": "C"}, "prompt": "{text}?"}
    given = document({"kind": "tfidf", "ngrams": [1, 3]}, {"kind": "zero_shot", **settings}, {"kind": "lora"})
    recipe = recipe_from(given, tmp_path, "recipe.toml")
    frozen = tmp_path / "frozen.toml"
    frozen.write_text(tomli_w.dumps(resolved(recipe)))
    ids = [[one.id for one in plan(r, lambda t: True, {"x": "h"}).trials] for r in (recipe, load_recipe(frozen))]
    assert ids[0] == ids[1]


def test_baselines_are_told_from_methods_and_found_by_kind():
    assert set(all_baselines()) == {"majority", "tfidf", "zero_shot"}
    assert not set(all_baselines()) & set(all_methods())
    assert get("tfidf") is TfIdf


def test_naming_a_baseline_loads_neither_torch_nor_scikit_learn():
    loaded = "any(name in sys.modules for name in ('torch', 'sklearn', 'scipy', 'transformers'))"
    code = f"import sys; from fleetune.methods import get; get('tfidf')(); get('zero_shot')(); sys.exit({loaded})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def comparison(trained: dict[str, list[float]], baselines: dict[str, float]) -> Comparison:
    trials = [with_accuracy(kind, seed, score) for kind, own in trained.items() for seed, score in enumerate(own)]
    return compare([*trials, *(baseline(kind, score) for kind, score in baselines.items())])


def baseline(kind: str, accuracy: float) -> TrialResult:
    made = with_accuracy("head", 0, accuracy)
    return replace(made, kind=kind, method=kind, id=kind, settings={}, training={"metric": "accuracy"})


LORA = {"lora": [0.90, 0.91, 0.92], "head": [0.70, 0.71, 0.72]}


def test_a_baseline_that_ties_with_the_best_is_named_in_the_verdict_and_not_recommended():
    found = comparison(LORA, {"tfidf": 0.90})
    assert found.row("tfidf").tied_with_best
    assert found.verdict.recommended == "lora"
    assert "That lora is better than the baseline tfidf (0.910 against 0.900) is not demonstrated" in found.verdict.reason
    assert "every other" not in found.verdict.reason
    assert "and no other comes into question in its place" in found.verdict.reason


def test_a_baseline_that_lies_behind_is_not_mentioned():
    found = comparison(LORA, {"tfidf": 0.80})
    assert not found.row("tfidf").tied_with_best
    assert found.verdict.recommended == "lora" and "tfidf" not in found.verdict.reason


def test_where_a_baseline_is_best_nothing_is_recommended():
    found = comparison(LORA, {"tfidf": 0.99})
    assert found.verdict.recommended is None
    assert "lora, which validation chooses, does not come up to the baseline tfidf" in found.verdict.reason
    alone = comparison({}, {"tfidf": 0.9, "zero_shot": 0.7})
    assert alone.verdict.recommended is None and "Nothing that was trained" in alone.verdict.reason
    assert [row.standing for row in alone.rows] == ["not comparable", "not comparable"] and alone.tests == ()


def test_a_slightly_better_baseline_is_said_to_be_better():
    found = comparison(LORA, {"tfidf": 0.92})
    assert found.verdict.recommended == "lora"
    assert "The baseline tfidf has a better mean than lora (0.920 against 0.910)" in found.verdict.reason
    one_seed = comparison({"lora": [0.9]}, {"tfidf": 0.95})
    assert "one seed" in one_seed.verdict.reason and "tfidf has a better mean than lora" in one_seed.verdict.reason


def test_a_baseline_adds_nothing_to_the_spread_that_seeds_show():
    with_it, without = comparison(LORA, {"majority": 0.5}), comparison(LORA, {})
    assert with_it.row("lora").interval == without.row("lora").interval
    row = with_it.row("majority").to_json()
    assert (row["interval_over"], row["spread"], row["seeds"], row["baseline"]) == ("texts", None, 1, True)


@pytest.mark.parametrize(
    ("constant", "degenerate"),
    [(True, {"majority": False, "zero_shot": True, "head": True}),
     (False, {"majority": False, "zero_shot": False, "head": True})],
)  # fmt: skip
def test_the_majority_is_no_failure_and_zero_shot_may_stay_below_it(constant: bool, degenerate: dict[str, bool]):
    labels = np.arange(100) % 2
    wrong = np.tile([1.0, 0.0], (100, 1)) if constant else np.eye(2)[1 - labels]
    rows = {}
    for kind in degenerate:
        predictions = {"test": (labels, wrong.astype(np.float32))}
        one = replace(baseline("head", 0.5), kind=kind, method=kind, predictions=predictions)
        rows[kind] = bool(compare([one]).rows[0].degenerate)
    assert rows == degenerate


def test_settings_that_baselines_lack_are_still_shared_by_the_others():
    from fleetune.compare.configuration import group

    trials = [trial("head", 0, NAMES), trial("head", 0, NAMES, settings={"x": 1}), baseline("majority", 0.5)]
    groups = group(trials)
    assert [one.varying for one in groups] == [{}, {"x": 1}, {"metric": "accuracy"}]


def test_a_classifier_refuses_a_baseline():
    from fleetune import TextClassifier

    with pytest.raises(RecipeError, match="tfidf is a baseline"):
        TextClassifier(method="tfidf").fit(["a", "b"], ["x", "y"])


def test_a_baseline_is_judged_by_the_thresholds_of_the_recipe_and_kept_to_what_it_names():
    content = document({"kind": "majority"}, {"kind": "tfidf", "thresholds": 0.2}, training={"thresholds": 0.3})
    assert [one.training_settings["thresholds"] for one in planned(content).trials] == [0.3, 0.2]
    backbones = [{"model": "m", "name": "a"}, {"model": "n", "name": "b"}]
    kept = document({"kind": "lora"}, {"kind": "zero_shot", "backbone": ["b"]}, backbone=backbones)
    assert [one.backbone.name for one in planned(kept).trials if one.method.kind == "zero_shot"] == ["b"]
