"""Memory is what the system says of this process and its container."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fleetune import memory
from fleetune.runtime import device

on_processor = pytest.mark.skipif(device().type != "cpu", reason="the GPU's memory is counted here")


@on_processor
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can set the peak anew")
def test_a_peak_begins_anew():
    block = np.ones(50_000_000)
    assert memory.peak_bytes() >= memory.used_bytes() - 2**22 >= block.nbytes
    high = memory.peak_bytes()
    del block
    if not memory.begin_peak():
        pytest.skip("this system does not let the peak be set")
    assert memory.peak_bytes() < high - 300_000_000


GROUPS = {
    2: ("0::/job/step", "", "memory.max", "memory.current", "inactive_file"),
    1: ("7:cpu,memory:/job/step", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@on_processor
@pytest.mark.parametrize("version", [1, 2])
def test_what_is_available_is_bounded_by_every_group_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
):
    line, below, limit, used, cache = GROUPS[version]
    (tmp_path / "cgroup").write_text(f"3:pids:/other\n{line}\n")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "cgroup")

    def group(name: str, most: str, now: int, cached: int) -> None:
        folder = tmp_path / below / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(most + "\n")
        (folder / used).write_text(f"{now}\n")
        (folder / "memory.stat").write_text(f"anon 1\n{cache} {cached}\n")

    assert memory._left_in_groups() == []
    group("job/step", "max", 5, 0)
    assert memory._left_in_groups() == []
    group("job", "1005", 105, 100)
    assert memory.available_bytes() == 1000
    group("job/step", "500", 100, 0)
    assert memory._left_in_groups() == [400, 1000]
    assert memory.available_bytes() == 400
    group("job/step", "500", 2000, 0)
    assert memory.available_bytes() == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (OSError(errno.EIO, "out of memory card"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("a bad target"), False),
    ],
)
def test_what_says_that_memory_ran_out(error: Exception, expected: bool):
    assert memory.is_out_of_memory(error) is expected
