"""A quantised backbone is the plain one with rounded weights: in products, gradients, trials and bundles."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

pytest.importorskip("bitsandbytes")

from fleetune.bundle import load_bundle, save_bundle
from fleetune.bundle.manifest import read_manifest
from fleetune.bundle.verification import full_precision_logits
from fleetune.classifier import TextClassifier
from fleetune.engine import backbone as backbone_module
from fleetune.engine import quantize as quantize_module
from fleetune.engine import storage
from fleetune.engine.architecture import architecture_of
from fleetune.engine.backbone import Backbone, load_backbone
from fleetune.engine.config import BackboneConfig, TrainingConfig
from fleetune.engine.evaluation import trial_logits
from fleetune.engine.events import Stepped
from fleetune.engine.fleet import Fleet
from fleetune.engine.footprint import Candidate, fleet_bytes
from fleetune.engine.quantize import QuantizedLinear, round_weights, rounded
from fleetune.engine.shape import shape_from_config
from fleetune.engine.trial import TrialSpec
from fleetune.errors import BackboneError, ExportMismatchError, MethodError, MissingExtraError, RecipeError
from fleetune.lab.export import export_trial
from fleetune.lab.inputs import gather_inputs
from fleetune.lab.recipe import load_recipe
from fleetune.lab.results import load_results
from fleetune.lab.runner import run
from fleetune.methods import get
from tests.tiny import (
    ARCHITECTURES,
    mixed_specs,
    padded_inputs,
    random_data,
    random_tokens,
    relative_difference,
    spec,
    tiny_backbone,
    tiny_folder,
)

KINDS = ["nf4", "int8"]
LABELS = ["no", "maybe", "yes"]
TOKENS = random_tokens(10, first_id=3)
LORA: dict[str, Any] = {"rank": 2, "target_modules": ("all-linear",)}


def quantised(
    architecture: str = "llama", quantize: str = "nf4", precision: str = "fp32", folder: Path | None = None, **more: Any
) -> Backbone:
    fields = {"model": str(folder or tiny_folder(architecture)), "quantize": quantize, **more}
    return load_backbone(BackboneConfig.model_validate(fields), 3, precision)


@cache
def rounded_folder(architecture: str, quantize: str) -> Path:
    """Returns a plain checkpoint of the weights that quantising leaves."""
    source = tiny_folder(architecture)
    model = transformers.AutoModel.from_pretrained(source, dtype=torch.float32)
    holder = torch.nn.Module()
    base = architecture_of(model.config.model_type).base
    holder.add_module(base, model)
    round_weights(holder, base, quantize)
    folder = source.with_name(f"{source.name}-{quantize}")
    model.save_pretrained(folder)
    return folder


def final_states(backbone: Backbone, specs: list[TrialSpec]) -> tuple[dict[str, list[float]], list[dict[str, Any]]]:
    """Returns each trial's losses, and its tensors in the end."""
    fleet = Fleet(backbone, specs, random_data(train=16))
    losses: dict[str, list[float]] = {one.id: [] for one in specs}
    for event in fleet.train():
        if isinstance(event, Stepped):
            losses[event.trial].append(event.loss)
    return losses, [trial.parameters.state() for trial in fleet.trials]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_linear_modules_inside_the_layers_are_rounded_and_nothing_else(architecture):
    backbone = quantised(architecture)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_folder(architecture), num_labels=3)
    small = {name for name, module in backbone.model.named_modules() if isinstance(module, QuantizedLinear)}
    wanted = {site.name for site in backbone.shape.sites if site.kind == "linear" and site.layer is not None}
    assert small == wanted and wanted
    assert backbone.shape == quantised(architecture, "none").shape
    for name, parameter in plain.named_parameters():
        if name in backbone.shape.head:
            continue
        path = name.rpartition(".")[0]
        if path in small and name.endswith(".weight"):
            module: Any = backbone.model.get_submodule(path)
            assert not module.weight.is_floating_point()
            assert torch.equal(module.restored(), rounded(parameter.detach(), "nf4")), name
        else:
            assert torch.equal(backbone.model.get_parameter(name), parameter), name
    assert not any(name in small for name in (*backbone.architecture.new, "score", "classifier"))


@pytest.mark.parametrize("quantize", KINDS)
def test_rounding_is_near_and_takes_the_memory_it_says(quantize):
    weight = torch.randn(96, 256, generator=torch.Generator().manual_seed(0))
    codes, scales = quantize_module.quantized(weight, quantize)
    held = [codes, *(tensor for name, tensor in scales.items() if name not in ("outer_code", "mean"))]
    assert sum(tensor.nbytes for tensor in held) == storage.stored_bytes((96, 256), quantize)
    error = float((rounded(weight, quantize) - weight).norm() / weight.norm())
    # NF4 with blocks of 64: about 0.09 for normal weights (Dettmers et al., 2023, Table 2); 8 bits: about 0.01.
    low, high = {"nf4": (0.05, 0.11), "int8": (0.001, 0.012)}[quantize]
    assert low < error < high


@pytest.mark.parametrize("quantize", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "bert", "albert", "modernbert"])
def test_training_over_it_is_training_over_the_rounded_weights(architecture, quantize):
    specs = [
        spec("lora", 0, {**LORA, "dropout": 0.2}, gradient_accumulation_steps=2),
        spec("ia3", 1),
        spec("norm", 2),
        spec("lora", 3, {"rank": 2, "dora": True}),
        spec("lora", 4, {"rank": 2, "start": "pissa"}),
    ]
    plain = load_backbone(BackboneConfig(model=str(rounded_folder(architecture, quantize))), 3, "float64")
    losses, states = final_states(quantised(architecture, quantize, "float64"), specs)
    expected, expected_states = final_states(plain, specs)
    for one in specs:
        assert losses[one.id] == pytest.approx(expected[one.id], rel=1e-6)
    for state, other in zip(states, expected_states, strict=True):
        for name, tensor in state.items():
            assert relative_difference(tensor.numpy(), other[name].numpy()) < 1e-4, name
    away, _ = final_states(load_backbone(BackboneConfig(model=str(tiny_folder(architecture))), 3, "float64"), specs)
    assert any(losses[one.id] != pytest.approx(away[one.id], rel=1e-4) for one in specs), "nothing was rounded"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("quantize", KINDS)
def test_restored_weights_that_stay_are_the_same_weights(quantize, precision):
    specs = [spec("lora", 0, {**LORA, "dropout": 0.2}), spec("bitfit", 1)]
    small, plain = (quantised("bert", quantize, precision, resident=resident) for resident in ("quantized", "bf16"))
    assert not any(isinstance(module, QuantizedLinear) for module in plain.model.modules())
    for name, module in small.model.named_modules():
        if isinstance(module, QuantizedLinear):
            assert torch.equal(module.restored(), plain.model.get_parameter(f"{name}.weight")), name
    losses, expected = final_states(small, specs)[0], final_states(plain, specs)[0]
    for one in specs:
        assert losses[one.id] == pytest.approx(expected[one.id], rel=1e-5 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp32", "float64"])
@pytest.mark.parametrize("quantize", KINDS)
def test_products_are_in_the_type_that_precision_says(quantize, precision, monkeypatch):
    wanted = {"bf16": torch.bfloat16, "fp32": torch.float32, "float64": torch.float64}[precision]
    backbone = quantised("llama", quantize, precision)
    seen: set[tuple[torch.dtype, torch.dtype]] = set()
    plain = torch.nn.functional.linear

    def watched(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        seen.add((x.dtype, weight.dtype))
        return plain(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    for event in Fleet(backbone, [spec("lora", 0, LORA, head_dropout=0.0)], random_data(train=8)).train():
        del event
    master = backbone.master_dtype
    assert seen <= {(wanted, wanted), (master, master)} and (wanted, wanted) in seen
    module: Any = next(one for one in backbone.model.modules() if isinstance(one, QuantizedLinear))
    assert module.restored().dtype == wanted
    if precision == "bf16":
        with pytest.raises(RuntimeError):
            module(torch.zeros(1, module.in_features))


@pytest.mark.parametrize("quantize", KINDS)
def test_alone_or_together_the_same(quantize):
    specs = mixed_specs("bert")
    together, _ = final_states(quantised("bert", quantize, "float64"), specs)
    for one in specs[::3]:
        alone, _ = final_states(quantised("bert", quantize, "float64"), [one])
        assert together[one.id] == pytest.approx(alone[one.id], rel=1e-9)


def test_each_weight_is_let_go_before_the_next_is_read(monkeypatch):
    given: list[weakref.ref[torch.Tensor]] = []
    store = QuantizedLinear.store

    def watched(self: QuantizedLinear, weight: torch.Tensor) -> torch.Tensor:
        assert not any(reference() is not None for reference in given), "an earlier weight is still there"
        given.append(weakref.ref(weight))
        return store(self, weight)

    monkeypatch.setattr(QuantizedLinear, "store", watched)
    quantised("llama")
    assert len(given) == 14


def test_full_finetuning_is_refused(write_recipe, tiny_bert):
    table = {"model": str(tiny_bert), "name": "tiny", "quantize": "nf4"}
    path = write_recipe(backbone=table, method=[{"kind": "full"}])
    with pytest.raises(MethodError, match=r'quantize = "none"'):
        gather_inputs(load_recipe(path))
    with pytest.raises(MethodError, match="full trains the weights"):
        Fleet(quantised("bert"), [spec("full")], random_data(train=8))
    gather_inputs(load_recipe(write_recipe(backbone=table, method=[{"kind": "bitfit"}, {"kind": "norm"}])))


def test_a_missing_package_is_named_before_anything_is_read(monkeypatch, write_recipe, tiny_bert):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = write_recipe(backbone={"model": str(tiny_bert), "quantize": "int8"})
    with pytest.raises(MissingExtraError, match=r"pip install 'fleetune\[qlora\]'"):
        gather_inputs(load_recipe(path))
    with pytest.raises(MissingExtraError, match='quantize = "nf4" needs'):
        quantised()


def test_resident_without_quantize_is_a_mistake(write_recipe, tiny_bert):
    path = write_recipe(backbone={"model": str(tiny_bert), "resident": "bf16"})
    with pytest.raises(RecipeError, match='set quantize = "nf4"'):
        load_recipe(path)


def test_weights_that_do_not_fit_stay_in_few_bits(monkeypatch):
    monkeypatch.setattr(backbone_module, "available_bytes", lambda: 1000)
    backbone = quantised("llama", resident="bf16")
    assert any(isinstance(module, QuantizedLinear) for module in backbone.model.modules())
    assert any("was asked for and does not fit" in note for note in backbone.notes)


def test_a_checkpoint_that_is_quantised_already_is_refused(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    fields = json.loads((folder / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(BackboneError, match="quantised weights"):
        quantised(folder=folder, quantize="none")


def test_a_broken_checkpoint_is_refused(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "intermediate_size": 64}))
    with pytest.raises(BackboneError):
        quantised(folder=folder)


def test_forecast_counts_the_bits():
    folder = tiny_folder("bert").parent / "base-bert"
    transformers.BertConfig().save_pretrained(folder)
    shape = shape_from_config(folder, 2)
    in_layers = 12 * (4 * 768 * 768 + 2 * 768 * 3072)

    def needed(available: int = 0, **fields: str) -> int:
        config = BackboneConfig.model_validate({"model": "m", **fields})
        one = Candidate(get("lora")(), TrainingConfig(precision="bf16"), 64, config)
        return fleet_bytes(shape, [one], available)

    plain, four, eight = needed(), needed(quantize="nf4"), needed(quantize="int8")
    assert 1.40 * in_layers < plain - four < 1.49 * in_layers
    assert 0.90 * in_layers < plain - eight < 1.0 * in_layers
    assert needed(quantize="nf4", resident="bf16") == four
    assert needed(1 << 40, quantize="nf4", resident="bf16") == plain


@pytest.mark.parametrize(
    ("architecture", "kind", "merge"),
    [("llama", "lora", False), ("llama", "lora", True), ("bert", "ia3", False), ("bert", "bitfit", False),
     ("bert", "bitfit", True), ("llama", "norm", False), ("bert", "adalora", False)],
)  # fmt: skip
@pytest.mark.parametrize("quantize", KINDS)
def test_a_bundle_gives_the_trials_logits(architecture, kind, merge, quantize, tmp_path):
    backbone, one = quantised(architecture, quantize, "bf16"), spec(kind, learning_rate=1e-2)
    fleet = Fleet(backbone, [one], random_data(train=16))
    list(fleet.train())
    state = fleet.trials[0].parameters.state()
    expected = full_precision_logits(backbone, one.method, state, TOKENS, np.arange(len(TOKENS)))
    plain = load_backbone(BackboneConfig(model=str(tiny_folder(architecture))), 3, "fp32")
    unrounded = trial_logits(plain, one.method, state, TOKENS)
    assert relative_difference(unrounded, expected) > 1e-3, "the test could not fail"

    folder = tmp_path / "bundle"
    difference = save_bundle(folder, backbone, one.method, state, LABELS, probe=TOKENS, merge=merge)
    assert difference is not None and difference < 1e-4
    facts = read_manifest(folder).backbone
    assert (facts.quantize, facts.resident) == (quantize, "quantized")
    bundle = load_bundle(folder)
    opened = bundle.open_backbone("fp32")
    assert any(isinstance(module, QuantizedLinear) for module in opened.model.modules()) is not merge
    got = trial_logits(opened, bundle.method, bundle.tensors, TOKENS)
    assert relative_difference(got, expected) < 1e-4
    if merge:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            logits = model(**padded_inputs(TOKENS, np.arange(len(TOKENS)), 0)).logits.numpy()
        assert relative_difference(logits, expected) < 1e-4


def test_a_bundle_over_other_weights_is_not_exported(tmp_path, monkeypatch):
    backbone, method = quantised("llama"), get("lora")()
    state = Fleet(backbone, [spec("lora")], random_data(train=8)).trials[0].parameters.state()
    monkeypatch.setattr("fleetune.bundle.verification.round_weights", lambda *arguments: None)
    with pytest.raises(ExportMismatchError):
        save_bundle(tmp_path / "bundle", backbone, method, state, LABELS, probe=TOKENS)


def test_a_classifier_is_read_back_quantised(tiny_backbones, tmp_path):
    folder = tiny_backbones("bert")
    classifier = TextClassifier(str(folder), epochs=1, validation=0.0, precision="fp32")
    classifier.fit(["a good film", "a bad film"] * 8, ["yes", "no"] * 8)
    classifier.backbone_ = load_backbone(BackboneConfig(model=str(folder), quantize="nf4"), 2, "fp32")
    classifier.save(tmp_path / "bundle")
    again = TextClassifier.load(tmp_path / "bundle")
    texts = ["the film was good", "awful"]
    assert again.backbone_.config.quantize == "nf4"
    assert np.allclose(again.predict_proba(texts), classifier.predict_proba(texts), atol=1e-6)


@pytest.mark.slow
def test_importing_bitsandbytes_says_and_fetches_nothing(tmp_path):
    trap = tmp_path / "kernels" / "__init__.py"
    trap.parent.mkdir()
    trap.write_text(
        f"open({str(tmp_path / 'fetched')!r}, 'w').close()\ndef get_kernel(*a, **k): raise OSError('no net')\n"
    )
    code = "from fleetune.engine.quantize import import_bitsandbytes as i; assert i() is not None"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Failed to load" not in done.stderr + done.stdout
    assert not (tmp_path / "fetched").exists()


def test_the_whole_way_from_a_recipe_to_predictions(tiny_backbones, write_recipe, tmp_path):
    table = {"model": str(tiny_backbones("llama")), "name": "tiny", "quantize": "nf4"}
    training = {
        "epochs": 12, "precision": "fp32", "learning_rate": 2e-2, "seeds": 1, "metric": "accuracy",
        "gradient_checkpointing": True, "optimizer": "paged_adamw_32bit", "gradient_accumulation_steps": 2,
        "batch_size": 4,
    }  # fmt: skip
    lora = {"kind": "lora", "rank": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "dropout": 0.1}
    path = write_recipe(backbone=table, training=training, method=[lora])
    summary = run(load_recipe(path), tmp_path / "run")
    assert (summary.done, summary.failed) == (1, 0)
    (trial,) = load_results(tmp_path / "run").trials
    assert any("NF4" in note for note in trial.notes) and any("unpaged" in note for note in trial.notes)
    predicted, truth = trial.predictions["test"][1].argmax(axis=1), trial.predictions["test"][0]
    assert (predicted == truth).mean() > 0.8
    for merge in (False, True):
        bundle = tmp_path / f"bundle-{merge}"
        report = export_trial(tmp_path / "run", "best", bundle, merge=merge)
        assert report.max_difference < 1e-4 and report.note is not None and "nf4" in report.note
        classifier = TextClassifier.load(bundle)
        assert classifier.backbone_.config.quantize == ("none" if merge else "nf4")
        texts = ["the film was good and superb", "it was a bad and awful day"]
        assert classifier.predict(texts).tolist() == ["pos", "neg"]


def test_modules_of_peft_over_rounded_weights_are_refused_before_anything_is_loaded():
    backbone = tiny_backbone("llama", precision="fp32")
    config = BackboneConfig(model="m", quantize="nf4")
    with pytest.raises(MethodError, match=r"quantize = .none"):
        storage.refuse_quantized_weights(get("peft")(), backbone.shape, config)
