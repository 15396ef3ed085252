"""Five practitioners' published figures, and the conclusions that cannot be written from them.

Each report compared configurations by hand: one seed, few texts, rows that were copied. Their figures are made into
runs with the same counts, scores and losses; what their authors concluded must not come out.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from fleetune.compare.budget import budgets
from fleetune.compare.result import TrialResult
from fleetune.compare.summary import Comparison, compare
from fleetune.metrics import evaluate
from tests.recomputed.page import Node, parse
from tests.unit.synthetic_runs import run, trial

SENTIMENT = ["negative", "positive"]
EMOTIONS = [f"emotion {number}" for number in range(11)]
SUPERIOR = r"(a better|better|best|highest|lowest|higher|lower|superior)"
CROWNING = re.compile(
    rf"\b(is|are|has|have) (the )?{SUPERIOR}\b|\bbetter than\b|demonstrated winner|scores (higher|lower)"
    r"|outperforms|comes? up to"
)

# R1: DistilBERT, IMDB, 32 validation texts: validation loss and accuracy by epoch, training loss at the end.
R1 = {
    "lora attention": (
        [0.7038, 0.6977, 0.6944, 0.6922, 0.6919, 0.6914, 0.6894, 0.6887, 0.6879, 0.6877],
        [0.4375, 0.4375, 0.5, 0.5, 0.59375, 0.59375, 0.5625, 0.53125, 0.5625, 0.59375],
        0.6908,
    ),
    "lora everywhere": (
        [0.6911, 0.6899, 0.6891, 0.6880, 0.6884, 0.6881, 0.6863, 0.6856, 0.6849, 0.6847],
        [0.5625, 0.5625, 0.5625, 0.5625, 0.625, 0.6875, 0.5625, 0.625, 0.59375, 0.59375],
        0.6860,
    ),
    "lora r=32": (
        [0.6971, 0.6936, 0.6911, 0.6894, 0.6894, 0.6889, 0.6872, 0.6866, 0.6858, 0.6856],
        [0.4375, 0.46875, 0.53125, 0.59375, 0.53125, 0.5625, 0.6875, 0.625, 0.59375, 0.59375],
        0.6866,
    ),
    "ia3": (
        [0.6917, 0.6917, 0.6915, 0.6910, 0.6916, 0.6916, 0.6903, 0.6898, 0.6893, 0.6892],
        [0.5625, 0.5625, 0.5625, 0.5625, 0.625, 0.53125, 0.625, 0.625, 0.625, 0.625],
        0.6946,
    ),
}

# R4: loss, F1 micro and exact match on validation, then on the evaluation texts.
R4 = {
    "Gemma (LoRA)": ((0.5656, 0.6812, 0.1981), (0.5268, 0.6817, 0.1935)),
    "Gemma (IA3)": ((0.5656, 0.6812, 0.1981), (0.5527, 0.6777, 0.1838)),
    "Qwen (QLoRA)": ((0.9911, 0.6837, 0.2311), (0.5104, 0.6674, 0.1566)),
}


def said(comparison: Comparison) -> list[str]:
    return [claim.text for claim in comparison.claims] + [comparison.verdict.reason]


def binary(texts: int, right: int, loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels and logits of two equal classes with so many right answers and that mean loss."""
    labels = np.arange(texts) % 2
    order = np.random.default_rng(texts + right).permutation(texts)
    chosen = labels.copy()
    chosen[order[right:]] = 1 - chosen[order[right:]]
    signs = np.stack([1.0 - chosen, chosen], axis=1) * 2 - 1
    return labels, scaled(labels, signs, loss)


def scaled(labels: np.ndarray, logits: np.ndarray, loss: float) -> np.ndarray:
    """Returns the logits, stretched until their loss is that; the side of the least loss that is nearer to chance."""
    stretches = np.geomspace(1e-3, 20.0, 4_000)
    losses = np.array([evaluate(labels, logits * stretch)["loss"] for stretch in stretches[::20]])
    near = np.argmin(np.abs(losses - loss))
    fine = stretches[max(20 * near - 20, 0) : 20 * near + 21]
    best = min(fine, key=lambda stretch: abs(evaluate(labels, logits * stretch)["loss"] - loss))
    return (logits * best).astype(np.float32)


def emotions(texts: int, loss: float, f1_micro: float, exact: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns 0/1 labels and logits with these scores at a threshold of 0.5."""
    labels = (np.random.default_rng(0).random((texts, len(EMOTIONS))) < 0.22).astype(np.uint8)
    rng = np.random.default_rng(seed)
    wrong_texts = rng.permutation(texts)[: texts - round(exact * texts)]
    positives = int(labels.sum())
    missed = round(positives * (1 - f1_micro))
    chosen = labels.copy()
    # As many missed as invented: F1 micro is then the share of positives that are found.
    for value, wanted in ((1, missed), (0, missed)):
        places = [(text, label) for text in wrong_texts for label in np.flatnonzero(labels[text] == value)]
        first: dict[int, tuple[int, int]] = {}
        for place in places:
            first.setdefault(int(place[0]), (int(place[0]), int(place[1])))
        ordered = list(first.values()) if value == 0 else []
        rest = [place for place in places if place not in set(ordered)]
        picked = ordered + [rest[index] for index in rng.permutation(len(rest))]
        for text, label in picked[:wanted] if value else picked[: max(wanted, len(ordered))]:
            chosen[text, label] = 1 - value
    return labels, scaled(labels, chosen * 2.0 - 1.0, loss)


def r1() -> list[TrialResult]:
    made = []
    for name, (losses, accuracies, training) in R1.items():
        history = [
            {"step": 8 * epoch, "epoch": float(epoch), "metrics": {"loss": loss, "accuracy": accuracy}, "best": False}
            for epoch, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), start=1)
        ]
        history[-1]["best"] = True
        made.append(
            trial(
                "ia3" if name == "ia3" else "lora",
                0,
                SENTIMENT,
                method=name,
                id=name,
                metric="accuracy",
                predictions={"validation": binary(32, round(32 * accuracies[-1]), losses[-1])},
                history=history,
                losses=[(step, training) for step in range(1, 81)],
                training={"loss": "cross_entropy", "class_weights": "none", "epochs": 10.0, "learning_rate": 5e-5},
            )
        )
    return made


def test_r1_32_texts_show_17_points_on_either_side_and_nothing_learned():
    comparison = compare(r1())
    for row in comparison.rows:
        low, high = row.interval or (0.0, 0.0)
        assert (high - low) / 2 == pytest.approx(0.17, abs=0.01)
        assert low < 0.5 < high, "chance is within the interval"
        assert "loss at chance" in row.degenerate[0]
    assert comparison.verdict.recommended is None and comparison.verdict.winner is None
    assert not any(CROWNING.search(sentence) for sentence in said(comparison))
    assert any("4 trials learned nothing" in sentence for sentence in said(comparison))


def test_r2_bitfit_at_a_tiny_learning_rate_is_under_trained_and_no_worse_method():
    def one(name: str, kind: str, rate: float, loss: float, right: int) -> TrialResult:
        history = [{"step": 100 * n, "epoch": float(n), "metrics": {"loss": loss, "accuracy": right / 872},
                    "best": n == 5} for n in range(1, 6)]  # fmt: skip
        settings: dict[str, Any] = {"loss": "cross_entropy", "class_weights": "none", "epochs": 5.0}
        return trial(kind, 42, SENTIMENT, method=name, id=name, metric="accuracy", entry=kind, history=history,
                     predictions={"validation": binary(872, right, loss)}, losses=[(n, loss) for n in range(1, 501)],
                     training=settings | {"learning_rate": rate})  # fmt: skip

    trials = [
        one("lora r=8", "lora", 5e-4, 0.25, 804),
        one("lora r=16", "lora", 5e-4, 0.25, 803),
        one("full", "full", 1e-5, 0.26, 803),
        one("bitfit lr=5e-4", "bitfit", 5e-4, 0.28, 790),
        one("bitfit lr=1e-5", "bitfit", 1e-5, 0.692, 450),
    ]
    comparison = compare(trials)
    slow = comparison.row("bitfit lr=1e-5")
    assert "loss at chance" in slow.degenerate[42]
    assert not any("bitfit lr=1e-5" in (test.a, test.b) for test in comparison.tests)
    sentences = said(comparison)
    assert any("bitfit lr=1e-5 cannot be judged by these scores" in sentence for sentence in sentences)
    assert not any("better than" in sentence for sentence in sentences)
    assert "one seed" in comparison.verdict.reason and comparison.verdict.recommended is None


def test_r2_with_six_seeds_a_tiny_learning_rate_is_still_no_worse_method():
    def one(name: str, kind: str, seed: int, rate: float, loss: float, right: int) -> TrialResult:
        history = [{"step": 100 * n, "epoch": float(n), "metrics": {"loss": loss}, "best": n == 5} for n in range(1, 6)]
        settings: dict[str, Any] = {"loss": "cross_entropy", "class_weights": "none", "learning_rate": rate}
        scores = {split: binary(872, right + 3 * seed, loss) for split in ("validation", "test")}
        return trial(kind, seed, SENTIMENT, method=name, id=f"{name} {seed}", metric="accuracy", entry=kind,
                     history=history, predictions=scores, losses=[(n, loss) for n in range(1, 501)],
                     training=settings)  # fmt: skip

    trials = [one("lora", "lora", seed, 5e-4, 0.25, 800) for seed in range(6)]
    trials += [one("bitfit lr=5e-4", "bitfit", seed, 5e-4, 0.28, 700) for seed in range(6)]
    trials += [one("bitfit lr=1e-5", "bitfit", seed, 1e-5, 0.690, 600) for seed in range(6)]
    comparison = compare(trials)
    assert [(test.a, test.b) for test in comparison.tests] == [("lora", "bitfit lr=5e-4")]
    sentences = said(comparison)
    assert any("lora is better than bitfit lr=5e-4" in sentence for sentence in sentences)
    assert not any("better than bitfit lr=1e-5" in sentence for sentence in sentences)
    assert any("bitfit lr=1e-5 cannot be judged by these scores" in sentence for sentence in sentences)


def test_r3_one_trial_is_no_comparison():
    one = trial("lora", 42, SENTIMENT, metric="accuracy", losses=[(n, 0.6168) for n in range(1, 1001)],
                predictions={"validation": binary(1000, 820, 0.55)}, history=[],
                training={"loss": "cross_entropy", "class_weights": "none"})  # fmt: skip
    comparison = compare([one])
    assert not comparison.rows[0].degenerate, "a training loss of 0.6168 is no chance"
    assert comparison.tests == () and comparison.claims == ()
    assert comparison.verdict.recommended is None and "one seed" in comparison.verdict.reason


@pytest.fixture(scope="module")
def r4() -> list[TrialResult]:
    made = []
    for number, (name, (validation, test)) in enumerate(R4.items()):
        # The validation columns of the first two rows are the same: one was copied.
        predictions = {
            "validation": emotions(1545, *validation, seed=1 if number < 2 else 2),
            "test": emotions(1545, *test, seed=10 + number),
        }
        kind = "ia3" if "IA3" in name else "lora"
        changes: dict[str, Any] = {"predictions": predictions, "history": [], "training": {"thresholds": 0.5}}
        made.append(trial(kind, 0, EMOTIONS, True, method=name, id=name, metric="f1_micro", **changes))
    return made


def test_r4_the_runs_have_the_published_figures(r4):
    for one, (validation, test) in zip(r4, R4.values(), strict=True):
        for split, (loss, f1_micro, exact) in (("validation", validation), ("test", test)):
            scores = one.scores(split)
            assert scores["loss"] == pytest.approx(loss, abs=0.002)
            assert scores["exact_match"] == pytest.approx(exact, abs=0.001)
            assert scores["f1_micro"] == pytest.approx(f1_micro, abs=0.02)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("metric", ["loss", "f1_micro", "f1_macro", "exact_match"])
def test_r4_none_of_its_key_points_can_be_written(r4, split, metric):
    """The lowest validation loss of a copied row, the highest F1 that another row exceeds, and their like."""
    comparison = compare(r4, split=split, metric=metric)
    assert comparison.verdict.winner is None and comparison.verdict.recommended is None
    assert not any(test.is_significant for test in comparison.tests)
    for sentence in said(comparison):
        assert not CROWNING.search(sentence), sentence


def test_r4_a_copied_row_is_found_out(r4):
    sentences = said(compare(r4))
    assert any(
        "Gemma (LoRA) and Gemma (IA3) gave the same outputs for every text of validation" in sentence
        for sentence in sentences
    )


def test_r4_exact_match_is_never_called_accuracy(r4):
    assert "accuracy" not in r4[0].scores("test")
    assert "exact match" in compare(r4, metric="exact_match").verdict.reason


def test_r5_a_single_learning_rate_says_nothing_of_learning_rates_and_ranks_are_not_told_apart():
    def one(name: str, kind: str, entry: str, rank: int | None, right: int) -> TrialResult:
        return trial(kind, 0, SENTIMENT, method=name, id=name, entry=entry, metric="accuracy",
                     settings={"rank": rank} if rank else {}, training={"learning_rate": 1e-3},
                     predictions={"validation": binary(872, right, 0.3)})  # fmt: skip

    rights = {1: 785, 4: 786, 16: 788}
    trials = [one(f"lora r={rank}", "lora", "lora", rank, right) for rank, right in rights.items()]
    trials.append(one("bitfit", "bitfit", "bitfit", None, 784))
    comparison = compare(trials)
    assert all(found.untuned and "0.001 is the only one tried" in found.untuned for found in budgets(comparison.rows))
    sentences = said(comparison)
    assert not any("better than" in sentence for sentence in sentences)
    assert not any("learning_rate" in sentence for sentence in sentences)
    assert any("No difference is demonstrated" in sentence for sentence in sentences)
    assert all(row.tied_with_best for row in comparison.rows)


OF_NO_ONE = (
    "Up and to the left is better.", "Down and to the left is better.",
    "none has a better mean at the same or a lower cost.", "Where another is better (weak-spots)",
)  # fmt: skip
"""How to read a figure, and the name of a table of places to look at."""


def words_of(page: Node) -> list[str]:
    """Returns what a page says in words: its answer, key points, tiles, remarks, captions and text alternatives."""
    answer = page.named("answer")
    said = [one.text() for one in answer.all("p")] + [one.text() for one in answer.all("li")]
    said += [one.text() for one in answer.one("dl", "tiles").all("div")]
    said += [one.text() for one in page.all("figcaption")] + [one.text() for one in page.all("p", "quiet")]
    said += [one.text() for one in page.all("tr", "problems")] + [one.text() for one in page.all("span", "mark")]
    return said + [node.attributes[name] for node in page.all() for name in ("aria-label", "title", "alt")
                   if name in node.attributes]  # fmt: skip


def crowns(sentence: str, names: Collection[str]) -> bool:
    """Returns whether a sentence calls one configuration the best, by any word for it."""
    told = [name for name in names if name in sentence]
    superlative = re.search(rf"\b{SUPERIOR}\b|\boutperforms\b|\bwinner\b|\bwins\b", sentence, re.IGNORECASE)
    return bool(told and superlative and not re.search("No winner is demonstrated", sentence))


@pytest.mark.parametrize(
    "sentence",
    [
        "Highest mean F1 (micro) 0.682 Gemma (LoRA)", "Lowest mean loss 0.510 Qwen (QLoRA)",
        "Gemma (IA3) has the lowest validation loss.", "The best on validation is Gemma (IA3).",
    ],
)  # fmt: skip
def test_a_crowned_configuration_is_told_by_tile_or_sentence(sentence: str) -> None:
    assert crowns(sentence, R4)
    assert not crowns("Points are single seeds; Pareto front: none has a better mean.", R4)


@pytest.mark.parametrize("report", ["R1", "R4"])
@pytest.mark.parametrize("metric", ["own", "loss"])
def test_nothing_on_the_page_crowns_a_configuration(report: str, metric: str, request: pytest.FixtureRequest):
    """Not in a tile, a caption or an alternative text either, where once the largest of the means stood."""
    from fleetune.report.html import render

    trials = r1() if report == "R1" else request.getfixturevalue("r4")
    made = run([*trials], report, audits=[])
    comparison = compare(trials, metric=None if metric == "own" else metric)
    page = parse(re.sub(r"<script.*?</script>", "", render(made, comparison), flags=re.DOTALL))
    said = words_of(page)
    names = list(R1 if report == "R1" else R4)
    assert sum(any(name in one for name in names) for one in said) > 5, "the page names its configurations"
    for text in said:
        for sentence in re.split(r"(?<=[.;:])\s", text):
            assert not crowns(sentence, names), sentence
            assert not CROWNING.search(sentence) or sentence in OF_NO_ONE, sentence
