"""Adding a trial to a fleet changes none of the others, and a trial taken up again ends as if never stopped."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fleetune.data.dataset import SplitName
from fleetune.engine.backbone import Backbone
from fleetune.engine.checkpoint import load_checkpoint
from fleetune.engine.evaluation import _passes, keep_logits
from fleetune.engine.events import Evaluated, Event, Failed, Finished, Stepped
from fleetune.engine.fleet import Fleet, FleetData
from fleetune.engine.generation import FolderCheckpoints
from fleetune.engine.layout import Pack
from fleetune.engine.micro_batches import SLOTS
from fleetune.engine.trial import Trial, TrialSpec
from fleetune.errors import RecipeError, RunError, RunTakenOverError, StorageError
from fleetune.methods import all_methods
from tests.tiny import random_data, random_tokens, spec, tiny_backbone, train_until

MIXED = [
    spec("lora", 0, {"dropout": 0.2}, epochs=4),
    spec("ia3", 1, epochs=4),
    spec("bitfit", 2, epochs=4, batch_size=3),
    spec("norm", 3, epochs=4, gradient_accumulation_steps=2),
    spec("head", 4, epochs=2, learning_rate=1e-2),
    spec("lora", 5, {"rank": 2, "target_modules": ("all-linear",)}, epochs=4, early_stopping_patience=1),
    spec("ia3", 6, {"target_modules": ("query", "dense")}, epochs=4, class_weights="balanced"),
    spec("bitfit", 7, epochs=4, learning_rate=5e-3),
]
DECODER = [trial for trial in MIXED if trial.method.kind not in ("bitfit",) and trial.id != "ia3-6"]


def losses(events: list[Event], trial: str) -> list[float]:
    return [event.loss for event in events if isinstance(event, Stepped) and event.trial == trial]


def finished(events: list[Event], trial: str) -> Finished:
    return next(event for event in events if isinstance(event, Finished) and event.trial == trial)


def train(
    specs: list[TrialSpec],
    data: FleetData,
    architecture: str = "bert",
    layout: str = "auto",
    folder: Path | None = None,
) -> tuple[list[Event], Fleet]:
    fleet = Fleet(
        tiny_backbone(architecture, layout=layout), specs, data, FolderCheckpoints(folder) if folder else None
    )
    return list(fleet.train()), fleet


@pytest.mark.parametrize(
    ("architecture", "layout", "specs"),
    [
        ("bert", "packed", MIXED),
        ("bert", "padded", MIXED),
        ("albert", "packed", MIXED[:5]),
        ("gemma2", "packed", DECODER),
    ],
)
def test_alone_equals_together(architecture: str, layout: str, specs: list[TrialSpec]) -> None:
    data = random_data()
    together, fleet = train(specs, data, architecture, layout)
    for number, one in enumerate(specs):
        alone, single = train([one], data, architecture, layout)
        np.testing.assert_allclose(losses(together, one.id), losses(alone, one.id), rtol=1e-9)
        a, b = finished(together, one.id), finished(alone, one.id)
        assert (a.steps, a.best_step, a.stopped_early) == (b.steps, b.best_step, b.stopped_early)
        for split in ("validation", "test"):
            np.testing.assert_allclose(a.predictions[split], b.predictions[split], rtol=1e-5, atol=1e-6)
        for name, tensor in single.trials[0].parameters.state().items():
            torch.testing.assert_close(fleet.trials[number].parameters.state()[name], tensor, rtol=1e-7, atol=1e-9)


def test_order_of_trials_does_not_matter() -> None:
    data = random_data()
    forward, _ = train(MIXED[:4], data)
    backward, _ = train(MIXED[3::-1], data)
    for one in MIXED[:4]:
        np.testing.assert_allclose(losses(forward, one.id), losses(backward, one.id), rtol=1e-9)


def test_a_failing_neighbour_harms_nobody() -> None:
    data = random_data()
    diverging = spec("lora", 99, epochs=4, learning_rate=1e200, max_grad_norm=0.0)
    together, _ = train([diverging, *MIXED[:3]], data)
    failure = [event for event in together if isinstance(event, Failed)]
    assert [event.trial for event in failure] == [diverging.id]
    assert "loss became" in failure[0].reason
    for one in MIXED[:3]:
        alone, _ = train([one], data)
        np.testing.assert_allclose(losses(together, one.id), losses(alone, one.id), rtol=1e-9)
        assert np.isfinite(finished(together, one.id).predictions["test"]).all()


@cache
def on_random_data(*specs: TrialSpec) -> list[Event]:
    return train(list(specs), random_data())[0]


def assert_untouched(together: list[Event], specs: list[TrialSpec]) -> None:
    alone = on_random_data(*specs)
    for one in specs:
        np.testing.assert_allclose(losses(together, one.id), losses(alone, one.id), rtol=1e-9)
        for split, logits in finished(alone, one.id).predictions.items():
            np.testing.assert_allclose(finished(together, one.id).predictions[split], logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("faulty", [0, 1, 2])
def test_a_trial_that_does_not_fit_fails_alone(faulty: int) -> None:
    data = random_data()
    fitting = [spec("lora", 0, epochs=2), spec("bitfit", 1, epochs=2)]
    specs = [*fitting[:faulty], spec("prompt", 9, {"num_virtual_tokens": 500}), *fitting[faulty:]]
    together, _ = train(specs, data)
    failed = [event for event in together if isinstance(event, Failed)]
    assert [(event.trial, event.step) for event in failed] == [("prompt-9", 0)]
    assert "prompt puts 500 to it" in failed[0].reason and "\n" not in failed[0].reason
    assert_untouched(together, fitting)


@pytest.mark.parametrize("where", ["finish_step", "judge", "write_final"])
def test_an_error_in_one_trials_own_work_is_its_own(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data, work = random_data(), getattr(Trial, where)

    def fails(trial: Trial, *given: Any) -> Any:
        if trial.spec.id == "norm-3":
            raise ValueError("such a method\nand more")
        return work(trial, *given)

    others = [spec("lora", 0, epochs=2), spec("bitfit", 1, epochs=2)]
    with monkeypatch.context() as patch:
        patch.setattr(Trial, where, fails)
        together, _ = train([others[0], spec("norm", 3), others[1]], data, folder=tmp_path)
    assert [event.reason for event in together if isinstance(event, Failed)] == ["ValueError: such a method"]
    assert_untouched(together, others)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("where", ["forward", "backward", "evaluation", "last evaluation"])
def test_an_error_in_one_trials_passes_is_its_own(where: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data, others = random_data(), [MIXED[0], *MIXED[2:4]]
    assert any(one.training.gradient_accumulation_steps == 2 for one in others)
    whole, asked = Backbone.logits, 0

    def failing(self: Backbone, pack: Pack, heads: Any, streams: Any, *more: Any) -> Any:
        nonlocal asked
        logits = whole(self, pack, heads, streams, *more)
        if all(slot % SLOTS != 1 for slot in heads) or bool(streams) is not (where in ("forward", "backward")):
            return logits
        asked += 1
        if asked <= {"last evaluation": 2 * passes}.get(where, 5 if streams else 0):
            return logits
        if where == "backward":
            torch.autograd.backward([one.sum() for one in logits.values()], retain_graph=True)
        raise IndexError("such a method\nand more")

    passes = len(_passes(tiny_backbone(), [0], data.tokens.sequence_lengths[data.splits["validation"]]))
    monkeypatch.setattr(Backbone, "logits", failing)
    for module in ("micro_batches", "evaluation"):
        monkeypatch.setattr(f"fleetune.engine.{module}.shares_packs", lambda backbone: shared)
    together, _ = train([others[0], spec("ia3", 9, epochs=2), *others[1:]], data)
    monkeypatch.undo()
    failed = [event for event in together if isinstance(event, Failed)]
    assert [(event.trial, event.reason) for event in failed] == [("ia3-9", "IndexError: such a method")]
    if where != "last evaluation":
        assert failed[0].step < 20
    assert_untouched(together, others)


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_what_every_trials_pass_raises_ends_the_fleet(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Backbone.logits

    def failing(self: Backbone, pack: Pack, heads: Any, streams: Any, *more: Any) -> Any:
        if bool(streams) is (where == "training"):
            raise IndexError("of the backbone")
        return whole(self, pack, heads, streams, *more)

    monkeypatch.setattr(Backbone, "logits", failing)
    with pytest.raises(IndexError, match="of the backbone"):
        train([spec("lora", 0), spec("bitfit", 1)], random_data())


@pytest.mark.parametrize("error", [torch.AcceleratorError("device-side assert"), RunTakenOverError("by another")])
def test_an_error_of_the_device_or_the_run_is_no_trials_own(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Backbone.logits

    def failing(self: Backbone, pack: Pack, heads: Any, *more: Any) -> Any:
        if any(slot % SLOTS == 1 for slot in heads):
            raise error
        return whole(self, pack, heads, *more)

    monkeypatch.setattr(Backbone, "logits", failing)
    with pytest.raises(type(error)):
        train([spec("lora", 0), spec("bitfit", 1)], random_data())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError(), StorageError("full")])
def test_what_concerns_all_ends_the_fleet(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(trial: Trial) -> None:
        raise error

    monkeypatch.setattr(Trial, "finish_step", fails)
    with pytest.raises(type(error)):
        train([spec("lora", 0), spec("bitfit", 1)], random_data())


@pytest.mark.parametrize(
    ("value", "splits", "said"),
    [
        (np.nan, ("train", "validation", "test"), "parameters became infinite or NaN at step 1"),
        (np.inf, ("train",), "parameters became infinite or NaN at step 1"),
        (1e38, ("train", "validation"), "logits on validation became infinite or NaN by step 1"),
        (1e38, ("train", "test"), "logits on test became infinite or NaN by step 1"),
    ],
)
def test_a_trial_that_explodes_in_its_last_step_is_not_done(
    value: float, splits: tuple[SplitName, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, finish = random_data(), Trial.finish_step
    data = replace(data, splits={split: data.splits[split] for split in splits})

    def explode(trial: Trial) -> Any:
        made = finish(trial)
        with torch.no_grad():
            for tensor in trial.parameters.tensors.values():
                tensor.fill_(value)
        return made

    monkeypatch.setattr(Trial, "finish_step", explode)
    events = list(Fleet(tiny_backbone(precision="fp32"), [spec("full", 0, max_steps=1)], data).train())
    assert [event.reason for event in events if isinstance(event, Failed)] == [said]
    assert not [event for event in events if isinstance(event, Finished | Evaluated)]


def test_logits_that_are_no_numbers_fail_their_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    data, keep = random_data(), keep_logits

    def some_without_number(backbone: Backbone, trials: list[Trial], *given: Any) -> Any:
        kept = keep(backbone, trials, *given)
        for trial in trials:
            if trial.spec.id == "norm-3":
                kept[trial.slot].put(np.array([0]), np.full((1, 3), np.nan, np.float32))
        return kept

    others = [spec("lora", 0, epochs=2), spec("bitfit", 1, epochs=2)]
    with monkeypatch.context() as patch:
        patch.setattr("fleetune.engine.fleet.keep_logits", some_without_number)
        together, _ = train([*others, spec("norm", 3)], data)
    (failed,) = (event for event in together if isinstance(event, Failed))
    assert failed.trial == "norm-3" and failed.reason.startswith("logits on validation became infinite or NaN by step")
    assert not [event for event in together if isinstance(event, Evaluated) and event.trial == "norm-3"]
    assert_untouched(together, others)


@pytest.mark.parametrize("evaluation", [1, 2, 4])
def test_a_stop_in_an_evaluation_saves_what_was_trained(
    evaluation: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data, predict, entered, asked = random_data(), Fleet._predict, [], []
    specs = [spec("lora", 0, epochs=2), spec("bitfit", 1, epochs=2, early_stopping_patience=1)]

    def stop(fleet: Fleet, *given: Any) -> Any:
        entered.append(1)
        asked.extend([1] if len(entered) == evaluation else [])
        return predict(fleet, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Fleet, "_predict", stop)
        fleet = Fleet(tiny_backbone(), specs, data, FolderCheckpoints(tmp_path), 10**9, is_stopped=lambda: bool(asked))
        before = list(fleet.train())
    assert asked, "the fleet was over before"
    assert sum(isinstance(event, Evaluated) for event in before) == 2 * min(evaluation - 1, 2)
    store = FolderCheckpoints(tmp_path)
    assert store.latest() is not None
    after = list(Fleet(tiny_backbone(), specs, data, store).train())
    assert not {(e.trial, e.step) for e in before if isinstance(e, Stepped)} & {
        (e.trial, e.step) for e in after if isinstance(e, Stepped)
    }, "a step was made twice"
    assert_untouched([*before, *after], specs)


@pytest.mark.parametrize("kind", sorted(all_methods()))
def test_frozen_weights_stay_bit_for_bit(kind: str) -> None:
    backbone = tiny_backbone(precision="fp32")
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    fleet = Fleet(backbone, [spec(kind, epochs=2)], random_data())
    start = fleet.trials[0].parameters.state()
    list(fleet.train())
    after = backbone.model.state_dict()
    assert before.keys() == after.keys(), "the modules are as they were before the fleet"
    assert all(torch.equal(before[name], after[name]) for name in before)
    end = fleet.trials[0].parameters.state()
    trained = [name for group in fleet.trials[0].parameters.groups for name in group.shapes]
    assert trained
    assert all(not torch.equal(start[name], end[name]) for name in trained), "every trained tensor has moved"


@pytest.mark.parametrize("kind", sorted(kind for kind, method in all_methods().items() if method.starts_as_no_op))
def test_a_fresh_delta_changes_nothing(kind: str) -> None:
    from fleetune.engine.evaluation import predict_logits

    data = random_data()
    texts = data.splits["test"]
    logits: list[Any] = []
    for method in (kind, "head"):
        fleet = Fleet(tiny_backbone(), [spec(method, max_steps=1)], data)
        fleet._batches.attach(fleet.trials[0])
        logits.append(predict_logits(fleet.backbone, fleet.trials, data.tokens, texts)[0])
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-6)


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(folder.rglob("*.safetensors"))
    return {str(file.relative_to(folder).parent): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    "stop_after", [pytest.param(1, marks=pytest.mark.slow), 23, pytest.param(70, marks=pytest.mark.slow)]
)
def test_a_stopped_fleet_ends_as_one_never_stopped(tmp_path: Path, stop_after: int) -> None:
    data = random_data()
    whole, _ = train(MIXED, data, folder=tmp_path / "whole")
    fleet = partial(Fleet, tiny_backbone(), MIXED, data, FolderCheckpoints(tmp_path / "stopped"))
    count = itertools.count(1)
    first = train_until(fleet, lambda event: next(count) >= stop_after)
    resumed, _ = train(MIXED, data, folder=tmp_path / "stopped")
    for one in MIXED:
        a, b = finished(whole, one.id), finished([*first, *resumed], one.id)
        assert (a.steps, a.best_step) == (b.steps, b.best_step)
        assert losses(first, one.id) + losses(resumed, one.id) == losses(whole, one.id)
        assert all(np.array_equal(a.predictions[split], b.predictions[split]) for split in a.predictions)
    assert contents(tmp_path / "whole") == contents(tmp_path / "stopped")


@pytest.mark.parametrize("kind", ["last", "best"])
def test_a_damaged_checkpoint_is_put_aside_for_the_one_before(tmp_path: Path, kind: str) -> None:
    data, specs = random_data(), MIXED[:3]
    whole, _ = train(specs, data, folder=tmp_path / "whole")
    store = FolderCheckpoints(tmp_path / "stopped")
    fleet = partial(Fleet, tiny_backbone(), specs, data, store, 0.0)
    train_until(fleet, lambda event: isinstance(event, Stepped) and event.step == 17)
    newest = store.latest()
    assert newest is not None
    file = tmp_path / "stopped" / newest.trials[1].files[kind].path
    blob = bytearray(file.read_bytes())
    blob[-1] ^= 1
    file.write_bytes(bytes(blob))
    resumed = list(fleet().train())
    assert [damaged.path for damaged in store.damaged] == [f"{specs[1].id}/{kind}/{file.name}"]
    aside = tmp_path / "stopped" / specs[1].id / "quarantine" / f"{kind}-{file.name}"
    assert aside.read_bytes() == bytes(blob)
    aside.unlink()
    for one in specs:
        rest = losses(resumed, one.id)
        assert len(rest) < len(losses(whole, one.id)), "it did not begin anew"
        assert rest == losses(whole, one.id)[-len(rest) :]
    assert contents(tmp_path / "whole") == contents(tmp_path / "stopped")


def test_a_finished_trial_that_is_damaged_is_noticed_by_its_readers(tmp_path: Path) -> None:
    train([MIXED[0]], random_data(), folder=tmp_path)
    folder = tmp_path / MIXED[0].id / "best"
    assert load_checkpoint(folder) is not None
    file = next(folder.glob("*.safetensors"))
    blob = bytearray(file.read_bytes())
    blob[-1] ^= 1
    file.write_bytes(bytes(blob))
    with pytest.raises(RunError, match="checksum"):
        load_checkpoint(folder)


def test_multi_label_trains() -> None:
    data = random_data(multi_label=True)
    events, _ = train([spec("lora", epochs=20, learning_rate=1e-2, metric="f1_micro", backbone_dropout=False)], data)
    values = losses(events, "lora-0")
    assert np.mean(values[-10:]) < 0.8 * np.mean(values[:10])
    assert finished(events, "lora-0").predictions["test"].shape == (9, 3)


def test_without_validation_the_last_step_is_the_best() -> None:
    data = random_data()
    data.splits["validation"] = np.empty(0, dtype=np.int64)
    events, _ = train([spec("lora", epochs=2)], data)
    end = finished(events, "lora-0")
    assert end.best_step == end.steps == 20
    assert list(end.predictions) == ["test"]


@pytest.mark.parametrize("shared", [False, True])
def test_out_of_memory_changes_no_trial(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    data, specs = random_data(), MIXED[:4]
    expected, _ = train(specs, data)
    whole = Backbone.logits

    def small(self: Backbone, pack: Pack, heads: Any, streams: Any, *more: Any) -> Any:
        if streams and pack.tokens > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits = whole(self, pack, heads, streams, *more)
        if streams and pack.tokens > 45:
            torch.autograd.backward([one.sum() for one in logits.values()], retain_graph=True)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return logits

    monkeypatch.setattr(Backbone, "logits", small)
    monkeypatch.setattr("fleetune.engine.micro_batches.shares_packs", lambda backbone: shared)
    events, _ = train(specs, data)
    for one in specs:
        np.testing.assert_allclose(losses(events, one.id), losses(expected, one.id), rtol=1e-9)
    assert not any(isinstance(event, Failed) for event in events)


@pytest.mark.parametrize(("training", "passes"), [(True, 30), (False, 2)])
def test_what_is_saved_when_memory_runs_out_is_taken_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, training: bool, passes: int
) -> None:
    data, specs = random_data(), MIXED[:4]
    assert any(one.training.gradient_accumulation_steps == 2 for one in specs)
    expected, _ = train(specs, data)
    whole, left = Backbone.logits, passes

    def failing(self: Backbone, pack: Pack, heads: Any, streams: Any, *more: Any) -> Any:
        nonlocal left
        logits = whole(self, pack, heads, streams, *more)
        left -= bool(streams) is training
        if left < 0:
            if streams:
                torch.autograd.backward([one.sum() for one in logits.values()], retain_graph=True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits

    monkeypatch.setattr(Backbone, "logits", failing)
    with pytest.raises(torch.OutOfMemoryError):
        train(specs, data, folder=tmp_path)
    monkeypatch.undo()
    events, _ = train(specs, data, folder=tmp_path)
    for one in specs:
        after, before = finished(events, one.id), finished(expected, one.id)
        assert (after.steps, after.best_step) == (before.steps, before.best_step)
        assert losses(events, one.id)
        np.testing.assert_allclose(
            losses(events, one.id), losses(expected, one.id)[-len(losses(events, one.id)) :], rtol=1e-9
        )
        for split, logits in before.predictions.items():
            np.testing.assert_allclose(after.predictions[split], logits, rtol=1e-5, atol=1e-6)
        evaluated = {event.step for event in expected if isinstance(event, Evaluated) and event.trial == one.id}
        assert before.best_step in evaluated


def test_a_text_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Backbone, "logits", never)
    with pytest.raises(torch.OutOfMemoryError):
        train(MIXED[:1], random_data())


def test_texts_longer_than_the_backbone_takes_are_refused_at_once() -> None:
    data = random_data()
    backbone = tiny_backbone("roberta")
    limit = backbone.max_positions
    assert limit == 64
    longest = random_tokens(len(data.labels), longest=2 * limit)
    with pytest.raises(RecipeError, match="max_tokens = 64"):
        Fleet(backbone, [spec("lora")], replace(data, tokens=longest))
