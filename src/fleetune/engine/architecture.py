"""What Fleetune knows of each model family: what its modules do, and what stands between it and the logits."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from fleetune.errors import BackboneError
from fleetune.methods.base import Role

StageKind = Literal["module", "activation", "dropout"]
Relative = Literal["bias", "disentangled"]


@dataclass(frozen=True)
class Stage:
    """One step from the pooled token to the logits.

    Attributes:
        kind: `module` calls the Hugging Face module at path `name`; `activation` applies the function `name`;
            `dropout` drops at the rate that the configuration gives under the first of `rates` it has.
    """

    kind: StageKind
    name: str = ""
    rates: tuple[str, ...] = ()


def _module(name: str) -> Stage:
    return Stage("module", name)


def _activation(name: str) -> Stage:
    return Stage("activation", name)


def _dropout(*rates: str) -> Stage:
    return Stage("dropout", rates=rates)


@dataclass(frozen=True)
class Encoder:
    """Where the parts of a post-norm encoder's layers are, below the backbone.

    Attributes:
        layers: The list of layers.
        attention: The module of a layer that calls the attention function.
        projections: Query, key and value below it.
        output: The product below it that follows the attention function; empty where it lies outside.
        sums: Modules of a layer that compute `LayerNorm(dropout(dense(x)) + residual)`.
    """

    layers: str
    attention: str
    projections: tuple[str, str, str]
    output: str = ""
    sums: tuple[str, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """One family of models.

    Attributes:
        base: Attribute of the classification model that holds the backbone.
        roles: Role of each linear module by the end of its path; a longer end goes first.
        stages: From the pooled token to the logits.
        new: Modules of `stages` that a pretrained checkpoint lacks as a rule; loading one tells for sure.
        pool: Which token speaks for the text: `first`, `last`, or `config` (`classifier_pooling`: cls or mean).
        first_position_after_padding: Whether positions start at the padding id + 1 instead of 0.
        encoder: Where the parts of a layer are, for families whose first token speaks and whose positions enter at
            the embeddings alone; None for others.
        relative: How attention reads relative positions where it does not call transformers' attention interface:
            `bias` (MPNet) or `disentangled` (DeBERTa-v2); see `engine/relative.py`.
        heads_first: Ends of the paths of norms that see `(1, heads, tokens, head_width)`, not `(1, tokens, width)`.
        spare: Modules that classification of texts never calls, below the model; they are dropped after loading.
    """

    base: str
    roles: Mapping[str, Role]
    stages: tuple[Stage, ...]
    new: tuple[str, ...]
    pool: Literal["first", "last", "config"] = "first"
    first_position_after_padding: bool = False
    encoder: Encoder | None = None
    relative: Relative | None = None
    heads_first: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()


_BERT_ROLES: dict[str, Role] = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention_output",
    "intermediate.dense": "feed_forward_in",
    "output.dense": "feed_forward_out",
}
_DECODER_ROLES: dict[str, Role] = {
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.o_proj": "attention_output",
    "mlp.gate_proj": "feed_forward_gate",
    "mlp.up_proj": "feed_forward_in",
    "mlp.down_proj": "feed_forward_out",
}
_BERT_DROPOUT = _dropout("classifier_dropout", "hidden_dropout_prob")

_BERT_ENCODER = Encoder(
    layers="encoder.layer",
    attention="attention.self",
    projections=("query", "key", "value"),
    sums=("attention.output", "output"),
)

_BERT = Architecture(
    base="bert",
    roles=_BERT_ROLES,
    stages=(_module("bert.pooler.dense"), _activation("tanh"), _BERT_DROPOUT, _module("classifier")),
    new=("classifier",),
    encoder=_BERT_ENCODER,
)
_ROBERTA = Architecture(
    base="roberta",
    roles=_BERT_ROLES,
    stages=(
        _BERT_DROPOUT,
        _module("classifier.dense"),
        _activation("tanh"),
        _BERT_DROPOUT,
        _module("classifier.out_proj"),
    ),
    new=("classifier.dense", "classifier.out_proj"),
    first_position_after_padding=True,
    encoder=_BERT_ENCODER,
)
_DECODER = Architecture(base="model", roles=_DECODER_ROLES, stages=(_module("score"),), new=("score",), pool="last")
_GEMMA3 = replace(_DECODER, heads_first=("self_attn.q_norm", "self_attn.k_norm"))
_PHI_ROLES: dict[str, Role] = {
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.dense": "attention_output",
    "mlp.fc1": "feed_forward_in",
    "mlp.fc2": "feed_forward_out",
}
_PHI3_ROLES: dict[str, Role] = {
    "self_attn.qkv_proj": "query_key_value",
    "self_attn.o_proj": "attention_output",
    "mlp.gate_up_proj": "feed_forward_in",
    "mlp.down_proj": "feed_forward_out",
}

ARCHITECTURES: dict[str, Architecture] = {
    "bert": _BERT,
    "distilbert": Architecture(
        base="distilbert",
        roles={
            "attention.q_lin": "query",
            "attention.k_lin": "key",
            "attention.v_lin": "value",
            "attention.out_lin": "attention_output",
            "ffn.lin1": "feed_forward_in",
            "ffn.lin2": "feed_forward_out",
        },
        stages=(
            _module("pre_classifier"),
            _activation("relu"),
            _dropout("seq_classif_dropout"),
            _module("classifier"),
        ),
        new=("pre_classifier", "classifier"),
        encoder=Encoder("transformer.layer", "attention", ("q_lin", "k_lin", "v_lin"), output="out_lin"),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": Architecture(
        base="mpnet",
        roles={
            "attention.attn.q": "query",
            "attention.attn.k": "key",
            "attention.attn.v": "value",
            "attention.attn.o": "attention_output",
            "intermediate.dense": "feed_forward_in",
            "output.dense": "feed_forward_out",
        },
        stages=(
            _dropout("hidden_dropout_prob"),
            _module("classifier.dense"),
            _activation("tanh"),
            _dropout("hidden_dropout_prob"),
            _module("classifier.out_proj"),
        ),
        new=("classifier.dense", "classifier.out_proj"),
        first_position_after_padding=True,
        relative="bias",
    ),
    "deberta-v2": Architecture(
        base="deberta",
        roles={
            "attention.self.query_proj": "query",
            "attention.self.key_proj": "key",
            "attention.self.value_proj": "value",
            "attention.output.dense": "attention_output",
            "intermediate.dense": "feed_forward_in",
            "output.dense": "feed_forward_out",
        },
        stages=(
            _dropout("pooler_dropout"),
            _module("pooler.dense"),
            _activation("pooler_hidden_act"),
            _dropout("cls_dropout", "hidden_dropout_prob"),
            _module("classifier"),
        ),
        new=("pooler.dense", "classifier"),
        relative="disentangled",
    ),
    "electra": Architecture(
        base="electra",
        roles=_BERT_ROLES,
        stages=(
            _BERT_DROPOUT,
            _module("classifier.dense"),
            _activation("gelu"),
            _BERT_DROPOUT,
            _module("classifier.out_proj"),
        ),
        new=("classifier.dense", "classifier.out_proj"),
        encoder=_BERT_ENCODER,
    ),
    "albert": Architecture(
        base="albert",
        roles={
            "attention.query": "query",
            "attention.key": "key",
            "attention.value": "value",
            "attention.dense": "attention_output",
            "ffn": "feed_forward_in",
            "ffn_output": "feed_forward_out",
        },
        stages=(
            _module("albert.pooler"),
            _activation("tanh"),
            _dropout("classifier_dropout_prob"),
            _module("classifier"),
        ),
        new=("classifier",),
    ),
    "modernbert": Architecture(
        base="model",
        roles={
            "attn.Wqkv": "query_key_value",
            "attn.Wo": "attention_output",
            "mlp.Wi": "feed_forward_in",
            "mlp.Wo": "feed_forward_out",
        },
        stages=(
            _module("head.dense"),
            _activation("classifier_activation"),
            _module("head.norm"),
            _dropout("classifier_dropout"),
            _module("classifier"),
        ),
        new=("classifier",),
        pool="config",
    ),
    **dict.fromkeys(("llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3"), _DECODER),
    "gemma3_text": _GEMMA3,
    "gemma3": replace(
        _GEMMA3, base="model.language_model", spare=("model.vision_tower", "model.multi_modal_projector")
    ),
    "phi": replace(_DECODER, roles=_PHI_ROLES, heads_first=("self_attn.q_layernorm", "self_attn.k_layernorm")),
    "phi3": replace(_DECODER, roles=_PHI3_ROLES),
}


def architecture_of(model_type: str) -> Architecture:
    """Returns what is known of a family.

    Raises:
        BackboneError: If the family is not known; the message lists those that are.
    """
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    near = difflib.get_close_matches(model_type, ARCHITECTURES, n=1)
    hint = f"did you mean a {near[0]}? " if near else ""
    raise BackboneError(f"models of type '{model_type}' are not supported; {hint}Known: {', '.join(ARCHITECTURES)}")


def dropout_rate(config: Any, names: tuple[str, ...]) -> float:
    """Returns the first rate among the fields `names` that the model's configuration sets."""
    for name in names:
        rate = getattr(config, name, None)
        if rate is not None:
            return float(rate)
    return 0.0


BATCH_SCALED = ("longrope", "dynamic")
"""Kinds of rotary positions whose frequencies follow the longest text of a batch once it passes the trained length."""


def position_limit(config: Any) -> int | None:
    """Returns how many positions a model has, None where any number will do.

    Where frequencies would follow the longest text of a batch, a text's logits would depend on its neighbours; so
    the length before which they do not is the limit.
    """
    text: Any = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if limit is None or not getattr(text, "position_biased_input", True):
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") in BATCH_SCALED:
        limit = min(
            limit,
            getattr(text, "original_max_position_embeddings", None) or limit,
            rope.get("original_max_position_embeddings") or limit,
        )
    return int(limit)
