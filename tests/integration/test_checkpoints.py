"""A checkpoint loads whole whatever it was saved from, and without what classification does not use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fleetune.engine.backbone import Backbone, load_backbone
from fleetune.engine.config import BackboneConfig
from fleetune.errors import BackboneError
from tests.tiny import ARCHITECTURES, VOCABULARY, tiny_folder

DECODERS = ["gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3"]
MODELS = ["gemma3 with images", *ARCHITECTURES]


def load(folder: Path, num_labels: int = 3) -> Backbone:
    return load_backbone(BackboneConfig(model=str(folder)), num_labels, "fp32")


def resaved(architecture: str, kind: Any, folder: Path, **config: Any) -> tuple[Path, Any]:
    """Returns a checkpoint of another class over the tiny model of `architecture`, and the model itself."""
    torch.manual_seed(3)
    own = transformers.AutoConfig.from_pretrained(tiny_folder(architecture), **config)
    model = kind.from_pretrained(tiny_folder(architecture), config=own)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder, model


def assert_same_backbone(backbone: Backbone, source: Any) -> None:
    """Checks every weight of the backbone against those of the model that was saved."""
    base = backbone.model.get_submodule(backbone.architecture.base)
    expected = dict(source.named_parameters())
    own = {name: value for name, value in base.named_parameters() if not name.startswith("pooler.")}
    assert own
    for name, value in own.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("architecture", MODELS)
def test_a_bare_backbone_loads_whole(architecture: str, tmp_path: Path) -> None:
    folder, model = resaved(architecture, transformers.AutoModel, tmp_path / "m")
    prefixes = {name.split(".")[0] for name in load_file(folder / "model.safetensors")}
    backbone = load(folder)
    assert backbone.architecture.base.split(".")[0] not in prefixes, "nothing was renamed, so nothing was tried"
    assert_same_backbone(backbone, getattr(model, "language_model", model))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["gemma3 with images", *DECODERS])
def test_a_causal_language_model_loads_whole_and_leaves_its_vocabulary_head(
    architecture: str, tied: bool, tmp_path: Path
) -> None:
    kind: Any = transformers.AutoModelForCausalLM
    if architecture == "gemma3 with images":
        kind = transformers.AutoModelForImageTextToText
    folder, model = resaved(architecture, kind, tmp_path / "m", tie_word_embeddings=tied)
    assert any("lm_head.weight" in name for name in load_file(folder / "model.safetensors")) is not tied
    backbone = load(folder)
    assert_same_backbone(backbone, getattr(model.model, "language_model", model.model))
    assert backbone.shape.head == {"score.weight": (3, 32)}
    held = {id(tensor.untyped_storage()): tensor for tensor in backbone.model.state_dict().values()}
    wide = [tensor for tensor in held.values() if VOCABULARY in tensor.shape]
    assert len(wide) == 1, "the embedding alone is as wide as the vocabulary"
    assert sum(p.numel() for p in backbone.model.parameters()) == backbone.shape.backbone_parameters + 3 * 32


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in DECODERS])
def test_a_masked_language_model_loads_whole(architecture: str, tmp_path: Path) -> None:
    folder, model = resaved(architecture, transformers.AutoModelForMaskedLM, tmp_path / "m")
    backbone = load(folder)
    assert_same_backbone(backbone, model.base_model)


@pytest.mark.parametrize("architecture", MODELS)
def test_a_classifier_loads_whole_and_lends_its_head(architecture: str, tmp_path: Path) -> None:
    kind = transformers.AutoModelForSequenceClassification
    folder, model = resaved(architecture, kind, tmp_path / "m", num_labels=3)
    backbone = load(folder)
    assert_same_backbone(backbone, model.get_submodule(backbone.architecture.base))
    assert backbone.head_from_checkpoint.keys() == backbone.shape.head.keys()
    for name, value in backbone.head_from_checkpoint.items():
        assert torch.equal(value, model.get_parameter(name)), name


def test_a_head_for_other_labels_is_drawn_anew(tmp_path: Path) -> None:
    kind = transformers.AutoModelForSequenceClassification
    folder, model = resaved("roberta", kind, tmp_path / "m", num_labels=3)
    backbone = load(folder, num_labels=5)
    assert backbone.head_from_checkpoint.keys() == {"classifier.dense.weight", "classifier.dense.bias"}
    assert_same_backbone(backbone, model.roberta)


def test_gemma3_of_the_first_release_loads_whole(tmp_path: Path) -> None:
    """Its files say `language_model.model.…` where transformers now says `model.language_model.…`."""
    folder, model = resaved("gemma3 with images", transformers.AutoModelForImageTextToText, tmp_path / "m")
    old = {}
    for name, value in load_file(folder / "model.safetensors").items():
        name = name.removeprefix("model.")
        name = name.replace("language_model.", "language_model.model.") if "language_model.model" not in name else name
        old[name] = value
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    assert any(name.startswith("language_model.model.layers.0") for name in old)
    assert_same_backbone(load(folder), model.model.language_model)


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2", "llama", "mpnet", "phi"])
def test_a_backbone_with_a_hole_is_refused(architecture: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder(architecture), folder)
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if ".1." in name and name.endswith("weight"))
    save_file({name: value for name, value in weights.items() if name != gone}, folder / "model.safetensors")
    with pytest.raises(BackboneError, match=r"lacks 1 parameters of the backbone, such as .*\.1\."):
        load(folder)


@pytest.mark.parametrize("fields", [{"model_type": "roberta", "hidden_size": 64}, {"model_type": "llama"}])
def test_weights_of_another_model_than_its_config_says_are_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    with pytest.raises(BackboneError, match="incomplete, or for another architecture"):
        load(folder)
