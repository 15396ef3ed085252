"""PEFT's types that train here, with options that fit modules 32 wide."""

from __future__ import annotations

from typing import Any

WORKS: dict[str, dict[str, Any]] = {
    "BEFT": {},
    "BOFT": {},
    "C3A": {"block_size": 8},
    "DEFT": {},
    "DELORA": {"r": 4, "module_dropout": 0.1},
    "FOURIERFT": {"n_frequency": 50, "scaling": 10.0},
    "GLORA": {},
    "GRALORA": {"r": 4, "gralora_dropout": 0.1},
    "HIRA": {"r": 4},
    "HRA": {"r": 4},
    "IA3": {"feedforward_modules": []},
    "LN_TUNING": {},
    "LOHA": {"r": 4, "alpha": 8, "rank_dropout": 0.1, "module_dropout": 0.1},
    "LOKR": {"r": 4, "rank_dropout": 0.1},
    "LORA": {"r": 4, "lora_dropout": 0.1},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 8, "module_dropout": 0.1},
    "PEANUT": {"r": 4},
    "PSOFT": {"r": 4},
    "PVERA": {"r": 4},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "SUPERTUNING": {"sparsity": 0.9},
    "TINYLORA": {},
    "TRAINABLE_TOKENS": {"token_indices": [3, 4, 5, 6, 7]},
    "UNILORA": {"theta_d_length": 64},
    "VBLORA": {"vector_length": 16, "num_vectors": 8},
    "VERA": {"r": 8},
    "WAVEFT": {"n_frequency": 50},
}
CHIEF = (
    "LOHA", "LOKR", "OFT", "BOFT", "HRA", "FOURIERFT", "VBLORA", "RANDLORA", "SHIRA", "WAVEFT", "ROAD", "MISS", "C3A",
    "LN_TUNING", "DELORA", "GRALORA",
)  # fmt: skip
"""Tried each time; the others, and other architectures, with the slow tests."""
