"""Memory in use, at its peak, and to be had: of the GPU where there is one, else of this process."""

from __future__ import annotations

import ctypes
import errno
import gc
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from fleetune.runtime import device

_NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "std::bad_alloc",
    "cublas_status_alloc_failed",
)
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def give_back() -> None:
    """Hands memory that nothing uses back to the system, or to the GPU."""
    gc.collect()
    if device().type == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    else:
        _trim()


def _trim() -> None:
    """Hands freed memory of the C library back to the system, where it is glibc."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def begin_peak() -> bool:
    """Gives back memory that nothing uses and sets the peak to what is left; returns whether the peak could be set."""
    give_back()
    if device().type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        # As proc(5) has it: 5 resets the peak resident set size to its current value.
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Returns the most since the process began, or since `begin_peak`: allocated on the GPU, or resident."""
    if device().type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return _high_water() or _peak_of_process()


def _high_water() -> int:
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _peak_of_process() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def used_bytes() -> int:
    """Returns what is in use now, as `peak_bytes` counts it."""
    if device().type == "cuda":
        import torch

        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)


def available_bytes() -> int:
    """Returns what this process can have besides what it uses: of the GPU, or of the machine or its container."""
    if device().type == "cuda":
        import torch

        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + cached
    return min([int(psutil.virtual_memory().available), *_left_in_groups()])


def _left_in_groups() -> list[int]:
    """Returns what each control group around this process leaves, of version 2 or 1; nothing where none has a limit.

    Cached files count as used there, though they give way.
    """
    left = []
    for folder, limit, used, cache in _groups():
        try:
            most, now = int((folder / limit).read_text()), int((folder / used).read_text())
            facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        left.append(max(0, most - now + int(facts.get(cache, 0))))
    return left


def _groups() -> Iterator[tuple[Path, str, str, str]]:
    """Yields the folder of each control group around this process, and how its limit, use and cache are called."""
    lines = _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = _GROUPS / "memory" if controllers else _GROUPS
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            yield folder, *(names if controllers else ("memory.max", "memory.current", "inactive_file"))
            if folder == top:
                break


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether `error` says that memory ran out, on a GPU or in the process."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return any(words in str(error).lower() for words in _NO_MEMORY)
