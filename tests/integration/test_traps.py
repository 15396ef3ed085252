"""Traps that users of transformers and PEFT fell into: each has a test that would catch it here."""

from __future__ import annotations

import csv
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from fleetune import TextClassifier
from fleetune.bundle import save_bundle
from fleetune.compare.summary import compare
from fleetune.engine.backbone import Backbone, load_backbone
from fleetune.engine.checkpoint import load_checkpoint
from fleetune.engine.config import BackboneConfig
from fleetune.engine.evaluation import predict_logits, trial_logits
from fleetune.engine.events import Evaluated
from fleetune.engine.fleet import Fleet
from fleetune.engine.generation import FolderCheckpoints
from fleetune.engine.lanes import lanes
from fleetune.errors import MethodError
from fleetune.lab.export import export_trial
from fleetune.lab.recipe import load_recipe
from fleetune.lab.results import load_results
from fleetune.lab.runner import run
from fleetune.methods import get
from tests.conftest import BAD, GOOD, PLAIN
from tests.integration.test_bundle import loaded_by_others
from tests.tiny import (
    ARCHITECTURES,
    plain_model,
    random_data,
    spec,
    tiny_backbone,
    tiny_folder,
)

ELSEWHERE = {
    "a decoder has no pad token (transformers#34055)": "integration/test_pad_token.py::"
    "test_a_bundle_classifies_padded_batches_elsewhere",
    "the wrong pad side, the wrong last token (transformers#35352, #35909)": "integration/test_families.py::"
    "test_a_decoder_is_the_plain_one_whatever_side_is_padded",
    "the best checkpoint is not what predicts (peft#394)": "integration/test_engine_reference.py::"
    "test_the_best_checkpoint_is_what_predicts",
    "resuming differs (transformers#39215, #30478)": "integration/test_exactness.py::"
    "test_a_resumed_fleet_goes_on_as_if_never_stopped",
    "resuming differs, stopped in the middle of a step": "integration/test_fleet.py::"
    "test_a_stopped_fleet_ends_as_one_never_stopped",
    "merged or reloaded weights give other answers (peft#1836, #2502)": "integration/test_bundle.py::"
    "test_reloaded_logits_are_the_trials",
    "a classifier answers otherwise once it was saved": "integration/test_classifier.py::"
    "test_it_is_the_same_after_saving_and_loading",
    "another backbone is served in silence": "integration/test_bundle.py::test_another_backbone_is_refused",
    "each kind of degenerate trial (peft#2642)": "unit/test_compare.py::test_each_kind_of_degeneracy_is_named",
    "label names sorted as strings": "unit/test_data_labels.py::test_numbers_are_in_order_of_value",
}
"""Traps that other tests catch."""
WORDS_OF: dict[str, list[str]] = {"10": GOOD, "2": BAD, "1": ["film", "book", "meal", "day", "place"]}


def numbered(number: int) -> list[str]:
    """Returns words that say nothing, other ones for each number, so that no text is another's double."""
    return [PLAIN[number % 15], PLAIN[number // 15 % 15]]


@pytest.mark.parametrize("trap", ELSEWHERE)
def test_the_trap_has_its_test_elsewhere(trap: str) -> None:
    file, _, name = ELSEWHERE[trap].partition("::")
    assert f"\ndef {name}(" in (Path(__file__).parents[1] / file).read_text()


def trained_head(architecture: str, kind: str) -> tuple[Backbone, Any, dict[str, torch.Tensor]]:
    """Returns a backbone and what one epoch of training made of a trial on it."""
    backbone = tiny_backbone(architecture, precision="fp32")
    fleet = Fleet(backbone, [spec(kind, epochs=1, learning_rate=1e-2)], random_data())
    start = fleet.trials[0].parameters.state()
    list(fleet.train())
    end = fleet.trials[0].parameters.state()
    for name in backbone.shape.head:
        assert not torch.equal(start[name], end[name]), f"{name} was not trained"
    return backbone, fleet.trials[0].spec.method, end


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        pytest.param(
            architecture, kind, marks=() if kind == "lora" or architecture == "distilbert" else pytest.mark.slow
        )
        for architecture in ("distilbert", "roberta", "electra", "deberta-v2", "mpnet", "llama", "phi")
        for kind in ("lora", "ia3", "norm")
    ],
)
def test_the_head_is_trained_saved_and_restored_whole(architecture: str, kind: str, tmp_path: Path) -> None:
    """peft#310, #577, #2171: a head that is not saved comes back random; DistilBERT's `pre_classifier` stays so."""
    backbone, method, tensors = trained_head(architecture, kind)
    new = backbone.architecture.new
    assert {name.rpartition(".")[0] for name in backbone.shape.head} == set(new)
    save_bundle(tmp_path / "b", backbone, method, tensors, ["a", "b", "c"])
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = loaded_by_others(tmp_path / "b", backbone.folder)
        own = {
            name.removeprefix("base_model.model.").replace(".modules_to_save.default", ""): value
            for name, value in model.named_parameters()
        }
        for name in backbone.shape.head:
            assert torch.equal(own[name], tensors[name]), name


@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
def test_the_number_and_names_of_labels_are_kept(tmp_path: Path, merge: bool) -> None:
    """peft#1486: the reloaded model has two labels called LABEL_0 and LABEL_1."""
    names = [str(number) for number in (10, 2, 33, 4, 1, 0, 7, 5, 6, 8, 9, 3)]
    backbone = tiny_backbone("roberta", num_labels=12, precision="fp32")
    fleet = Fleet(backbone, [spec("lora")], random_data(12))
    save_bundle(tmp_path / "b", backbone, get("lora")(), fleet.trials[0].parameters.state(), names, merge=merge)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "b" / ("config.json" if merge else "model_config.json"))
    assert config.num_labels == 12
    assert [config.id2label[number] for number in range(12)] == names
    assert config.label2id == {name: number for number, name in enumerate(names)}
    model = loaded_by_others(tmp_path / "b", backbone.folder)
    assert [model.config.id2label[number] for number in range(12)] == names
    ids = torch.randint(3, 50, (2, 7))
    assert model(input_ids=ids).logits.shape == (2, 12)


def test_numbers_as_labels_mean_the_same_from_the_file_to_the_answer(tiny_bert: Path, tmp_path: Path) -> None:
    """transformers#12822: sorted as strings, "10" comes before "2", and every answer means another label."""
    rng = np.random.default_rng(0)
    with (tmp_path / "numbers.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(180):
            label = ("10", "2", "1")[number % 3]
            writer.writerow([" ".join([*rng.choice(WORDS_OF[label], 5), *numbered(number)]), label])
    recipe = tmp_path / "r.toml"
    recipe.write_text(f"""
[data]
path = "numbers.csv"
leaks = "allow"
split = {{ validation = 0.2, test = 0.2 }}
[backbone]
model = "{tiny_bert}"
[training]
epochs = 10
learning_rate = 1e-2
precision = "fp32"
metric = "accuracy"
seeds = 1
[[method]]
kind = "lora"
target_modules = ["all-linear"]
""")
    run(load_recipe(recipe), tmp_path / "run")
    (trial,) = load_results(tmp_path / "run").trials
    assert trial.label_names == ["1", "2", "10"]
    assert trial.correct("test").mean() > 0.8
    export_trial(tmp_path / "run", "best", tmp_path / "b", merge=True)
    texts = [" ".join(words[:5]) for words in WORDS_OF.values()]
    ours = TextClassifier.load(tmp_path / "b").predict(texts)
    theirs = transformers.pipeline("text-classification", str(tmp_path / "b"))(texts)
    assert [str(label) for label in ours] == [answer["label"] for answer in theirs] == list(WORDS_OF)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama"])
def test_a_classifier_to_start_from_may_have_its_labels_in_another_order(architecture: str, tmp_path: Path) -> None:
    """transformers#12822: by the data's order in the place of the model's, 4 % are right instead of 91 %."""
    model = plain_model(architecture, dtype=torch.float32)
    model.config.id2label = {0: "contradiction", 1: "Entailment", 2: "neutral"}
    model.config.label2id = {name: number for number, name in model.config.id2label.items()}
    model.save_pretrained(tmp_path / "m")
    config = BackboneConfig(model=str(tmp_path / "m"))
    ours = ["entailment", "neutral", "contradiction"]
    same, moved, other = (load_backbone(config, 3, "fp32", labels) for labels in ((), ours, ["good", "bad", "neutral"]))
    data, texts = random_data(), np.arange(8)
    logits = {}
    for name, backbone in (("same", same), ("moved", moved)):
        head = backbone.head_from_checkpoint
        assert head.keys() == backbone.shape.head.keys()
        logits[name] = trial_logits(backbone, get("head")(), head, data.tokens, texts)
    assert same.notes != moved.notes
    assert "another order" in moved.notes[-1]
    np.testing.assert_allclose(logits["moved"], logits["same"][:, [1, 2, 0]], atol=1e-6)
    last = moved.architecture.stages[-1].name
    assert not any(name.startswith(last) for name in other.head_from_checkpoint)
    assert "other labels (contradiction" in other.notes[-1]


@pytest.mark.parametrize("stop", [pytest.param(False, marks=pytest.mark.slow), True], ids=["through", "resumed"])
def test_the_best_checkpoint_outlives_all_that_are_saved_after_it(tmp_path: Path, stop: bool) -> None:
    """transformers#36201, #11748, peft#394: a limit on checkpoints deletes the best one, or another is called best."""
    data = random_data()
    fields: dict[str, Any] = {"max_steps": 60, "evaluate_every": 3, "metric": "log_loss", "backbone_dropout": False}
    one = spec("lora", 0, learning_rate=1e-2, schedule="constant", **fields)
    values: dict[int, float] = {}
    seen: dict[int, dict[str, torch.Tensor]] = {}
    for limit in (34, None) if stop else (None,):
        is_asked = False
        store = FolderCheckpoints(tmp_path)
        fleet = Fleet(tiny_backbone(precision="fp32"), [one], data, store, 0.0, lambda: is_asked)  # noqa: B023
        for event in fleet.train():
            if isinstance(event, Evaluated):
                values[event.step] = event.metrics["log_loss"]
                seen[event.step] = fleet.trials[0].parameters.state()
            is_asked = limit is not None and len(values) * 3 >= limit
    best = min(values, key=values.__getitem__)
    assert len(values) == 20
    assert best < 30, "the best is to be followed by many saves"
    saved = load_checkpoint(tmp_path / one.id / "best")
    assert saved is not None
    for name, tensor in saved[0].items():
        assert torch.equal(tensor, seen[best][name]), name
    for folder in ("best", "last"):
        assert len(list((tmp_path / one.id / folder).glob("*.safetensors"))) == 1


def test_what_is_exported_is_the_best_and_not_the_last(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """peft#394, transformers#36201: the metrics are of the best checkpoint, and the weights of another."""
    training = {"epochs": 8, "precision": "fp32", "learning_rate": 0.3, "seeds": 1, "metric": "log_loss"}
    recipe = load_recipe(write_recipe(training=training, method=[{"kind": "lora", "rank": 2}]))
    run(recipe, tmp_path / "run")
    (trial,) = load_results(tmp_path / "run").trials
    assert trial.best_step != trial.history[-1]["step"]
    export_trial(tmp_path / "run", "best", tmp_path / "b")
    exported = load_file(tmp_path / "b" / "adapter_model.safetensors")["base_model.model.classifier.weight"]
    folder = tmp_path / "run" / "trials" / trial.id
    best, last = (load_checkpoint(folder / name) for name in ("best", "last"))
    assert best is not None
    assert last is not None
    assert torch.equal(exported, best[0]["classifier.weight"])
    assert not torch.equal(exported, last[0]["parameters/classifier.weight"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_default_targets_are_those_that_the_method_means(architecture: str, tmp_path: Path) -> None:
    """peft#377: IA3's defaults match `attention.output.dense` by suffix, and DistilBERT has none at all."""
    backbone = tiny_backbone(architecture, precision="fp32")
    shape = backbone.shape
    layers = {site.layer for site in shape.sites if site.layer is not None}
    wanted = {"ia3": ({"key", "value"}, {"feed_forward_out"}), "lora": ({"query", "value"}, set())}
    for kind, (projections, others) in wanted.items():
        method = get(kind)()
        roles = [site.role for site in method.sites(shape)]
        fused = {"query_key_value"} if "query_key_value" in roles else projections
        assert sorted(roles) == sorted([*fused, *others] * len(layers)), kind
        tensors = Fleet(backbone, [spec(kind)], random_data()).trials[0].parameters.state()
        folder = tmp_path / kind
        save_bundle(folder, backbone, method, tensors, ["a", "b", "c"])
        model = loaded_by_others(folder, backbone.folder)
        layer: Any = peft.tuners.ia3.IA3Layer if kind == "ia3" else peft.tuners.lora.LoraLayer
        touched: dict[str, Any] = {
            name.removeprefix("base_model.model."): module
            for name, module in model.named_modules()
            if isinstance(module, layer)
        }
        assert touched.keys() == {site.name for site in method.sites(shape)}
        if kind == "ia3":
            inputs = {name for name, module in touched.items() if module.is_feedforward}
            assert inputs == {site.name for site in method.sites(shape) if site.role == "feed_forward_out"}


def test_evaluation_holds_no_more_than_a_pass_and_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers#8476: what the model gives for every batch is kept until all are done, and memory runs out."""
    monkeypatch.setattr("fleetune.engine.evaluation.tokens_in_one_pass", lambda: 64)
    data = random_data(train=300)
    fleet = Fleet(tiny_backbone(precision="fp32"), [spec("lora", 0), spec("lora", 1)], data)
    for trial in fleet.trials:
        fleet._batches.attach(trial)
    hidden: list[weakref.ref[torch.UntypedStorage]] = []
    most = 0
    whole = Backbone._hidden

    def watched(backbone: Backbone, pack: Any) -> torch.Tensor:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in hidden))
        result = whole(backbone, pack)
        storage = result.untyped_storage()
        result.fleetune_storage = storage  # type: ignore[attr-defined]
        hidden.append(weakref.ref(storage))
        return result

    monkeypatch.setattr(Backbone, "_hidden", watched)
    texts = np.arange(300)
    logits = predict_logits(fleet.backbone, fleet.trials, data.tokens, texts)
    assert len(hidden) > 50
    assert most <= lanes().count
    assert sum(ref() is not None for ref in hidden) == 0
    assert {slot: (values.shape, values.dtype, values.base is None) for slot, values in logits.items()} == {
        slot: ((300, 3), np.dtype(np.float32), True) for slot in (0, 1)
    }


def test_a_method_that_never_leaves_the_majority_class_is_shown_as_that(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """peft#2642: 80 % right, and every text in the class that four of five are of."""
    rng = np.random.default_rng(0)
    with (tmp_path / "uneven.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(200):
            words = [*rng.choice(BAD if number % 5 == 0 else GOOD, 4), *numbered(number)]
            writer.writerow([" ".join(words), "neg" if number % 5 == 0 else "pos"])
    recipe = write_recipe(
        data={"path": "uneven.csv", "leaks": "allow", "split": {"validation": 0.2, "test": 0.2}},
        training={"epochs": 4, "precision": "fp32", "learning_rate": [2e-2, 3.0], "seeds": 2, "metric": "accuracy"},
        method=[{"kind": "lora", "target_modules": ["all-linear"]}],
    )
    run(load_recipe(recipe), tmp_path / "run")
    summary = compare(load_results(tmp_path / "run").trials)
    learned, stuck = summary.rows
    assert len(stuck.degenerate) == 2
    assert all("for every text" in reason or "majority" in reason for reason in stuck.degenerate.values())
    assert learned.degenerate == {}
    assert summary.verdict.recommended == learned.name


def test_tiny_models_are_like_fresh_checkpoints() -> None:
    """A checkpoint with a head would hide a head that is not saved."""
    for architecture in ARCHITECTURES:
        names = load_file(tiny_folder(architecture) / "model.safetensors")
        assert not any(name.startswith(("classifier", "score", "pre_classifier")) for name in names)


def test_a_feed_forward_module_that_is_no_target_is_named() -> None:
    """IA3 would rescale outputs where inputs were meant."""
    settings = {"target_modules": ["key", "output.dense"], "feedforward_modules": ["output.dens"]}
    with pytest.raises(MethodError, match=r"output\.dens' is none of the targets"):
        get("ia3")(**settings).sites(tiny_backbone("bert").shape)
