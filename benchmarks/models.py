"""Model folders in the shape of well-known models, with random weights from a fixed seed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from fleetune.engine.backbone import load_tokenizer
from fleetune.engine.config import BackboneConfig
from fleetune.runtime import device

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "model_type": "bert",
        "tokenizer": "embedded:minilm",
        "dtype": torch.float32,
        "vocab_size": 30522,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    },
    "bert-base": {
        "model_type": "bert",
        "tokenizer": "embedded:minilm",
        "dtype": torch.float32,
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "qwen2-7b": {
        "model_type": "qwen2",
        "tokenizer": "embedded:smollm2",
        "dtype": torch.bfloat16,
        "vocab_size": 152064,
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": False,
    },
}
"""Fields of each shape's configuration, where its tokenizer comes from, and the type its weights are stored in."""


def random_model(name: str, scratch: Path) -> Path:
    """Returns the folder of a model of shape `name` below `scratch`; makes it at the first call."""
    folder = scratch / name
    if not folder.exists():
        _write(dict(SHAPES[name]), folder)
    return folder


def _write(fields: dict[str, Any], folder: Path) -> None:
    """Writes weights, configuration and tokenizer into `folder`, whole or not at all."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    tokenizer = load_tokenizer(BackboneConfig(model=fields.pop("tokenizer")))
    dtype = fields.pop("dtype")
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields, pad_token_id=tokenizer.pad_token_id)
    beside = folder.with_suffix(".part")
    torch.manual_seed(0)
    # Drawing seven billion values takes minutes on a processor and seconds on a GPU.
    with device():
        model = transformers.AutoModel.from_config(config, dtype=dtype)
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    shutil.move(beside, folder)
