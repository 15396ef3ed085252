"""The ways to fine-tune, one file each: every module of this package that registers a method is found by itself."""

from __future__ import annotations

from fleetune.methods.registry import (
    all_baselines,
    all_methods,
    get,
    is_baseline,
    is_floor,
    reads_model,
    register,
)

__all__ = ["all_baselines", "all_methods", "get", "is_baseline", "is_floor", "reads_model", "register"]
