"""The ways to fine-tune, one file each: every module of this package that registers a method is found by itself."""

from __future__ import annotations

from fleetune.methods.registry import all_methods, get, register

__all__ = ["all_methods", "get", "register"]
