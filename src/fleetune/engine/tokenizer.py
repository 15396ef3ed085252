"""Loads a backbone's tokenizer, and finds a padding token that can be told from a text's last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetune.engine.architecture import architecture_of
from fleetune.engine.config import BackboneConfig
from fleetune.engine.source import find_folder
from fleetune.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANY_TEXT = "text"


def load_tokenizer(config: BackboneConfig) -> PreTrainedTokenizerBase:
    """Returns the backbone's tokenizer, padding on the right, with a pad token even where the model has none.

    Raises:
        BackboneError: If the folder has no usable tokenizer.
    """
    from transformers import AutoTokenizer

    folder = find_folder(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise BackboneError(f"{folder} has no usable tokenizer: {str(error).splitlines()[0]}") from None
    tokenizer.padding_side = "right"
    fields = json.loads((folder / "config.json").read_bytes())
    if architecture_of(str(fields.get("model_type", ""))).pool == "last":
        vocabulary = int({**fields, **fields.get("text_config", {})}.get("vocab_size", 1 << 31))
        tokenizer.pad_token = _padding_apart(tokenizer, vocabulary, folder)
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer  # type: ignore[no-any-return]


def _padding_apart(tokenizer: Any, vocabulary: int, folder: Path) -> str:
    """Returns a padding token with which no text ends, and that the model's `vocabulary` embeddings have.

    Transformers takes the last token that is not padding. Where texts end with an end token that is the padding
    token too, that is the token before, on which nothing was trained.
    """
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(ANY_TEXT)["input_ids"])
    special = list(dict.fromkeys([*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]))
    named = [token for token in special if "pad" in token.lower()]
    known = [tokenizer.pad_token, *named, tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token, *special]
    for token in known:
        if token is not None and token != tokens[-1] and tokenizer.convert_tokens_to_ids(token) < vocabulary:
            return str(token)
    raise BackboneError(
        f"{folder}: its tokenizer ends texts with {tokens[-1]!r} and has no other special token to pad with.\n"
        "Give it a pad token of its own"
    )
