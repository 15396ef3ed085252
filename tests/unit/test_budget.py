"""What each method could choose from is counted, its edges are seen, and fewer tries are expected to give less."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetune.compare.budget import (
    budgets,
    by_entry,
    expected_best,
    expected_best_frame,
    frame,
    unequal,
)
from fleetune.compare.configuration import group
from fleetune.compare.result import Predictions, TrialResult
from fleetune.compare.row import Row, summed_up
from tests.unit.synthetic_runs import trial

NAMES = ["no", "yes"]


def answers(right: int, texts: int = 40) -> Predictions:
    labels = np.arange(texts) % 2
    chosen = np.where(np.arange(texts) < right, labels, 1 - labels)
    return labels, (np.stack([1.0 - chosen, chosen], axis=1) * 4).astype(np.float32)


def point(
    kind: str, validation: int, test: int, seed: int = 0, entry: str | None = None, **training: Any
) -> TrialResult:
    held = {"validation": answers(validation), "test": answers(test)}
    base: dict[str, Any] = {"learning_rate": 1e-4, "epochs": 3.0} | training
    return trial(kind, seed, NAMES, predictions=held, metric="accuracy", entry=entry or kind, training=base)


def rows_of(trials: list[TrialResult], metric: str = "accuracy") -> list[Row]:
    return [summed_up(one, "test", metric) for one in group(trials)]


def test_settings_trials_and_axes_are_counted_for_each_entry() -> None:
    trials = [
        point("lora", 30 + place, 30, seed, learning_rate=rate, epochs=epochs)
        for place, (rate, epochs) in enumerate(itertools.product([5e-4, 1e-4, 2e-4], [3.0, 5.0]))
        for seed in range(2)
    ]
    trials += [point("bitfit", 20, 20, learning_rate=1e-3), replace(point("head", 20, 20), kind="tfidf")]
    lora, bitfit = budgets(rows_of(trials))
    assert (lora.settings, lora.trials, bitfit.settings, bitfit.trials) == (6, 12, 1, 1)
    assert lora.axes == {"learning_rate": [1e-4, 2e-4, 5e-4], "epochs": [3.0, 5.0]}
    assert lora.untuned is None
    assert bitfit.untuned == "not tuned: learning_rate 0.001 is the only one tried" and bitfit.edges == ()
    assert "lora 6, bitfit 1" in (unequal([lora, bitfit]) or "")
    assert (unequal([lora, bitfit]) or "").endswith("the best of more owes more of its validation score to chance.")
    assert unequal([lora]) is None and unequal([]) is None
    assert list(frame([lora, bitfit])["settings"]) == [6, 1] and list(frame([])["settings"]) == []
    json.dumps(lora.to_json())


def test_a_choice_at_the_end_of_its_axis_is_flagged_and_one_inside_is_not() -> None:
    def edges(best: int) -> tuple[str, ...]:
        rates = [1e-4, 2e-4, 5e-4]
        return budgets(
            rows_of([point("lora", 25 + 5 * (i == best), 25, learning_rate=r) for i, r in enumerate(rates)])
        )[0].edges

    assert edges(1) == ()
    assert edges(0) == ("learning_rate 0.0001 is the lowest of 0.0001, 0.0002, 0.0005: a wider grid may find better",)
    assert edges(2) == ("learning_rate 0.0005 is the highest of 0.0001, 0.0002, 0.0005: a wider grid may find better",)


def test_below_nothing_there_is_no_wider_grid() -> None:
    decays = [point("lora", 30 - place, 20, weight_decay=decay) for place, decay in enumerate([0.0, 0.1])]
    epochs = [point("lora", 30 - place, 20, epochs=epoch) for place, epoch in enumerate([1, 2])]
    assert budgets(rows_of(decays))[0].edges == () == budgets(rows_of(epochs))[0].edges


def test_validation_chooses_and_never_the_test_split() -> None:
    rows = rows_of([point("lora", 30, 10, learning_rate=1e-4), point("lora", 25, 39, learning_rate=2e-4)])
    assert budgets(rows)[0].chosen == rows[0].name
    assert expected_best(rows)[-1].scored == pytest.approx(10 / 40)


def test_entries_of_one_kind_are_apart_and_older_runs_go_by_kind() -> None:
    rows = rows_of([point("lora", 30, 30, entry="small"), point("lora", 30, 30, entry="large", epochs=9.0)])
    assert [one.entry for one in budgets(rows)] == ["small", "large"]
    older = rows_of([trial("lora", 0, NAMES), trial("ia3", 0, NAMES)])
    assert [one.entry for one in budgets(older)] == ["lora", "ia3"]


def test_a_setting_without_a_score_counts_as_tried_and_is_not_chosen() -> None:
    failed = point("lora", 0, 0, learning_rate=9e-4)
    trials = [point("lora", 30, 30), trial("lora", 0, NAMES, status="failed", predictions={}, entry="lora"), failed]
    rows = rows_of(trials)
    (budget,) = budgets(rows)
    assert (budget.settings, budget.chosen) == (3, rows[0].name)
    assert len(expected_best(rows)) == 2 and math.isnan(rows[1].validation)
    nothing = budgets(rows[1:2])[0]
    assert nothing.chosen is None and nothing.edges == () and expected_best(rows[1:2]) == []


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40)), min_size=1, max_size=6),
    st.sampled_from(["accuracy", "log_loss"]),
)
def test_expected_best_is_the_mean_over_every_draw(scores: list[tuple[int, int]], metric: str) -> None:
    trials = [point("lora", 5 * val, test, learning_rate=1e-4 * (i + 1)) for i, (val, test) in enumerate(scores)]
    rows = rows_of(trials, metric)
    known = [(row.validation, row.mean) for row in rows]
    choose = max if metric == "accuracy" else min
    found = expected_best(rows)
    assert [one.settings_tried for one in found] == list(range(1, len(rows) + 1))
    for one in found:
        best = [choose(draw, key=lambda pair: pair[0]) for draw in itertools.combinations(known, one.settings_tried)]
        assert one.validation == pytest.approx(np.mean([pair[0] for pair in best]))
        assert one.scored == pytest.approx(np.mean([pair[1] for pair in best]))


def test_the_table_of_expected_bests_has_a_line_for_each_number_tried() -> None:
    rows = rows_of([point("lora", 30, 30), point("lora", 31, 31, epochs=9.0), point("bitfit", 10, 10)])
    table = expected_best_frame(rows)
    assert list(table["method"]) == ["lora", "lora", "bitfit"] and list(table["settings_tried"]) == [1, 2, 1]
    assert list(by_entry(rows)) == [("tweets", "minilm", "lora"), ("tweets", "minilm", "bitfit")]
