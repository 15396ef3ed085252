"""Models of every supported architecture with few random weights, and random tokens for them."""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
import transformers

from fleetune.data.dataset import SplitName
from fleetune.data.tokens import Tokens
from fleetune.engine.backbone import Backbone, load_backbone
from fleetune.engine.config import BackboneConfig, TrainingConfig
from fleetune.engine.events import Event
from fleetune.engine.fleet import Fleet, FleetData
from fleetune.engine.trial import TrialSpec
from fleetune.errors import MethodError
from fleetune.methods import all_methods, get
from fleetune.methods.base import Method

VOCABULARY = 100
_COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "initializer_range": 0.3}
_ENCODER = {
    **_COMMON,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True}
_FIELDS: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "distilbert": {**_COMMON, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
    "roberta": {**_ENCODER, "pad_token_id": 1, "max_position_embeddings": 66},
    "xlm-roberta": {**_ENCODER, "pad_token_id": 1, "max_position_embeddings": 66},
    "camembert": {**_ENCODER, "pad_token_id": 1, "max_position_embeddings": 66},
    "mpnet": {**_ENCODER, "pad_token_id": 1, "max_position_embeddings": 66},
    "deberta-v2": {
        **_ENCODER,
        "relative_attention": True,
        "position_buckets": 8,
        "max_relative_positions": -1,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": 32,
    },
    "electra": {**_ENCODER, "embedding_size": 16},
    "albert": {**_ENCODER, "embedding_size": 16, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    "modernbert": {**_ENCODER, "local_attention": 8, "global_attn_every_n_layers": 2, "initializer_cutoff_factor": 3.0},
    "llama": _DECODER,
    "mistral": {**_DECODER, "sliding_window": 6},
    "gemma": _DECODER,
    "gemma2": {**_DECODER, "sliding_window": 6},
    "gemma3_text": {**_DECODER, "sliding_window": 6},
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "phi": {**_DECODER, "partial_rotary_factor": 0.5},
    "phi3": {**_DECODER, "sliding_window": 6},
}
ARCHITECTURES = sorted(_FIELDS)
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.1] * 4, "long_factor": [1.5] * 4}
_VARIANT_FIELDS: dict[str, dict[str, Any]] = {
    "deberta-v2 with a convolution": {"conv_kernel_size": 3, "conv_act": "gelu"},
    "deberta-v2 with apart projections": {
        "share_att_key": False,
        "position_buckets": -1,
        "max_relative_positions": 12,
        "norm_rel_ebd": "none",
        "position_biased_input": True,
        "type_vocab_size": 2,
    },
    "deberta-v2 from content alone": {"pos_att_type": ["c2p"], "embedding_size": 16},
    "gemma both ways": {"use_bidirectional_attention": True},
    "gemma2 both ways": {"use_bidirectional_attention": True},
    "gemma3_text both ways": {"use_bidirectional_attention": True, "sliding_window": 8},
    "gemma3 with images": {
        "text_config": {**_DECODER, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
        "vision_config": {**_VISION, "image_size": 28, "patch_size": 14},
        "mm_tokens_per_image": 4,
        "image_token_id": 99,
    },
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "mistral without a window": {"sliding_window": None},
    "phi with norms of heads": {"qk_layernorm": True},
    "phi3 with long texts": {
        "sliding_window": None,
        "original_max_position_embeddings": 64,
        "max_position_embeddings": 128,
        "rope_parameters": _LONGROPE,
    },
    "qwen2 with a window": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
}
VARIANTS = sorted(_VARIANT_FIELDS)
"""Models of a supported architecture whose configuration changes what is computed: `architecture how`."""
PADDED_ONLY = {"mpnet", "gemma both ways", "gemma2 both ways"} | {
    name for name in (*ARCHITECTURES, *VARIANTS) if name.startswith("deberta")
}
"""Relative positions are not told where texts begin; and Gemma 1 and 2 say that they look both ways, but their masks
are causal all the same."""
REPRESENTATIVE = ("bert", "distilbert", "roberta", "modernbert", "llama", "gemma", "qwen2")
"""Those on which exactness is tested at length; Llama's keys are grouped."""
_VARIANTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("lora", {"rank": 2, "target_modules": ("all-linear",), "dropout": 0.1}, {"gradient_accumulation_steps": 2}),
    ("ia3", {}, {"batch_size": 3, "class_weights": "balanced"}),
    ("lora", {"rank": 16, "dropout": 0.5}, {"backbone_dropout": False, "head_dropout": 0.5}),
    ("norm", {}, {"schedule": "cosine", "warmup_steps": 10, "learning_rate": 1e-2}),
]


@cache
def scratch() -> Path:
    """Returns a folder for what tests of one process share; it is gone when that process ends."""
    folder, owner = Path(mkdtemp(prefix="fleetune-tests-")), os.getpid()
    # A forked child that ends first must leave it to the others.
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    return folder


@cache
def tiny_folder(architecture: str) -> Path:
    """Returns a folder with a pretrained-looking tiny model (or variant): backbone weights, no classification head."""
    kind = architecture.split()[0]
    fields = {**_FIELDS.get(kind, {}), **_VARIANT_FIELDS.get(architecture, {})}
    config = transformers.AutoConfig.for_model(kind, **fields)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases and gains start at 0 and 1, where mistakes cannot be seen.
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            assert torch.isfinite(parameter).all(), name
    folder = scratch() / f"tiny-{architecture.replace(' ', '-')}"
    model.save_pretrained(folder)
    return folder


def tiny_backbone(
    architecture: str = "bert", num_labels: int = 3, precision: str = "float64", layout: str = "auto"
) -> Backbone:
    """Returns a freshly loaded tiny backbone."""
    config = BackboneConfig.model_validate({"model": str(tiny_folder(architecture)), "layout": layout})
    return load_backbone(config, num_labels, precision)


def plain_model(architecture: str, num_labels: int = 3, dtype: torch.dtype = torch.float64) -> Any:
    """Returns the Hugging Face classification model over the same checkpoint, with its own random head."""
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny_folder(architecture), num_labels=num_labels, dtype=dtype, attn_implementation="eager"
    )


def random_tokens(texts: int, seed: int = 0, longest: int = 24, first_id: int = 2) -> Tokens:
    """Returns `texts` random texts of 1 to `longest` tokens, none of them a padding token."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, texts)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = rng.integers(first_id, VOCABULARY, int(offsets[-1])).astype(np.int32)
    return Tokens(ids, None, offsets, lengths.astype(np.int32), Path())


def random_data(num_labels: int = 3, train: int = 40, multi_label: bool = False, seed: int = 0) -> FleetData:
    """Returns random texts with random labels: `train` to train on, 12 to validate, 9 to test."""
    total = train + 21
    rng = np.random.default_rng(seed + 1)
    labels: Any = rng.integers(0, num_labels, total)
    if multi_label:
        labels = rng.integers(0, 2, (total, num_labels)).astype(np.uint8)
    splits: dict[SplitName, Any] = {
        "train": np.arange(train),
        "validation": np.arange(train, train + 12),
        "test": np.arange(train + 12, total),
    }
    return FleetData(random_tokens(total, seed), labels, splits)


def learnable_data(num_labels: int = 3, train: int = 60, seed: int = 0) -> FleetData:
    """Returns `random_data` in which every other token comes from the few that belong to the text's label."""
    data = random_data(num_labels, train, seed=seed)
    ids, offsets = data.tokens.input_ids, data.tokens.offsets
    words = num_labels * np.random.default_rng(seed + 2).integers(1, 4, len(ids))
    own = words + np.repeat(data.labels.astype(np.int64), data.tokens.lengths)
    marked = np.arange(len(ids)) % 2 == 0
    # The first or the last token may speak for the whole text.
    marked[offsets[:-1]] = marked[offsets[1:] - 1] = True
    marked_ids = np.where(marked, own, ids).astype(np.int32)
    return FleetData(Tokens(marked_ids, None, offsets, data.tokens.full_lengths, Path()), data.labels, data.splits)


def fitting_methods(backbone: Backbone) -> list[str]:
    """Returns the kinds of all registered methods that can train on the backbone."""
    return [kind for kind in all_methods() if _fits(get(kind)(), backbone)]


def _fits(method: Method, backbone: Backbone) -> bool:
    try:
        method.sites(backbone.shape)
    except MethodError:
        return False
    return True


def spec(kind: str, seed: int = 0, settings: dict[str, Any] | None = None, **training: Any) -> TrialSpec:
    """Returns a short trial of a method; dropout as the model has it unless `training` says otherwise."""
    fields = {"batch_size": 4, "epochs": 1.0, "learning_rate": 1e-3, "metric": "accuracy", **training}
    return TrialSpec(f"{kind}-{seed}", get(kind)(**(settings or {})), TrainingConfig.model_validate(fields), seed)


def mixed_specs(architecture: str, least: int = 8, **training: Any) -> list[TrialSpec]:
    """Returns a trial of each method that can share the backbone, then variants until there are `least`."""
    kinds = [kind for kind in fitting_methods(tiny_backbone(architecture)) if get(kind).shares_backbone]
    settings: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        *((kind, {"dropout": 0.2} if kind == "lora" else {}, {}) for kind in kinds),
        *_VARIANTS,
    ]
    chosen = settings[: max(least, len(kinds))]
    return [spec(kind, seed, own, **{**training, **extra}) for seed, (kind, own, extra) in enumerate(chosen)]


def train_until(fleet: Callable[..., Fleet], is_enough: Callable[[Event], bool]) -> list[Event]:
    """Returns what happens until an event is enough; then the fleet saves itself and ends, as a run that is stopped.

    Args:
        fleet: Makes it, given `is_stopped`.
        is_enough: Says which event.
    """
    events: list[Event] = []
    asked: list[Event] = []
    for event in fleet(is_stopped=lambda: bool(asked)).train():
        events.append(event)
        if is_enough(event):
            asked.append(event)
    return events


@contextmanager
def attached(
    backbone: Backbone, trials: Mapping[int, tuple[Method, Mapping[str, torch.Tensor]]]
) -> Iterator[dict[int, dict[str, torch.Tensor]]]:
    """Puts trained tensors, named as `TrialParameters.state` names them, on the backbone; yields the heads by slot."""
    for slot, (method, tensors) in trials.items():
        by_site: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            site, separator, parameter = name.partition("::")
            if separator:
                by_site.setdefault(site, {})[parameter] = tensor
        backbone.attach(slot, method, by_site)
    try:
        yield {
            slot: {name: tensor for name, tensor in tensors.items() if "::" not in name}
            for slot, (_, tensors) in trials.items()
        }
    finally:
        for slot in trials:
            backbone.detach(slot)


def relative_difference(got: Any, expected: Any) -> float:
    """Returns the largest difference of two arrays, relative to the largest value expected."""
    difference, largest = np.abs(got - expected).max(initial=0.0), np.abs(expected).max(initial=0.0)
    return float(difference / largest) if difference else 0.0


def padded_inputs(tokens: Tokens, texts: Any, padding: int) -> dict[str, torch.Tensor]:
    """Returns `input_ids` and `attention_mask` as a plain data collator makes them."""
    longest = int(tokens.lengths[texts].max())
    ids = torch.full((len(texts), longest), padding)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        own = tokens.input_ids[tokens.offsets[text] : tokens.offsets[text + 1]]
        ids[row, : len(own)] = torch.from_numpy(np.array(own, dtype=np.int64))
        mask[row, : len(own)] = 1
    return {"input_ids": ids, "attention_mask": mask}
