"""The benchmark's workloads and arithmetic; nothing is trained."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from benchmarks import models, run
from benchmarks.contenders import Turn, divide_into_fleets
from benchmarks.inputs import Inputs, make_inputs, missing_feature
from benchmarks.measure import layer_products
from benchmarks.processes import divide
from benchmarks.results import Facts, Result, Verdict
from benchmarks.tables import Setting, markdown, plain
from benchmarks.trainer import trained_names, trial_model
from benchmarks.workloads import GIB, WORKLOADS, Target
from fleetune.engine.config import BackboneConfig
from fleetune.engine.shape import shape_from_config
from fleetune.engine.trial import TrialSpec
from fleetune.lab.demo import demo_recipe
from fleetune.lab.plan import plan
from fleetune.runtime import device
from tests.tiny import plain_model, random_data, tiny_folder

FACTS = Facts(
    name="w1",
    title="two trials",
    trials=2,
    texts=100,
    tokens=3000,
    evaluated=20,
    operations=4e12,
    products_per_second=1e12,
    targets=(Target("A/C", 5.0), Target("utilisation of C", 0.6)),
)
ENVIRONMENT: dict[str, Any] = {
    "processor": "a processor",
    "device": "cpu",
    "cores": 2,
    "threads": 2,
    "fast_bf16": True,
    "packages": {"torch": "2.0"},
}


def turn(seconds: float, first_step: float = 0.5, peak: float = GIB) -> Turn:
    return Turn(seconds, first_step, int(peak), 0, 0.5)


def result(facts: Facts = FACTS, **seconds: list[float]) -> Result:
    made = Result(facts)
    for name, times in seconds.items():
        for value in times:
            made.add(name, turn(value))
    return made


def setting(**changes: Any) -> Setting:
    names = dict.fromkeys(("A", "B", "C", "D"), "someone")
    return replace(Setting(datetime(2026, 1, 2, tzinfo=UTC), ENVIRONMENT, "bf16", 3, 1.0, True, names), **changes)


def inputs_of(architecture: str, workload: str = "w2") -> Inputs:
    folder = tiny_folder(architecture)
    config = BackboneConfig(model=str(folder))
    return Inputs(WORKLOADS[workload].trials, random_data(), config, shape_from_config(folder, 3), 3)


@pytest.mark.parametrize(
    ("name", "trials"), [("w1", 12), ("w2", 12), ("w3", 1), ("w4", 4), ("w5", 2), ("w6", 32), ("w7", 8)]
)
def test_a_workload_has_the_trials_that_the_documentation_says(name: str, trials: int) -> None:
    workload = WORKLOADS[name]
    assert len({spec.id for spec in workload.trials}) == len(workload.trials) == trials
    assert {spec.training.epochs for spec in workload.trials} == {1.0}
    assert {spec.training.warmup_ratio for spec in workload.trials} == {0.0}


def test_lora_is_the_same_everywhere() -> None:
    settings = [s.method.settings for w in WORKLOADS.values() for s in w.trials if s.method.kind == "lora"]
    assert {(one["alpha"], one["dropout"], one["target_modules"]) for one in settings} == {(16.0, 0.1, None)}
    assert {one["rank"] for one in settings[:12]} == {4, 8, 16}


def test_w2_has_every_method_twice() -> None:
    kinds = [spec.method.kind for spec in WORKLOADS["w2"].trials]
    assert sorted(kinds) == sorted(["lora", "ia3", "bitfit", "norm", "head", "full"] * 2)


@pytest.mark.parametrize("spec", WORKLOADS["w2"].trials[::2], ids=lambda spec: spec.method.kind)
def test_both_sides_train_as_many_parameters(spec: TrialSpec) -> None:
    inputs, base = inputs_of("bert"), plain_model("bert", dtype=torch.float32).requires_grad_(False)
    before = {name: value.clone() for name, value in base.named_parameters()}
    model = trial_model(base, spec, inputs)
    trained = [value for value in model.parameters() if value.requires_grad]
    assert (
        sum(value.numel() for value in trained)
        == spec.method.expected_parameters(inputs.shape) + inputs.shape.head_parameters
    )
    with torch.no_grad():
        for value in trained:
            value.add_(1.0)
    # A trial that changed the shared model would give the next one another start.
    assert all(torch.equal(value, before[name]) for name, value in base.named_parameters())
    assert not any(value.requires_grad for value in base.parameters())


def test_both_sides_adapt_the_same_modules_of_a_decoder() -> None:
    inputs, base = inputs_of("llama", "w5"), plain_model("llama", dtype=torch.float32).requires_grad_(False)
    model = trial_model(base, inputs.trials[0], inputs)
    adapted = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert adapted == {"q_proj", "v_proj"}


def test_a_difference_in_what_is_trained_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, base = inputs_of("bert"), plain_model("bert", dtype=torch.float32).requires_grad_(False)
    spec = next(spec for spec in inputs.trials if spec.method.kind == "norm")
    fewer = trained_names(base, spec, inputs) - {"classifier.bias"}
    monkeypatch.setattr("benchmarks.trainer.trained_names", lambda *given: fewer)
    with pytest.raises(RuntimeError, match="Trainer would train"):
        trial_model(base, spec, inputs)


def test_operations_follow_the_formula() -> None:
    inputs = inputs_of("bert")
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 48)
    passes = {"lora": 4, "ia3": 4, "bitfit": 4, "norm": 4, "head": 2, "full": 6}
    tokens = inputs.data.tokens.lengths
    expected = sum(
        passes[spec.method.kind] * weights * int(tokens[:40].sum()) + 2 * weights * int(tokens[40:52].sum())
        for spec in inputs.trials
    )
    assert inputs.operations == expected
    assert layer_products(inputs.shape) == [(32, 32), (32, 48), (48, 32)]


def test_fleets_are_those_of_a_run() -> None:
    inputs = inputs_of("bert")
    planned = plan(demo_recipe(), lambda trials: len(trials) <= 16)
    specs = {trial.id: TrialSpec(trial.id, trial.method, trial.training, trial.seed) for trial in planned.trials}
    divided = divide_into_fleets(replace(inputs, trials=tuple(specs.values())), 2**33)
    assert [[spec.id for spec in fleet] for fleet in divided] == [
        [trial.id for trial in fleet.trials] for fleet in planned.fleets
    ]
    on_processor = divide_into_fleets(replace(inputs, trials=WORKLOADS["w6"].trials), 2**33)
    assert [len(fleet) for fleet in on_processor] == ([16, 16] if device().type == "cpu" else [32])


def test_processes_get_all_trials_and_their_share_of_each_method() -> None:
    trials = WORKLOADS["w2"].trials
    parts = divide(trials, 2)
    assert sorted(spec.id for part in parts for spec in part) == sorted(spec.id for spec in trials)
    assert [sum(spec.method.kind == "full" for spec in part) for part in parts] == [1, 1]
    assert [len(part) for part in divide(trials[:3], 4)] == [1, 1, 1]


def test_rates_and_ratios() -> None:
    measured = result(A=[12.0, 10.0, 90.0], C=[2.0, 5.0, 4.0])
    assert measured.seconds("A") == 12.0
    assert measured.extremes("A") == (10.0, 90.0)
    assert measured.texts_per_second("C") == 2 * 100 / 4.0
    assert measured.tokens_per_second("C") == 2 * 3000 / 4.0
    assert measured.utilisation("C") == 1.0
    assert measured.measure("A/C") == 3.0
    assert measured.measure("B/C") is None


def test_the_first_step_is_that_of_the_first_round() -> None:
    measured = Result(FACTS, {"C": [turn(1.0, first_step=9.0), turn(1.0, first_step=0.1)]})
    assert measured.first_step_seconds("C") == 9.0


@pytest.mark.parametrize(
    ("value", "at_most", "met"),
    [(5.0, False, True), (4.99, False, False), (5.0, True, True), (5.01, True, False), (None, False, None)],
)
def test_verdicts(value: float | None, at_most: bool, met: bool | None) -> None:
    assert Verdict("A/C", value, Target("A/C", 5.0, at_most)).met is met
    assert Verdict("A/C", value, None).met is None


def test_a_target_whose_contender_was_left_out_is_not_measured() -> None:
    found = {verdict.measure: verdict for verdict in result(B=[8.0], C=[4.0]).verdicts()}
    assert found.keys() == {"A/C", "B/C", "utilisation of C"}
    assert (found["A/C"].value, found["A/C"].met) == (None, None)
    assert (found["B/C"].value, found["B/C"].target) == (2.0, None)
    assert found["utilisation of C"].met is True


def test_memory_of_one_trial_and_of_each_further() -> None:
    targets = WORKLOADS["w7"].targets
    turns = {"C": [turn(8.0, peak=34.0 * GIB)], "C1": [turn(1.0, peak=20.0 * GIB)]}
    measured = Result(replace(FACTS, trials=8, targets=targets), turns)
    assert measured.measure("GiB of one trial") == 20.0
    assert measured.measure("GiB of each further trial") == 2.0
    assert [verdict.met for verdict in measured.verdicts()] == [True, True]
    assert measured.texts_per_second("C1") == 100.0


def test_tables_say_the_same_in_both_formats() -> None:
    measured = result(A=[12.0, 10.0, 14.0], C=[4.0, 3.0, 5.0])
    text, page = plain(setting(), [measured]), markdown(setting(), [measured])
    for words in ("12.0", "10.0 – 14.0", "3.00", "≥ 5.00: missed", "100.0%", "≥ 60.0%: met", "a processor"):
        assert words in text
        assert words in page
    assert page.startswith("### 2026-01-02 00:00 UTC: a processor\n")
    rows = [line for line in page.splitlines() if line.startswith(("| A", "|  |"))]
    assert len({row.count("|") for row in rows if "someone" in row or "contender" in row}) == 1


def test_tables_say_what_is_unusual() -> None:
    slow = {**ENVIRONMENT, "fast_bf16": False}
    text = plain(setting(share=0.25, own_peaks=False, environment=slow, precision="fp32"), [result(A=[1.0], C=[1.0])])
    assert "share of 0.25" in text
    assert "B and D run in fp32" in text
    assert "highest of this process" in text
    assert "min – max" not in text


def test_rounds_alternate() -> None:
    assert [name for _, name in run.turns(("A", "B", "C"), 3)] == list("ABCCBAABC")


def test_a_gpu_workload_without_a_gpu_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(run, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(sys, "argv", ["run", "w6", "w1"])
    assert run.main() == 2
    assert capsys.readouterr().err == "error: w6 need a CUDA device, and there is none here\n"


def test_what_a_version_lacks_is_said_in_a_line() -> None:
    unknown = replace(WORKLOADS["w7"], quantize="of-tomorrow")
    assert "of-tomorrow" in (missing_feature(unknown) or "")
    assert missing_feature(WORKLOADS["w1"]) is None


def test_a_random_model_is_made_once_and_has_the_inputs_it_needs(tmp_path, monkeypatch) -> None:
    small = {**models.SHAPES["bert-base"], "hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 32}
    monkeypatch.setitem(models.SHAPES, "bert-base", small)
    inputs = make_inputs(WORKLOADS["w4"], 0.1, tmp_path)
    assert (inputs.texts("train"), inputs.texts("validation"), inputs.num_labels) == (40, 16, 3)
    weights = (tmp_path / "bert-base" / "model.safetensors").read_bytes()
    again = models.random_model("bert-base", tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == weights
    model = AutoModelForSequenceClassification.from_pretrained(again, num_labels=3)
    assert sum(p.numel() for p in model.parameters()) == inputs.shape.backbone_parameters + inputs.shape.head_parameters
