"""Backbones are data: pickles are refused with the command that converts them, code that they bring is never run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fleetune.bundle.plain import plain_model
from fleetune.engine.backbone import load_backbone, load_tokenizer
from fleetune.engine.config import BackboneConfig
from fleetune.engine.model_config import read_model_config
from fleetune.engine.shape import shape_from_config
from fleetune.engine.source import find_folder
from fleetune.engine.weights import INDEX, hash_model
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
    from huggingface_hub.utils._paths import filter_repo_objects

    names = ["tokenizer.pkl", "tokenizer.py", "tokenizer_config.py", "tokenizer/evil.bin", "tokenizer", "model.bin"]
    data = ["config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "bpe.codes", "qwen.tiktoken"]
    assert list(filter_repo_objects(names + data, allow_patterns=asked["allow_patterns"])) == data


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


class Traced:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return open, (str(self.trace), "w")


def sharded(folder: Path, **named: str) -> dict[str, str]:
    """Divides the weights of `folder` over two files and an index, in which `named` tensors get other files."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {f"model-{number + 1:05}-of-00002.safetensors": names[number::2] for number in range(2)}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})
    index = {name: file for file, own in parts.items() for name in own} | named
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return index


def test_a_model_in_several_files_is_loaded_and_has_the_hash_that_it_always_had(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    whole = load_backbone(BackboneConfig(model=str(folder)), 2, "fp32")
    assert whole.model_hash == plain_hash(folder)
    sharded(folder)
    backbone = load_backbone(BackboneConfig(model=str(folder)), 2, "fp32")
    assert backbone.model_hash == plain_hash(folder)
    for name, value in whole.model.get_submodule("bert").state_dict().items():
        assert torch.equal(value, backbone.model.get_submodule("bert").state_dict()[name])


def plain_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def test_which_files_an_index_names_is_a_part_of_the_hash(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    index = sharded(folder)
    shutil.copy(folder / "model-00002-of-00002.safetensors", folder / "other.safetensors")
    with_other = hash_model(folder)
    moved = {name: file.replace("model-00002-of-00002", "other") for name, file in index.items()}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": moved}))
    assert hash_model(folder) != with_other


@pytest.mark.parametrize(
    "name",
    ["evil.bin", "../outside.safetensors", "/tmp/x.safetensors", "a/b.safetensors", ".x.safetensors", "no.safetensors"],
)
def test_an_index_names_safetensors_in_the_folder_alone(tmp_path: Path, name: str) -> None:
    folder = model_folder(tmp_path)
    shutil.copy(folder / "model.safetensors", tmp_path / "outside.safetensors")
    torch.save({"x": Traced(tmp_path / "was run")}, folder / "evil.bin")
    sharded(folder, **{"bert.embeddings.word_embeddings.weight": name})
    for read in (
        lambda: find_folder(BackboneConfig(model=str(folder))),
        lambda: load_backbone(BackboneConfig(model=str(folder)), 2, "fp32"),
        lambda: plain_model(folder, read_model_config(folder, 2)),
        lambda: hash_model(folder),
    ):
        with pytest.raises(BackboneError, match=re.escape(INDEX)) as refused:
            read()
        assert ("which is not there" if name == "no.safetensors" else "in the folder alone") in str(refused.value)
        assert len(str(refused.value).splitlines()) == 2
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"[" * 100_000, b"{}", b'{"weight_map": [1]}', b'{"weight_map": {"a": 1}}']
)
def test_an_index_of_nonsense_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = model_folder(tmp_path)
    sharded(folder)
    (folder / INDEX).write_bytes(content)
    with pytest.raises(BackboneError, match=re.escape(INDEX)):
        find_folder(BackboneConfig(model=str(folder)))


def test_an_adapter_in_a_backbones_folder_is_refused(tmp_path: Path) -> None:
    """Transformers would put it over the weights unasked, and the hash would know nothing of it."""
    import peft
    from transformers import AutoModelForSequenceClassification

    folder = model_folder(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS")).save_pretrained(str(folder))
    for read in (
        lambda: find_folder(BackboneConfig(model=str(folder))),
        lambda: plain_model(folder, read_model_config(folder, 2)),
    ):
        with pytest.raises(BackboneError, match="Give the base model, or merge"):
            read()


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
