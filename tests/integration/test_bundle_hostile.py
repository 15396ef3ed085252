"""Bundles are data from strangers: whatever one says, it is refused in a line or two, or does no harm."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from fleetune.bundle import load_bundle
from fleetune.bundle.entries import MAX_DEPTH, name_fault, read_table
from fleetune.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, digest_of
from fleetune.bundle.settings import MAX_RANK, settings_fault
from fleetune.errors import BundleError
from fleetune.methods.patterns import in_full, is_literal, is_tame
from tests.integration.test_bundle import LABELS, rewrite, saved
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of each form."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "adapter": saved(folder / "adapter", "lora"),
        "parameters": saved(folder / "parameters", "bitfit"),
        "merged": saved(folder / "merged", "lora", merge=True),
    }


def copied(wholes: dict[str, Path], tmp_path: Path, form: str = "adapter") -> Path:
    return Path(shutil.copytree(wholes[form], tmp_path / "bundle"))


def refused(folder: Path) -> str:
    with pytest.raises(BundleError) as error:
        load_bundle(folder)
    assert 1 <= len(str(error.value).splitlines()) <= 3
    return str(error.value)


def edit(folder: Path, name: str, change: Any) -> None:
    path = folder / name
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    rewrite(folder)


def add_file(folder: Path, name: str, content: bytes = b"{}") -> None:
    """Puts a file into the bundle and into its list."""
    (folder / name).write_bytes(content)
    fields = json.loads((folder / MANIFEST).read_text())
    rewrite(folder, files={**fields["files"], name: _facts(folder / name)})


def _facts(path: Path) -> dict[str, Any]:
    from fleetune.bundle.manifest import file_facts

    return file_facts(path).model_dump()


@pytest.mark.parametrize(
    "name",
    [
        "../secret.json",
        "..\\secret.json",
        "/etc/passwd",
        "C:\\secret.json",
        "C:secret.json",
        "\\\\host\\share.json",
        "a/b.json",
        ".hidden.json",
        "",
        ".",
        "..",
        "a\0.json",
        "a\n.json",
        "a.json\n",
        "a b.json",
        "~root.json",
        "-rf.json",
        "ä.json",
        "a" * 200 + ".json",
        "con.json",
        "NUL",
        "aux.safetensors",
        "Com1.txt",
        "lpt9.model",
        "a.json.",
        "weights.bin",
        "code.py",
        "tensors.pkl",
        "library.so",
        "noend",
    ],
)
def test_a_name_that_is_none_of_a_bundles_files_is_refused(name: str) -> None:
    assert name_fault(name) is not None


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "merges.txt", "spiece.model", "chat_template.jinja", "conduct.json"]
)
def test_names_of_tokenizer_files_pass(name: str) -> None:
    assert name_fault(name) is None


def test_a_listed_file_outside_the_folder_is_never_opened(wholes: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(wholes, tmp_path)
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    for name in ("../outside.json", str(outside)):
        fields = json.loads((wholes["adapter"] / MANIFEST).read_text())
        rewrite_files(folder, {**fields["files"], name: _facts(outside)})
        assert "no plain file name" in refused(folder)


def rewrite_files(folder: Path, files: dict[str, Any]) -> None:
    fields = json.loads((folder / MANIFEST).read_text())
    fields.pop("sha256")
    fields["files"] = files
    (folder / MANIFEST).write_text(json.dumps({**fields, "sha256": digest_of(fields)}))


def test_a_symbolic_link_is_refused_and_the_message_tells_how_to_copy(wholes: dict[str, Path], tmp_path: Path) -> None:
    for name in ("model_config.json", "adapter_model.safetensors"):
        folder = copied(wholes, tmp_path)
        outside = tmp_path / f"outside {name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)
        assert "symbolic link" in refused(folder)
        shutil.rmtree(folder)
    folder = copied(wholes, tmp_path)
    (folder / MANIFEST).rename(tmp_path / "manifest")
    (folder / MANIFEST).symlink_to(tmp_path / "manifest")
    assert "is no bundle" in refused(folder)


def test_links_to_folders_and_folders_are_refused(wholes: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(wholes, tmp_path)
    (folder / "linked").symlink_to("/")
    assert "not a part of it" in refused(folder)
    (folder / "linked").unlink()
    (folder / "inner").mkdir()
    assert "not a part of it" in refused(folder)


def test_pipes_and_sockets_are_not_waited_for(wholes: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(wholes, tmp_path)
    (folder / "model_config.json").unlink()
    os.mkfifo(folder / "model_config.json")
    assert "missing" in refused(folder)
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    assert "is no bundle" in refused(folder)


def test_a_socket_is_no_file(wholes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(wholes, tmp_path)
    (folder / "model_config.json").unlink()
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("model_config.json")
        assert "missing" in refused(folder)


def test_names_that_differ_in_case_alone_are_refused(wholes: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(wholes, tmp_path)
    add_file(folder, "Vocab.txt")
    add_file(folder, "vocab.txt")
    assert "case" in refused(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not readable as JSON"),
        (b"\xff", "not readable as JSON"),
        (b"[]", "holds no table"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"a":' * (MAX_DEPTH + 5) + b"1" + b"}" * (MAX_DEPTH + 5), "nested too deeply"),
        (b'{"form": "adapter", "form": "merged"}', "stands there twice"),
        (b'{"files": {"a": 1, "a": 2}}', "stands there twice"),
        (b'{"format": ' + b"9" * 10_000 + b"}", "damaged"),
        (b'{"format": 1e999}', "checksum"),
        (b'{"a": NaN}', "checksum"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "bytes"),
    ],
    ids=lambda value: str(value[:12]) if isinstance(value, bytes) else value,
)
def test_json_that_is_made_to_hurt_is_refused(
    wholes: dict[str, Path], tmp_path: Path, content: bytes, said: str
) -> None:
    folder = copied(wholes, tmp_path)
    (folder / MANIFEST).write_bytes(content)
    assert said in refused(folder)


def test_a_key_that_stands_twice_is_refused_in_every_table(wholes: dict[str, Path], tmp_path: Path) -> None:
    for name in ("model_config.json", "adapter_config.json"):
        folder = copied(wholes, tmp_path)
        text = (folder / name).read_text()
        (folder / name).write_text('{"r": 4, "hidden_size": 32,' + text.lstrip()[1:])
        rewrite(folder)
        assert "twice" in refused(folder)
        shutil.rmtree(folder)


@pytest.mark.slow
def test_a_manifest_of_the_largest_size_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_bytes(b'{"a": [' + b"[]," * ((MAX_MANIFEST_BYTES - 20) // 3) + b"1]}")
    code = f"""
import resource
from pathlib import Path
from fleetune.bundle.entries import read_table
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30),) * 2)
read_table(Path({str(path)!r}), {MAX_MANIFEST_BYTES})
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


CONFIG_CHANGES: list[dict[str, Any]] = [
    {"auto_map": {"AutoConfig": "evil--code.Config"}},
    {"text_config": {"auto_map": {"AutoConfig": "evil.Config"}}},
    {"transformers_weights": "../other.safetensors"},
    {"attn_implementation": "somebody/kernel"},
    {"_attn_implementation_internal": "somebody/kernel"},
    {"use_kernels": True},
    {"num_hidden_layers": 10**9},
    {"num_attention_heads": 0},
    {"num_attention_heads": 10**7},
    {"num_labels": 10**9},
    {"inner_group_num": 10**9},
    {"text_config": {"num_hidden_layers": 10**9}},
    {"hidden_size": 10**30},
    {"hidden_size": -4},
    {"hidden_size": 1.5},
    {"hidden_size": None},
    {"hidden_size": "32"},
    {"vocab_size": 10**18},
    {"max_position_embeddings": 10**18},
    {"hidden_act": "os.system"},
    {"hidden_act": ["gelu"]},
    {"dtype": "load"},
    {"model_type": "evil"},
    {"model_type": "distilbert"},
    {"model_type": ["bert"]},
    {"id2label": {}},
    {"id2label": {"0": "no", "1": "maybe", "7": "yes"}},
    {"id2label": ["no", "maybe", "yes"]},
    {"id2label": {"zero": "no"}},
    {"layer_norm_eps": "x"},
]


@pytest.mark.parametrize("changes", CONFIG_CHANGES, ids=lambda changes: str(changes)[:50])
def test_a_configuration_of_code_or_nonsense_is_refused(
    wholes: dict[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = copied(wholes, tmp_path)
    edit(folder, "model_config.json", lambda fields: fields.update(changes))
    refused(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"auto_mapping": {"parent_library": "antigravity", "base_model_class": "x"}},
        {"modules_to_save": ["bert"]},
        {"base_model_name_or_path": "somebody/else"},
        {"r": 9},
        {"target_modules": ".*"},
        {"layers_to_transform": [0]},
        {"rank_pattern": {"query": 4}},
        {"trainable_token_indices": [1]},
        {"peft_type": "XLORA"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_peft_is_told_nothing_that_the_manifest_does_not_say(
    wholes: dict[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = copied(wholes, tmp_path)
    edit(folder, "adapter_config.json", lambda fields: fields.update(changes))
    assert "adapter_config.json" in refused(folder)


def _method(kind: str, **settings: Any) -> dict[str, Any]:
    return {"method": {"kind": kind, "settings": settings, "source": ""}}


MANIFEST_CHANGES: list[dict[str, Any]] = [
    _method("lora", rank=0),
    _method("lora", rank=-1),
    _method("lora", rank=MAX_RANK + 1),
    _method("lora", rank=10**30),
    _method("lora", rank=1e300),
    _method("lora", rank="8; import os"),
    _method("lora", rank=[8]),
    _method("lora", alpha="nan"),
    _method("lora", layers=[10**9]),
    _method("lora", target_modules=["../query"]),
    _method("lora", __class__="x"),
    _method("vera", rank=10**9),
    _method("peft", type="loha", options={"r": 10**9}),
    _method("peft", type="lora", options={"megatron_config": {"a": 1}, "megatron_core": "antigravity"}),
    _method("peft", type="loha", options={"target_modules": "(a+)+$"}),
    _method("peft", type="loha", options={"auto_mapping": {"parent_library": "antigravity"}}),
    _method("../lora"),
    _method("__import__"),
    {"labels": []},
    {"labels": ["a", "a", "b"]},
    {"labels": "abc"},
    {"label_type": "int"},
    {"label_type": "bool"},
    {"label_type": "pickle"},
    {"temperature": float("1e400")},
    {"temperature": -1.0},
    {"temperature": 0},
    {"positive_threshold": 2.0},
    {"thresholds": [0.5]},
    {"multi_label": True, "thresholds": [0.1, 0.2, -0.1]},
    {"multi_label": True, "thresholds": [0.1, 0.2]},
    {"max_tokens": 10**18},
    {"max_tokens": 0},
    {"training": {"evaluations": 3}},
    {"training": []},
    {"head": []},
    {"head": ["bert.embeddings.word_embeddings.weight"]},
    {"form": "delta"},
    {"form": "parameters"},
    {"form": "merged"},
    {"form": "pickle"},
    {"format": 0},
    {"format": "1"},
    {"backbone": None},
    {"files": None},
]


@pytest.mark.parametrize("changes", MANIFEST_CHANGES, ids=lambda changes: str(changes)[:60])
def test_a_manifest_of_nonsense_is_refused(wholes: dict[str, Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = copied(wholes, tmp_path)
    rewrite(folder, **changes)
    refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"positive_threshold": -0.1},
        {"positive_threshold": 1.1},
        {"positive_threshold": "x"},
        {"multi_label": True, "thresholds": [0.5, 0.5], "positive_threshold": 0.5},
    ],
    ids=str,
)
def test_the_threshold_of_two_labels_is_a_probability(tmp_path: Path, change: dict[str, Any]) -> None:
    from pydantic import ValidationError

    from fleetune.bundle.manifest import Manifest

    folder = saved(tmp_path / "b")
    fields = {**json.loads((folder / MANIFEST).read_text()), "labels": ["no", "yes"]}
    fields.pop("sha256")
    Manifest.model_validate({**fields, "positive_threshold": 0.25})
    with pytest.raises(ValidationError):
        Manifest.model_validate({**fields, **change})


@pytest.mark.parametrize("form", ["adapter", "parameters", "merged"])
def test_tensor_files_are_held_to_header_shape_type_and_values(
    wholes: dict[str, Path], tmp_path: Path, form: str
) -> None:
    path = next(wholes[form].glob("*.safetensors"))
    whole, tensors = path.read_bytes(), load_file(path)
    size = struct.unpack("<Q", whole[:8])[0]
    name = sorted(tensors)[0]
    hostile: dict[str, bytes] = {
        "empty": b"",
        "seven bytes": whole[:7],
        "header longer than the file": struct.pack("<Q", 2**63 - 1) + whole[8:],
        "header of four gigabytes": struct.pack("<Q", 2**32) + whole[8:],
        "header is no JSON": whole[:8] + b"x" * size + whole[8 + size :],
        "header is nested": struct.pack("<Q", 100_000) + b"[" * 100_000 + whole[8 + size :],
        "cut": whole[:-4],
        "longer": whole + b"\0" * 64,
        "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "a zip": b"PK\x03\x04" + whole[4:],
    }
    for offsets in ([0, 2**62], [-4, 0], [8, 4], [0, 0]):
        header = json.loads(whole[8 : 8 + size])
        header[name]["data_offsets"] = offsets
        text = json.dumps(header).encode()
        hostile[f"offsets {offsets}"] = struct.pack("<Q", len(text)) + text + whole[8 + size :]
    changed: dict[str, dict[str, torch.Tensor]] = {
        "missing": {key: value for key, value in tensors.items() if key != name},
        "more": {**tensors, "evil.weight": torch.zeros(3)},
        "renamed": {("evil" if key == name else key): value for key, value in tensors.items()},
        "wide": {**tensors, name: torch.zeros(1, *tensors[name].shape)},
        "short": {**tensors, name: tensors[name][..., :-1].contiguous()},
        "whole numbers": {**tensors, name: torch.zeros(tensors[name].shape, dtype=torch.int64)},
        "nan": {**tensors, name: torch.full_like(tensors[name], float("nan"))},
        "infinite": {**tensors, name: torch.full_like(tensors[name], float("-inf"))},
    }
    contents: list[bytes | dict[str, torch.Tensor]] = [*hostile.values(), *changed.values()]
    for number, content in enumerate(contents):
        folder = Path(shutil.copytree(wholes[form], tmp_path / str(number)))
        if isinstance(content, bytes):
            (folder / path.name).write_bytes(content)
        else:
            save_file(content, folder / path.name, metadata={"format": "pt"})
        rewrite(folder)
        refused(folder)


def test_further_weights_and_configurations_are_refused(wholes: dict[str, Path], tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "delta.safetensors", "extra.safetensors"):
        folder = copied(wholes, tmp_path)
        content = (folder / "adapter_model.safetensors").read_bytes() if name.endswith("safetensors") else b"{}"
        add_file(folder, name, content)
        assert name in refused(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}},
        {"tokenizer_file": "/etc/passwd"},
        {"vocab_file": "../../secret.txt"},
        {"special_tokens_map_file": "/etc/passwd"},
        {"fast_tokenizer_files": ["../../outside/tokenizer.1.0.json"]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_tokenizer_names_no_code_and_no_files(
    wholes: dict[str, Path], tmp_path: Path, fields: dict[str, Any]
) -> None:
    folder = copied(wholes, tmp_path)
    add_file(folder, "tokenizer_config.json", json.dumps(fields).encode())
    assert "tokenizer_config.json" in refused(folder)


def test_an_unreadable_tokenizer_is_one_clear_line(wholes: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(wholes, tmp_path)
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "sha256": None, "padding_side": "right",
                 "truncation_side": "right"}  # fmt: skip
    for content in (b"", b"{}", b"[" * 100_000, b'{"version": "1.0", "model": {"type": "WordPiece", "vocab": 3}}'):
        add_file(folder, "tokenizer.json", content)
        rewrite(folder, tokenizer=tokenizer)
        bundle = load_bundle(folder)
        with pytest.raises(BundleError, match="the tokenizer"):
            bundle.open_tokenizer()


def test_labels_of_control_characters_stay_labels(tmp_path: Path) -> None:
    """They may come from anybody's data; what shows them escapes them."""
    from fleetune.bundle import save_bundle
    from fleetune.methods import get
    from tests.integration.test_bundle import backbone_of, trained

    labels = ["\x1b[2J\x1b]0;title\x07", "a\nb\r", "<script>alert(1)</script>"]
    backbone, method = backbone_of("bert"), get("head")()
    save_bundle(tmp_path / "b", backbone, method, trained(backbone, method), labels)
    assert load_bundle(tmp_path / "b").manifest.labels == labels


def test_the_bundle_may_be_reached_by_a_link_that_its_reader_typed(wholes: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(wholes["adapter"])
    assert load_bundle(tmp_path / "latest").manifest.labels == LABELS


@pytest.mark.parametrize(
    ("pattern", "tame"),
    [
        (r".*\.(query|value)", True),
        (r"bert\.encoder\.layer\.\d+\..*(query|value)", True),
        ("(a+)+$", False),
        ("(a*)*b", False),
        ("(.*a){20}", False),
        ("((a|b)+c?)+", False),
        (".*.*.*.*.*.*.*.*x", False),
        ("a" * 1_000, False),
        ("(.|.)*!", False),
        ("((.*))*!", False),
        ("(?:(?:.+))+!", False),
        (".?" * 41, False),
        ("(e|e)(n|n)(c|c)", False),
        ("(|)(|)(|)", False),
        ("(query|query)", False),
        (r".*\.0\..*\.key", True),
        (r".*\.(?:query|value)$", True),
        (r"\w+", False),
        ("[ab]", False),
        ("a\n", False),
    ],
)
def test_patterns_that_might_take_forever_are_told_apart(pattern: str, tame: bool) -> None:
    assert is_tame(pattern) == tame


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "(.|.)*!"},
        {"target_modules": ["query", "((.*))*!"]},
        {"exclude_modules": ".?" * 41},
        {"layers_pattern": ["layer", "(?:(?:.+))+!"]},
        {"layers_pattern": "(.|.)*!"},
        {"rank_pattern": {"(.|.)*!": 4}},
        {"alpha_pattern": {".*query": 4}},
        {"anything": {"else": [{"((.*))*!": 1}]}},
        {"rank_pattern": {"query": MAX_RANK + 1}},
        {"rank_pattern": {"query": 1e12}},
        {"r": 10**9},
        {"n_frequency": 10**12},
        {"block_size_pattern": {"query": -(10**12)}},
    ],
    ids=str,
)
def test_patterns_and_sizes_are_bounded_wherever_they_stand(options: dict[str, Any]) -> None:
    assert settings_fault({"type": "loha", "options": options}) is not None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": "all-linear", "r": 8, "alpha": 16.0, "module_dropout": 0.0, "init_weights": True},
        {"target_modules": ["bert.encoder.layer.0.attention.self.query", "value"], "exclude_modules": ["key"]},
        {"target_modules": r".*\.(query|value)", "layers_to_transform": [0, 1], "layers_pattern": ["layer"]},
        {"rank_pattern": {"query": 4, "encoder.layer.0.attention.self.value": MAX_RANK}, "alpha_pattern": {}},
        {"projection_prng_key": 2**62, "random_loc_seed": 2**40, "n_frequency": 65_536},
    ],
    ids=str,
)
def test_settings_of_common_adapters_pass(options: dict[str, Any]) -> None:
    assert settings_fault({"type": "loha", "options": options}) is None


def test_an_exported_method_names_its_modules_in_full_where_a_pattern_chose_them() -> None:
    from fleetune.methods import get

    places = [f"bert.encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")]
    tensors: dict[str, dict[str, torch.Tensor]] = {place: {} for place in places}
    options = {"target_modules": r".*[qv].*(e)?", "exclude_modules": ".*x.*", "rank_pattern": {r".*\.1\..*query": 3}}
    stored, _ = get("peft")(type="loha", options=options).stored(tensors)
    kept = stored.settings["options"]
    assert kept["target_modules"] == places
    assert "exclude_modules" not in kept
    assert kept["rank_pattern"] == {"encoder.layer.1.attention.self.query": 3}
    assert settings_fault(stored.settings) is None
    named = get("peft")(type="loha", options={"target_modules": ["query"], "rank_pattern": {"query": 3}})
    kept = named.stored(tensors)[0].settings["options"]
    assert kept["target_modules"] == ["query"]
    assert kept["rank_pattern"] == {"query": 3}
    assert in_full({"x": 1}, places) == {}
    assert is_literal(["query", "all-linear", 3, None])


def test_groups_within_groups_are_counted_together() -> None:
    from fleetune.bundle.configuration import _check_fields

    _check_fields({"num_hidden_groups": 4, "inner_group_num": 8}, 2)
    with pytest.raises(ValueError, match="at most"):
        _check_fields({"num_hidden_groups": 1_000, "inner_group_num": 1_000}, 2)


def test_configurations_are_small(wholes: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(wholes, tmp_path)
    add_file(folder, "tokenizer_config.json", b'{"a": [' + b"[]," * (5 << 20) + b"1]}")
    assert "at most" in refused(folder)
    add_file(folder, "tokenizer_config.json", b'{"a": [' + b"[]," * 200_000 + b"1]}")
    assert "lists and tables" in refused(folder)
    (folder / "tokenizer_config.json").unlink()
    add_file(folder, "tokenizer_config.json")
    for name in ("adapter_config.json", "model_config.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole.rstrip()[:-1] + b', "x": "' + b" " * (2 << 20) + b'"}')
        rewrite(folder)
        assert "at most" in refused(folder)
        (folder / name).write_bytes(whole)
    rewrite(folder)
    load_bundle(folder)


def test_the_configuration_of_many_labels_may_be_large() -> None:
    from fleetune.bundle.configuration import config_limit

    for labels in (["\0" * 9 + str(number) for number in range(30_000)], ["no", "yes"]):
        fields = {"id2label": dict(enumerate(labels)), "label2id": {name: place for place, name in enumerate(labels)}}
        manifest: Any = type("Named", (), {"labels": labels})()
        assert len(json.dumps(fields, indent=2)) < config_limit(manifest) < (16 << 20)


def test_a_configuration_writes_nothing_to_the_terminal(wholes: dict[str, Path], tmp_path: Path) -> None:
    from fleetune.engine.model_config import read_model_config
    from fleetune.errors import BackboneError

    # The library's own handler writes to the stderr that was there when it was imported.
    logger, handler = logging.getLogger("transformers"), logging.StreamHandler(said := io.StringIO())
    sign = "\x1b]0;PWNED\x07"
    rope = {"rope_type": "linear", "factor": sign, "rope_theta": sign}
    fields = json.loads((tiny_folder("llama") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "rope_parameters": rope, "rope_scaling": rope}))
    folder = copied(wholes, tmp_path)
    edit(folder, "model_config.json", lambda fields: fields.update(rope_parameters=rope))
    logger.addHandler(handler)
    try:
        with suppress(BackboneError):
            read_model_config(tmp_path)
        with suppress(BundleError):
            load_bundle(folder)
        assert "PWNED" not in said.getvalue()
        with suppress(KeyError, TypeError, ValueError):
            AutoConfig.from_pretrained(tmp_path)
        assert "PWNED" in said.getvalue(), "transformers says it no more: nothing is left to test"
    finally:
        logger.removeHandler(handler)


def test_an_object_that_repeats_nothing_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    document = {"a": [1, {"b": None}], "c": {"a": 1, "b": {"a": 2}}}
    path.write_text(json.dumps(document))
    assert read_table(path, 1_000) == document
    with pytest.raises(ValueError, match="bytes"):
        read_table(path, 5)


def test_the_untouched_bundles_load(wholes: dict[str, Path]) -> None:
    for form, folder in wholes.items():
        assert load_bundle(folder).manifest.form == form
    assert tiny_folder("bert").is_dir()
