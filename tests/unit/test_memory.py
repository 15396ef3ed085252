"""Memory is what the system says of this process and its container."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

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
    assert memory.begin_peak()
    assert memory.peak_bytes() < high - 300_000_000


@on_processor
def test_what_is_available_is_bounded_by_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    free = memory.available_bytes()
    assert free > 0
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert memory.available_bytes() > 10**6
    (tmp_path / "memory.max").write_text("1005\n")
    assert memory.available_bytes() == 1000
    (tmp_path / "memory.current").write_text("2000\n")
    assert memory.available_bytes() == 0
