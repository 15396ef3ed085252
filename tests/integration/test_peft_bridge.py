"""PEFT's types train as any method does: nothing frozen moves, everything trained does, and PEFT reads the bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn

from fleetune.bundle import load_bundle, save_bundle
from fleetune.cli.entry import run_command_line
from fleetune.engine.evaluation import trial_logits
from fleetune.engine.events import Finished, Stepped
from fleetune.engine.fleet import Fleet
from fleetune.engine.generation import FolderCheckpoints
from fleetune.engine.shape import shape_from_config
from fleetune.engine.starts import plan_parameters
from fleetune.errors import BundleError, MethodError
from fleetune.methods import get
from fleetune.methods.base import BackboneShape, InstalledTensor, Method, ParameterSpec, Site
from fleetune.methods.peft_types import REFUSED
from tests.peft_types import CHIEF, WORKS
from tests.tiny import (
    random_data,
    random_tokens,
    spec,
    tiny_backbone,
    tiny_folder,
    train_until,
)

LABELS = ["no", "maybe", "yes"]
TOKENS = random_tokens(10, first_id=3)
DATA = random_data()
ARCHITECTURES = ("bert", "llama", "distilbert", "modernbert")
UNUSED = {"GLORA"}
"""Types with parameters for biases, which some modules lack."""
UNMERGED = {("BEFT", "llama"), ("BEFT", "modernbert")}
"""A bias where no module has one."""
CASES = [
    pytest.param(architecture, name, id=f"{architecture}-{name}", marks=() if quick else pytest.mark.slow)
    for architecture in ARCHITECTURES
    for name in sorted(WORKS)
    for quick in [name in CHIEF and architecture == "bert"]
]


def bridged(name: str, **options: Any) -> Method:
    return get("peft")(type=name.lower(), options={**WORKS.get(name, {}), **options})


def losses(events: list[Any]) -> list[float]:
    return [event.loss for event in events if isinstance(event, Stepped)]


@pytest.mark.parametrize(("architecture", "name"), CASES)
def test_a_type_trains_and_peft_reads_its_bundle(tmp_path: Path, architecture: str, name: str) -> None:
    backbone, method = tiny_backbone(architecture, precision="fp32"), bridged(name)
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    modules = {path: type(module) for path, module in backbone.model.named_modules()}
    fleet = Fleet(backbone, [spec("peft", settings=method.settings, max_steps=4, learning_rate=0.02)], DATA)
    start = fleet.trials[0].parameters.state()
    list(fleet.train())
    end = fleet.trials[0].parameters.state()
    assert {path: type(module) for path, module in backbone.model.named_modules()} == modules
    after = backbone.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before), "frozen weights are bit for bit the same"

    specs = {
        f"{place}::{key}": one for place, many in method.specs(backbone.shape).items() for key, one in many.items()
    }
    assert specs.keys() | backbone.shape.head.keys() == end.keys()
    for key, value in end.items():
        trained = key not in specs or specs[key].trained
        assert trained != torch.equal(value, start[key]) or name in UNUSED, key
    from_config = shape_from_config(tiny_folder(architecture), 3)
    if from_config.head == backbone.shape.head:  # a checkpoint may have a part of what its configuration calls new
        assert method.expected_parameters(from_config) == sum(one.size for one in specs.values() if one.trained)

    expected = trial_logits(backbone, method, end, TOKENS)
    difference = save_bundle(tmp_path / "b", backbone, method, end, LABELS, probe=TOKENS)
    assert difference is not None and difference < 1e-4
    bundle = load_bundle(tmp_path / "b")
    np.testing.assert_allclose(
        trial_logits(bundle.open_backbone("fp32"), bundle.method, bundle.tensors, TOKENS), expected, atol=2e-5
    )
    document = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert document["peft_type"] == name
    assert peft.PeftConfig.from_pretrained(str(tmp_path / "b")).peft_type == name
    if (name, architecture) in UNMERGED:
        with pytest.raises(MethodError, match="cannot be merged"):
            save_bundle(tmp_path / "m", backbone, method, end, LABELS, merge=True)
    else:
        merged = save_bundle(tmp_path / "m", backbone, method, end, LABELS, probe=TOKENS, merge=True)
        assert merged is not None and merged < 1e-4


def test_it_computes_as_the_native_method() -> None:
    backbone = tiny_backbone(precision="fp32")
    native, ours = get("lora")(rank=4, alpha=8), bridged("LORA", lora_alpha=8)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: 0.3 * torch.randn(plan.shape, generator=generator)
        for name, plan in plan_parameters(backbone, native, 0).items()
    }
    renamed = {f"{name}.weight" if "lora_" in name else name: tensor for name, tensor in tensors.items()}
    got = trial_logits(backbone, ours, renamed, TOKENS)
    np.testing.assert_allclose(got, trial_logits(backbone, native, tensors, TOKENS), atol=1e-5)


@pytest.mark.parametrize("name", ["LOHA", "VBLORA", "HRA"])
def test_starting_values_follow_from_the_seed_alone(name: str) -> None:
    def starts(seed: int) -> dict[str, torch.Tensor]:
        return {key: plan.initial() for key, plan in plan_parameters(backbone, bridged(name), seed).items()}

    backbone = tiny_backbone()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = starts(1)
    assert torch.equal(state, torch.random.get_rng_state()), "nobody else's random numbers are used up"
    torch.rand(7)
    again, other = starts(1), starts(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first if "::" in key)


DROPPING = [("LORA", {"lora_dropout": 0.4}), ("LOHA", {"rank_dropout": 0.4, "module_dropout": 0.3}), ("PVERA", {})]


@pytest.mark.parametrize(("name", "options"), DROPPING)
def test_a_stopped_trial_ends_as_one_never_stopped(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    one = spec("peft", settings=bridged(name, **options).settings, epochs=2, learning_rate=1e-2)
    whole = list(Fleet(tiny_backbone(), [one], DATA).train())
    store = FolderCheckpoints(tmp_path)
    fleet = partial(Fleet, tiny_backbone(), [one], DATA, store)
    first = train_until(fleet, lambda event: isinstance(event, Stepped) and event.step == 7)
    torch.rand(3)
    resumed = list(Fleet(tiny_backbone(), [one], DATA, store).train())
    assert len(losses(first)) == 7
    assert losses(first) + losses(resumed) == losses(whole)
    ends = [next(event for event in run if isinstance(event, Finished)).predictions for run in (whole, resumed)]
    assert all(np.array_equal(ends[0][split], ends[1][split]) for split in ends[0])


@pytest.mark.parametrize(("name", "options"), [*DROPPING[:2], ("LORA", {"lora_dropout": 0.0})])
def test_dropout_is_blind_to_layout_and_parts(name: str, options: dict[str, Any]) -> None:
    """What acts on tokens has masks by place; what acts on weights draws the same for every part of a batch."""
    settings = bridged(name, **options).settings
    one = spec("peft", settings=settings, max_steps=3, learning_rate=1e-2, backbone_dropout=False, head_dropout=0.0)
    seen = []
    for layout, parts in (("packed", 1), ("padded", 1), ("packed", 3)):
        fleet = Fleet(tiny_backbone(layout=layout), [one], DATA)
        fleet._batches.pack_as({"least_parts": parts})
        seen.append(losses(list(fleet.train())))
    np.testing.assert_allclose(seen[1:], [seen[0]] * 2, rtol=1e-9)
    plain = spec("peft", settings={"type": name.lower(), "options": {"r": 4}}, **one.training.model_dump())
    without = losses(list(Fleet(tiny_backbone(), [plain], DATA).train()))
    drops = any(options.values())
    # The first loss is that of a fresh adapter, which adds nothing that could be dropped.
    assert drops != (without[2] == pytest.approx(seen[0][2], rel=1e-9))


def test_a_fleet_of_its_own() -> None:
    backbone, one = tiny_backbone(), spec("peft")
    with pytest.raises(ValueError, match="fleet of its own"):
        Fleet(backbone, [one, spec("lora")], DATA)
    tensors: dict[str, dict[str, torch.Tensor]] = {place: {} for place in one.method.specs(backbone.shape)}
    lora = spec("lora").method
    backbone.attach(0, lora, {site.name: {} for site in lora.sites(backbone.shape)})
    with pytest.raises(ValueError, match="cannot be put beside another"):
        backbone.attach(1, one.method, tensors)


def test_an_initialisation_that_changes_frozen_weights_is_refused() -> None:
    backbone = tiny_backbone(precision="fp32")
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    with pytest.raises(MethodError, match="changes the frozen weights"):
        Fleet(backbone, [spec("peft", settings={"type": "lora", "options": {"init_lora_weights": "pissa"}})], DATA)
    after = backbone.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_a_type_that_mixes_texts_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(REFUSED, "LILY")
    backbone = tiny_backbone(precision="fp32")
    with pytest.raises(MethodError, match="depends on the other texts"):
        backbone.layout_for(get("peft")(type="lily"))
    assert backbone.layout_for(bridged("LOHA")) == ("packed", backbone.layout_reason)


class _AddsFirstToken(nn.Module):
    """Knows texts by rows: right where each text is a row of its own, wrong where they lie end to end."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.frozen = frozen
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(x) + self.weight * x[:, :1]


class _ByRows(Method):
    kind, source, shares_backbone, installs = "by_rows", "", False, True

    def sites(self, shape: BackboneShape) -> list[Site]:
        return [site for site in shape.sites if site.role == "value" and site.layer == 0]

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        return {"weight": ParameterSpec((1,), initial="computed")}

    def forward(self, *_: Any) -> Any:
        raise NotImplementedError

    def install(self, model: nn.Module, shape: BackboneShape) -> dict[str, dict[str, InstalledTensor]]:
        (site,) = self.sites(shape)
        parent, _, name = site.name.rpartition(".")
        added = _AddsFirstToken(model.get_submodule(site.name))
        setattr(model.get_submodule(parent), name, added)
        held: Any = added._parameters
        return {site.name: {"weight": InstalledTensor(added.weight, ((held, "weight"),))}}


def test_what_is_right_with_padding_alone_is_padded_and_the_backbone_is_as_before() -> None:
    backbone, method = tiny_backbone(precision="fp32"), _ByRows()
    plain = backbone.layout, backbone.layout_reason
    layout, reason = backbone.layout_for(method)
    assert layout == "padded" and "by_rows" in reason
    tensors = {name: plan.initial() for name, plan in plan_parameters(backbone, method, 0).items()}
    got = trial_logits(backbone, method, tensors, TOKENS)
    assert (backbone.layout, backbone.layout_reason) == plain
    single = np.concatenate([trial_logits(backbone, method, tensors, TOKENS, np.array([n])) for n in range(10)])
    np.testing.assert_allclose(got, single, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("LOHA", {"rr": 4}, "unknown option 'rr'; did you mean 'r'"),
        ("LORA", {"alpha": 4}, "did you mean 'lora_alpha'"),
        ("LOHA", {"target_modules": ["nowhere"]}, "'nowhere' matches no linear module"),
        ("LOHA", {"target_modules": ["classifier"]}, "'classifier' matches no linear module"),
        ("LOHA", {"target_modules": r".*\.nowhere"}, "matches no module"),
        ("LOHA", {"target_modules": 3}, "a list of names, a pattern, or all-linear"),
        ("LOHA", {"layers_to_transform": [9]}, "layers_to_transform leave no module"),
        ("C3A", {"block_size": 256}, "block size should be a factor"),
    ],
)
def test_options_that_do_not_fit_are_named_before_anything_is_loaded(
    name: str, options: dict[str, Any], expected: str
) -> None:
    shape = shape_from_config(tiny_folder("bert"), 3)
    with pytest.raises(MethodError, match=expected) as caught:
        get("peft")(type=name.lower(), options=options).sites(shape)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["0.attention.self.query", "0.attention.self.value", "1.attention.self.query", "1.attention.self.value"]),
        ({"target_modules": ["key"], "layers_to_transform": [1]}, ["1.attention.self.key"]),
        ({"target_modules": r".*\.0\..*\.key"}, ["0.attention.self.key"]),
        ({"target_modules": ["key", "value"], "exclude_modules": ["value"], "layers_to_transform": 0},
         ["0.attention.self.key"]),
    ],
)  # fmt: skip
def test_targets_are_found_as_peft_finds_them(options: dict[str, Any], expected: list[str]) -> None:
    shape = shape_from_config(tiny_folder("bert"), 3)
    names = [site.name for site in get("peft")(type="loha", options=options).sites(shape)]
    assert names == [f"bert.encoder.layer.{name}" for name in expected]
    every = get("peft")(type="loha", options={"target_modules": "all-linear"}).sites(shape)
    assert len(every) == 12 and all(site.layer is not None for site in every)


BERT_BASE = {"model_type": "bert"}
PUBLISHED = [
    ("loha", {}, 24 * 4 * 8 * 768),
    ("hra", {}, 24 * 8 * 768),
    ("oft", {}, 24 * 24 * 32 * 31 // 2),
    ("ln_tuning", {}, 25 * 2 * 768),
    ("lora", {"r": 8}, 294_912),
    ("vblora", {"r": 4}, 256 * 256 + 24 * 2 * 4 * 3 * 256),
    ("fourierft", {}, 24 * 1000),
]


@pytest.mark.parametrize(("name", "options", "adapter"), PUBLISHED)
def test_parameters_of_bert_base_from_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, options: dict[str, Any], adapter: int
) -> None:
    """LoRA's number is Hu et al.'s; the others follow from each paper's shapes, over query and value of 12 layers."""
    (tmp_path / "config.json").write_text(json.dumps(BERT_BASE))
    method = json.dumps({"kind": "peft", "type": name, "options": options})
    assert run_command_line(["methods", "--model", str(tmp_path), "--method", method, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["methods"]
    assert found["parameters"] == {
        "adapter": adapter,
        "head": 1_538,
        "trainable": adapter + 1_538,
        "total": 109_482_240 + 1_538 + adapter,
    }


def test_methods_shows_the_options_of_a_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["methods", "--method", '{"kind": "peft", "type": "oft", "options": {"r": 3}}']) == 0
    printed = capsys.readouterr().out
    assert "options.r = 3" in printed and "options.oft_block_size = 32" in printed and "OFT" in printed
    assert "modules_to_save" not in printed


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "loha", "options": {"r": 3}},
        {"type": "lokr", "options": {}},
        {"type": "loha", "options": {"no_such": 1}},
        {"type": "poly", "options": {}},
    ],
)
def test_a_bundle_whose_parts_do_not_fit_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    from tests.integration.test_bundle import rewrite, trained

    backbone, method = tiny_backbone(precision="fp32"), bridged("LOHA")
    save_bundle(tmp_path / "b", backbone, method, trained(backbone, method), LABELS)
    load_bundle(tmp_path / "b")
    rewrite(tmp_path / "b", method={"kind": "peft", "settings": settings, "source": ""})
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(tmp_path / "b")


def test_from_a_recipe_to_predictions(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = {"kind": "peft", "type": "oft", "options": {"oft_block_size": 8, "target_modules": ["query", "dense"]}}
    training = {"epochs": 6, "precision": "fp32", "learning_rate": 2e-2, "seeds": 1, "metric": "accuracy"}
    recipe = write_recipe(method=[method, {"kind": "lora", "rank": 2}], training=training)
    capsys.readouterr()
    assert run_command_line(["run", str(recipe), "--out", str(tmp_path / "run"), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["trials"] == {"done": 2, "failed": 0, "skipped": 0}
    assert run_command_line(["export", str(tmp_path / "run"), "peft", "--to", str(tmp_path / "b")]) == 0
    capsys.readouterr()
    texts = ["the film was good and great", "the film was bad and awful"]
    assert run_command_line(["predict", str(tmp_path / "b"), *texts, "--json"]) == 0
    assert [one["label"] for one in json.loads(capsys.readouterr().out)["predictions"]] == ["pos", "neg"]
