"""Backbones are data: pickles are refused with the command that converts them, code that they bring is never run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fleetune.engine.backbone import load_backbone, load_tokenizer
from fleetune.engine.config import BackboneConfig
from fleetune.engine.model_config import read_model_config
from fleetune.engine.shape import shape_from_config
from fleetune.engine.source import find_folder
from fleetune.errors import BackboneError
from tests.tiny import tiny_folder

OWN_CODE = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}


def model_folder(tmp_path: Path, architecture: str = "bert", **changes: Any) -> Path:
    folder = tmp_path / "a model"
    shutil.copytree(tiny_folder(architecture), folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (folder / "code.py").write_text(
        f"open({str(tmp_path / 'was run')!r}, 'w')\nclass Config: pass\nclass Model: pass\n"
    )
    return folder


def pickled(folder: Path, shards: int) -> dict[str, torch.Tensor]:
    """Puts the weights of `folder` into pickles, as older models have them; two tensors share their memory."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    tensors[names[1]] = tensors[names[0]].view(tensors[names[0]].shape) if shards == 1 else tensors[names[1]]
    for number in range(shards):
        name = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        torch.save({key: tensors[key] for key in names[number::shards]}, folder / name)
    (folder / "model.safetensors").unlink()
    return tensors


@pytest.mark.parametrize("shards", [1, 3])
def test_pickled_weights_are_refused_with_a_command_that_converts_them(tmp_path: Path, shards: int) -> None:
    folder = model_folder(tmp_path)
    tensors = pickled(folder, shards)
    with pytest.raises(BackboneError, match="pickles are never loaded") as refused:
        find_folder(BackboneConfig(model=str(folder)))
    first, command = str(refused.value).split("\n")
    assert str(folder) in first
    assert command.startswith("python -c ")
    subprocess.run(
        ["bash", "-c", f"{sys.executable} {command.removeprefix('python ')}"], check=True, capture_output=True
    )
    found = load_file(find_folder(BackboneConfig(model=str(folder))) / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_pickle_beside_safetensors_is_left_alone(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch evil'\ntR.")
    load_backbone(BackboneConfig(model=str(folder)), 2, "fp32")


def test_a_hub_model_without_safetensors_is_refused_with_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(BackboneError, match="has no safetensors weights on the hub") as refused:
        find_folder(BackboneConfig(model="some/old-model"))
    assert "\nhf download some/old-model --local-dir old-model && python -c " in str(refused.value)
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in asked["allow_patterns"][:-1])


def test_own_code_of_a_known_family_is_not_run_and_the_report_says_so(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, auto_map=OWN_CODE)
    tokenizer_config = folder / "tokenizer_config.json"
    if tokenizer_config.exists():
        fields = json.loads(tokenizer_config.read_text())
        tokenizer_config.write_text(json.dumps({**fields, "auto_map": {"AutoTokenizer": ["code.Model", None]}}))
        load_tokenizer(BackboneConfig(model=str(folder)))
    backbone = load_backbone(BackboneConfig(model=str(folder)), 2, "fp32")
    shape_from_config(folder, 2)
    assert not (tmp_path / "was run").exists()
    assert any("auto_map" in note and "not run" in note for note in backbone.notes)
    assert not hasattr(read_model_config(folder), "auto_map")


def test_a_family_that_only_its_own_code_knows_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, auto_map=OWN_CODE, model_type="homemade")
    for read in (
        lambda: load_backbone(BackboneConfig(model=str(folder)), 2, "fp32"),
        lambda: shape_from_config(folder, 2),
    ):
        with pytest.raises(BackboneError, match="code of its own"):
            read()
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_weights": "../elsewhere.safetensors"},
        {"transformers_weights": "pytorch_model.bin"},
        {"attn_implementation": "somebody/kernel"},
        {"_attn_implementation": "somebody/kernel"},
        {"_attn_implementation_internal": "somebody/kernel"},
    ],
    ids=lambda changes: "=".join(next(iter(changes.items()))),
)
def test_a_configuration_names_neither_weights_nor_kernels(tmp_path: Path, changes: dict[str, str]) -> None:
    folder = model_folder(tmp_path, **changes)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch evil'\ntR.")
    backbone = load_backbone(BackboneConfig(model=str(folder)), 2, "fp32")
    assert backbone.model_hash
    shape_from_config(folder, 2)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"[" * 100_000,
        b'{"model_type": 3}',
        b'{"model_type": "bert", "hidden_size": "x"}',
        b'{"model_type": "bert", "num_attention_heads": 0}',
    ],
    ids=lambda content: content[:50].decode("latin-1"),
)
def test_an_unreadable_configuration_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    folder = model_folder(tmp_path)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(BackboneError):
        load_backbone(BackboneConfig(model=str(folder)), 2, "fp32")


@pytest.mark.parametrize("name", ["-oops", "a--b", "x" * 120, "a b"])
def test_a_name_that_the_hub_refuses_is_an_error_for_the_user(name: str) -> None:
    with pytest.raises(BackboneError) as caught:
        find_folder(BackboneConfig(model=name))
    assert "no name of a model on the hub" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
