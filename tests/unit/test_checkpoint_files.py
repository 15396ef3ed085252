"""Files of tensors: readable by safetensors, the same bytes each time, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fleetune.engine.checkpoint import load_checkpoint, load_tensors, save_checkpoint, save_tensors

TENSORS = {
    "b/weight": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    "a": torch.tensor(7),
    "moments": torch.arange(5, dtype=torch.uint8),
    "half": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
    "wide": torch.tensor([[0.1]], dtype=torch.float64),
    "none": torch.empty(0, 3),
    "flag": torch.tensor([True, False]),
    "é": torch.nn.Parameter(torch.full((2,), float("nan"))),
}


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    saved = save_tensors(tmp_path, "one/last/state-1.safetensors", TENSORS)
    path = tmp_path / saved.path
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name].nan_to_num(), tensor.detach().nan_to_num()), name
    with safe_open(path, "pt") as file:
        assert sorted(file.keys()) == sorted(TENSORS)
    assert saved.bytes == path.stat().st_size
    assert saved.is_whole(tmp_path)
    assert load_tensors(tmp_path, saved).keys() == TENSORS.keys()


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    backwards = dict(reversed(TENSORS.items()))
    first, second = (save_tensors(tmp_path, f"{n}.safetensors", one) for n, one in enumerate((TENSORS, backwards)))
    assert first.sha256 == second.sha256


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_harm_is_seen(tmp_path: Path, harm: str) -> None:
    saved = save_tensors(tmp_path, "a.safetensors", TENSORS)
    path, blob = tmp_path / saved.path, bytearray((tmp_path / saved.path).read_bytes())
    blob[len(blob) // 2] ^= 8
    path.write_bytes(bytes(blob) if harm == "flip" else bytes(blob[:-1]))
    if harm == "remove":
        path.unlink()
    assert not saved.is_whole(tmp_path)


@pytest.mark.parametrize("number", range(6))
def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    save_checkpoint(tmp_path, {"a": torch.zeros(3)}, {"step": 1})
    calls: list[str] = []

    def failing(name: str) -> None:
        whole = getattr(os, name)

        def call(*given: object) -> object:
            calls.append(name)
            if len(calls) == number + 1:
                raise OSError(28, "No space left on device")
            return whole(*given)

        monkeypatch.setattr(os, name, call)

    failing("fsync")
    failing("replace")
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, {"a": torch.ones(3)}, {"step": 2})
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["step"] == (2 if number == 5 else 1)
    assert float(found[0]["a"].sum()) == (3.0 if number == 5 else 0.0)
    assert not list(tmp_path.glob("*.partial"))
