"""Saves a trained classifier as a folder, reads it back only if it is whole, and proves that it gives the same logits.

A bundle comes in one of four forms:

    adapter     `adapter_config.json`, `adapter_model.safetensors`: what PEFT saves, and loads, if it has the method
    parameters  `parameters.safetensors`: plain Hugging Face names, for `load_state_dict(…, strict=False)`
    delta       `delta.safetensors`: a method that neither PEFT nor transformers know; for Fleetune alone
    merged      `config.json`, `model.safetensors`: a complete Hugging Face model that needs no backbone

With each come `fleetune.json` (labels, thresholds, temperature, backbone, tokenizer, checksums) and the tokenizer's
files. The first three have `model_config.json` too, the backbone's configuration with the labels' names. It is not
called `config.json`, which would make transformers look for a complete model in the folder. The model card,
`README.md`, has no checksum: people mend its words.
"""

from __future__ import annotations

from fleetune.bundle.loading import Bundle, load_bundle
from fleetune.bundle.manifest import Manifest
from fleetune.bundle.saving import save_bundle
from fleetune.bundle.verification import verify_bundle

__all__ = ["Bundle", "Manifest", "load_bundle", "save_bundle", "verify_bundle"]
