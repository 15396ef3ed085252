"""A saved bundle gives its trial's logits: by Fleetune, by PEFT, by plain transformers; a damaged one is refused."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fleetune.bundle import load_bundle, save_bundle, verify_bundle
from fleetune.bundle.manifest import MANIFEST, digest_of, file_facts, read_manifest
from fleetune.bundle.verification import full_precision_logits
from fleetune.engine.backbone import Backbone, load_backbone
from fleetune.engine.config import BackboneConfig
from fleetune.engine.evaluation import trial_logits
from fleetune.engine.parameters import TrialParameters
from fleetune.engine.starts import plan_parameters
from fleetune.errors import BackboneError, BundleError, ExportMismatchError, MethodError
from fleetune.methods import all_methods, get
from fleetune.methods.base import Method
from tests.references import NOT_MERGEABLE
from tests.tiny import padded_inputs, random_tokens, tiny_backbone, tiny_folder

LABELS = ["no", "maybe", "yes"]
ARCHITECTURES = ["bert", "distilbert", "roberta", "llama", "modernbert"]
WITHOUT_BIASES = {"llama", "modernbert"}
CASES = [
    (architecture, kind)
    for architecture in ARCHITECTURES
    for kind in sorted(all_methods())
    if not (kind == "bitfit" and architecture in WITHOUT_BIASES)
]
TOKENS = random_tokens(10, first_id=3)


@cache
def backbone_of(architecture: str) -> Backbone:
    return tiny_backbone(architecture, precision="fp32")


def trained(backbone: Backbone, method: Method) -> dict[str, torch.Tensor]:
    """Returns tensors that are all away from their start, as after a training."""
    plan = plan_parameters(backbone, method, 0)
    generator = torch.Generator().manual_seed(0)
    start = TrialParameters(plan, torch.float32, torch.device("cpu")).state()
    return {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in start.items()}


def saved(folder: Path, kind: str = "lora", architecture: str = "bert", **options: Any) -> Path:
    backbone, method = backbone_of(architecture), get(kind)()
    save_bundle(folder, backbone, method, trained(backbone, method), LABELS, **options)
    return folder


def plain_logits(model: Any, padding: int) -> np.ndarray:
    """Returns the logits of a Hugging Face model for padded batches, as a user would compute them."""
    texts = np.arange(len(TOKENS))
    # Among virtual tokens PEFT leads transformers to take padding for a decoder's last token.
    alone = isinstance(model, peft.PeftModel) and model.peft_config["default"].peft_type == "PROMPT_TUNING"
    with torch.no_grad():
        batches = [padded_inputs(TOKENS, batch, padding) for batch in (texts[:, None] if alone else texts[None])]
        return torch.cat([model.eval()(**batch).logits for batch in batches]).numpy()


def loaded_by_others(folder: Path, backbone_folder: Path) -> Any:
    """Returns the model as somebody without Fleetune puts it together."""
    if (folder / "model.safetensors").exists():
        return transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder / "model_config.json")
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        backbone_folder, config=config, dtype=torch.float32
    )
    if (folder / "adapter_config.json").exists():
        return peft.PeftModel.from_pretrained(model, folder)
    result = model.load_state_dict(load_file(folder / "parameters.safetensors"), strict=False)
    assert result.unexpected_keys == []
    return model


@pytest.mark.parametrize("merge", [False, True], ids=["apart", "merged"])
@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_reloaded_logits_are_the_trials(tmp_path: Path, architecture: str, kind: str, merge: bool) -> None:
    backbone, method = backbone_of(architecture), get(kind)()
    tensors = trained(backbone, method)
    expected = trial_logits(backbone, method, tensors, TOKENS)
    if merge and kind in NOT_MERGEABLE:
        with pytest.raises(MethodError, match="cannot be merged"):
            save_bundle(tmp_path / "b", backbone, method, tensors, LABELS, probe=TOKENS, merge=True)
        assert list(tmp_path.iterdir()) == []
        return
    difference = save_bundle(tmp_path / "b", backbone, method, tensors, LABELS, probe=TOKENS, merge=merge)
    assert difference is not None
    assert difference < 2e-5

    bundle = load_bundle(tmp_path / "b")
    own = trial_logits(bundle.open_backbone("fp32"), bundle.method, bundle.tensors, TOKENS)
    np.testing.assert_allclose(own, expected, atol=1e-5 if not merge else 2e-5)

    if bundle.manifest.form == "delta":
        assert kind in NOT_MERGEABLE, "nobody else could load what others know"
        return
    model = loaded_by_others(tmp_path / "b", backbone.folder)
    padding = json.loads((backbone.folder / "config.json").read_text())["pad_token_id"]
    np.testing.assert_allclose(plain_logits(model, padding), expected, atol=2e-5)
    assert [model.config.id2label[number] for number in range(3)] == LABELS
    assert model.config.problem_type == "single_label_classification"


@pytest.mark.parametrize("kind", ["lora", "ia3", "full", "prefix"])
def test_a_pooler_that_the_checkpoint_lacks_is_saved(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "no-pooler"
    shutil.copytree(tiny_folder("bert"), folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "pooler" not in name}, folder / "model.safetensors")
    backbone = load_backbone(BackboneConfig(model=str(folder)), 3, "fp32")
    assert "bert.pooler.dense.weight" in backbone.shape.head
    method = get(kind)()
    tensors = trained(backbone, method)
    expected = trial_logits(backbone, method, tensors, TOKENS)
    save_bundle(tmp_path / "b", backbone, method, tensors, LABELS, probe=TOKENS)
    np.testing.assert_allclose(plain_logits(loaded_by_others(tmp_path / "b", folder), 0), expected, atol=1e-5)
    if kind in NOT_MERGEABLE:
        return
    save_bundle(tmp_path / "m", backbone, method, tensors, LABELS, probe=TOKENS, merge=True)
    np.testing.assert_allclose(plain_logits(loaded_by_others(tmp_path / "m", folder), 0), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("lora", {"rank": 3, "alpha": 5.0, "target_modules": ["output.dense", "key"]}),
        ("lora", {"target_modules": ["all-linear"]}),
        ("ia3", {"target_modules": ["query", "intermediate.dense"], "feedforward_modules": ["intermediate.dense"]}),
    ],
)
def test_peft_finds_the_same_modules_by_name(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    backbone, method = backbone_of("bert"), get(kind)(**settings)
    tensors = trained(backbone, method)
    save_bundle(tmp_path / "b", backbone, method, tensors, LABELS)
    model = loaded_by_others(tmp_path / "b", backbone.folder)
    expected = trial_logits(backbone, method, tensors, TOKENS)
    np.testing.assert_allclose(plain_logits(model, 0), expected, atol=1e-5)
    assert load_bundle(tmp_path / "b").method.settings == method.settings


def test_a_trial_trained_in_bf16_is_compared_in_fp32(tmp_path: Path) -> None:
    rounded = tiny_backbone("bert", precision="bf16")
    method = get("bitfit")()
    tensors = trained(rounded, method)
    assert save_bundle(tmp_path / "b", rounded, method, tensors, LABELS, probe=TOKENS) < 1e-5  # type: ignore[operator]
    assert read_manifest(tmp_path / "b").backbone.precision == "bf16"
    save_bundle(tmp_path / "m", rounded, method, tensors, LABELS, probe=TOKENS, merge=True)
    exact = full_precision_logits(rounded, method, tensors, TOKENS)
    np.testing.assert_allclose(exact, trial_logits(backbone_of("bert"), method, tensors, TOKENS), atol=1e-6)
    assert np.abs(exact - trial_logits(rounded, method, tensors, TOKENS)).max() > 1e-4


def test_other_logits_are_a_mismatch(tmp_path: Path) -> None:
    backbone, folder = backbone_of("bert"), saved(tmp_path / "b")
    bundle = load_bundle(folder)
    expected = trial_logits(backbone, bundle.method, bundle.tensors, TOKENS)
    assert verify_bundle(folder, backbone, TOKENS, expected) < 1e-5
    for wrong in (expected + 2e-4, expected[:, ::-1], np.full_like(expected, np.nan)):
        with pytest.raises(ExportMismatchError):
            verify_bundle(folder, backbone, TOKENS, wrong)


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetune.bundle.saving.full_precision_logits", lambda *_: np.ones((10, 3), dtype=np.float32))
    backbone, method = backbone_of("bert"), get("head")()
    with pytest.raises(ExportMismatchError):
        save_bundle(tmp_path / "b", backbone, method, trained(backbone, method), LABELS, probe=TOKENS)
    assert list(tmp_path.iterdir()) == []


def test_every_byte_counts(tmp_path: Path) -> None:
    for kind, merge in (("lora", False), ("bitfit", False), ("ia3", True)):
        folder = saved(tmp_path / kind, kind, merge=merge)
        files = sorted(folder.iterdir())
        assert len(files) >= 3
        for file in files:
            whole = file.read_bytes()
            for place in np.linspace(0, len(whole) - 1, 7).astype(int):
                file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
                with pytest.raises(BundleError):
                    load_bundle(folder)
            file.write_bytes(whole[:-2])
            with pytest.raises(BundleError):
                load_bundle(folder)
            file.unlink()
            with pytest.raises(BundleError):
                load_bundle(folder)
            file.write_bytes(whole)
        load_bundle(folder)


def rewrite(folder: Path, **changes: Any) -> None:
    """Rewrites `fleetune.json` with honest checksums, so that only the content can be refused."""
    fields = json.loads((folder / MANIFEST).read_text())
    fields.pop("sha256")
    fields["files"] = {name: file_facts(folder / name).model_dump() for name in fields["files"]}
    fields |= changes
    (folder / MANIFEST).write_text(json.dumps({**fields, "sha256": digest_of(fields)}))


def change_tensor(folder: Path, change: Any) -> None:
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    rewrite(folder)


def _set(name: str, value: Any) -> Any:
    return lambda tensors: tensors.__setitem__(name, value)


@pytest.mark.parametrize("kind", ["lora", "ia3", "norm"])
def test_tensors_must_be_those_of_the_method(tmp_path: Path, kind: str) -> None:
    whole = saved(tmp_path / "whole", kind)
    names = sorted(load_file(next(whole.glob("*.safetensors"))))
    first, head = names[1], next(name for name in names if name.endswith("classifier.weight"))
    value = load_file(next(whole.glob("*.safetensors")))[first]
    changes = {
        "missing": lambda tensors: tensors.pop(first),
        "head missing": lambda tensors: tensors.pop(head),
        "more": _set("more", torch.zeros(2)),
        "transposed": _set(head, torch.zeros(32, 3)),
        "flat": _set(first, value.reshape(-1)[:1]),
        "half": _set(first, value.half()),
        "nan": _set(first, torch.full_like(value, float("nan"))),
        "infinite": _set(head, torch.full((3, 32), float("inf"))),
    }
    for name, change in changes.items():
        folder = tmp_path / name
        shutil.copytree(whole, folder)
        change_tensor(folder, change)
        with pytest.raises(BundleError, match="damaged"):
            load_bundle(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ["no", "yes"]},
        {"labels": ["yes", "no", "maybe"]},
        {"labels": ["no", "no", "yes"]},
        {"thresholds": [0.5, 0.5, 0.5]},
        {"multi_label": True, "thresholds": [0.5, 0.5]},
        {"multi_label": True, "thresholds": [0.5, 0.5, 1.5]},
        {"positive_threshold": 0.5},
        {"temperature": 0.0},
        {"temperature": 1e9},
        {"max_tokens": 0},
        {"form": "parameters"},
        {"form": "merged"},
        {"method": {"kind": "ia3", "settings": {}, "source": ""}},
        {"method": {"kind": "lora", "settings": {"rank": 4}, "source": ""}},
        {"method": {"kind": "lora", "settings": {"alpha": 4.0}, "source": ""}},
        {"method": {"kind": "lora", "settings": {"target_modules": ["nowhere"]}, "source": ""}},
        {"method": {"kind": "unheard of", "settings": {}, "source": ""}},
        {"head": ["classifier.weight"]},
        {"head": ["classifier.weight", "classifier.bias", "bert.encoder.layer.0.output.dense.weight"]},
        {"files": {"../secret": {"bytes": 1, "sha256": "0" * 64}}},
        {"files": {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}},
        {"files": {}},
        {"unknown": 1},
    ],
    ids=lambda changes: " ".join(f"{key}={value}"[:30] for key, value in changes.items()),
)
def test_parts_must_fit_each_other(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = saved(tmp_path / "b")
    rewrite(folder, **changes)
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(folder)


def test_foreign_code_and_monstrous_models_are_refused(tmp_path: Path) -> None:
    for change in ({"auto_map": {"AutoConfig": "evil.Config"}}, {"num_hidden_layers": 10**9}, {"model_type": "evil"}):
        folder = saved(tmp_path / next(iter(change)))
        path = folder / "model_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        rewrite(folder)
        with pytest.raises(BundleError, match="damaged"):
            load_bundle(folder)


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    folder = saved(tmp_path / "b")
    (folder / MANIFEST).write_text(json.dumps({"format": 2}))
    with pytest.raises(BundleError, match="reads up to 1"):
        load_bundle(folder)


def test_a_stray_file_is_refused_but_a_card_is_not(tmp_path: Path) -> None:
    folder = saved(tmp_path / "b")
    (folder / "README.md").write_text("a card")
    load_bundle(folder)
    (folder / "added_tokens.json").write_text("{}")
    with pytest.raises(BundleError, match=r"added_tokens\.json"):
        load_bundle(folder)


def test_what_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"1")
    for overwrite in (False, True):
        with pytest.raises(BundleError, match="no bundle"):
            saved(tmp_path / "photos", overwrite=overwrite)
    assert (tmp_path / "photos" / "one.jpg").read_bytes() == b"1"
    (tmp_path / "empty").mkdir()
    saved(tmp_path / "empty")
    with pytest.raises(BundleError, match="already"):
        saved(tmp_path / "empty", kind="norm")
    assert load_bundle(tmp_path / "empty").method.kind == "lora"
    saved(tmp_path / "empty", kind="norm", overwrite=True)
    assert load_bundle(tmp_path / "empty").method.kind == "norm"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "photos"]


def test_labels_and_tensors_must_fit_the_backbone(tmp_path: Path) -> None:
    backbone, method = backbone_of("bert"), get("lora")()
    tensors = trained(backbone, method)
    wrong: dict[str, Any] = {
        "labels": (tensors, ["a", "b"]),
        "missing": ({name: value for name, value in tensors.items() if name != "classifier.bias"}, LABELS),
        "shape": ({**tensors, "classifier.bias": torch.zeros(2)}, LABELS),
        "finite": ({**tensors, "classifier.bias": torch.full((3,), float("nan"))}, LABELS),
    }
    for name, (values, labels) in wrong.items():
        with pytest.raises(BundleError):
            save_bundle(tmp_path / name, backbone, method, values, labels)
    assert list(tmp_path.iterdir()) == []


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("bert"), folder)
    backbone, method = load_backbone(BackboneConfig(model=str(folder)), 3, "fp32"), get("lora")()
    save_bundle(tmp_path / "b", backbone, method, trained(backbone, method), LABELS)
    bundle = load_bundle(tmp_path / "b")
    folder.rename(tmp_path / "moved")
    with pytest.raises(BackboneError, match="needs its backbone"):
        bundle.open_backbone("fp32")
    assert bundle.open_backbone("fp32", str(tmp_path / "moved")).model_hash == backbone.model_hash
    weights = load_file(tmp_path / "moved" / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][0] += 1e-3
    save_file(weights, tmp_path / "moved" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BundleError, match="another backbone"):
        bundle.open_backbone("fp32", str(tmp_path / "moved"))


def test_the_manifest_tells_what_a_server_needs(tmp_path: Path) -> None:
    training = {"epochs": 3, "validation": {"roc_auc": float("nan"), "f1_macro": np.float64(0.5)}}
    folder = saved(tmp_path / "b", multi_label=True, pairs=True, max_tokens=48, training=training)
    manifest = load_bundle(folder).manifest
    assert manifest.labels == LABELS
    assert manifest.thresholds == [0.5, 0.5, 0.5]
    assert manifest.pairs
    assert manifest.max_tokens == 48
    assert manifest.training == {"epochs": 3, "validation": {"roc_auc": None, "f1_macro": 0.5}}
    assert manifest.backbone.model == str(tiny_folder("bert").resolve())
    assert manifest.method.settings == get("lora")().settings
    config = transformers.AutoConfig.from_pretrained(folder / "model_config.json")
    assert config.problem_type == "multi_label_classification"


def test_a_method_without_a_merge_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get("lora"), "merged", Method.merged)
    with pytest.raises(MethodError, match="cannot be merged"):
        saved(tmp_path / "b", merge=True)
    assert list(tmp_path.iterdir()) == []
