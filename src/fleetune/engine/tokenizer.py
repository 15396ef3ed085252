"""Loads a backbone's tokenizer, and finds a padding token that can be told from a text's last."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetune.engine.architecture import architecture_of
from fleetune.engine.config import BackboneConfig
from fleetune.engine.model_config import config_fields
from fleetune.engine.source import find_folder
from fleetune.engine.tokenizer_files import one_line_errors, read_tokenizer
from fleetune.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANY_TEXT = "text"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tekken.json")
SENTENCEPIECE_FILES = ("spm.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


def load_tokenizer(config: BackboneConfig) -> PreTrainedTokenizerBase:
    """Returns the backbone's tokenizer, padding on the right, with a pad token even where the model has none.

    Raises:
        BackboneError: If the folder has no usable tokenizer.
    """
    folder = find_folder(config)
    _check_files(folder)
    try:
        tokenizer = read_tokenizer(folder)
    except (OSError, ValueError) as error:
        raise BackboneError(f"{folder} has no usable tokenizer: {error}") from None
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise BackboneError(f"the tokenizer in {folder} knows no words, only special tokens.\nPut its files there")
    tokenizer.padding_side = "right"
    fields = config_fields(folder)
    if architecture_of(str(fields.get("model_type", ""))).pool == "last":
        vocabulary = int({**fields, **fields.get("text_config", {})}.get("vocab_size", 1 << 31))
        tokenizer.pad_token = _padding_apart(tokenizer, vocabulary, folder)
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_files(folder: Path) -> None:
    """Raises BackboneError where transformers would make up a tokenizer that takes every word for unknown."""
    found = [name for name in (*TOKENIZER_FILES, *SENTENCEPIECE_FILES) if (folder / name).is_file()]
    if not found:
        raise BackboneError(
            f"{folder} holds no tokenizer ({TOKENIZER_FILES[0]}).\nSave it there: tokenizer.save_pretrained(FOLDER)"
        )
    if found[0] in SENTENCEPIECE_FILES and find_spec("sentencepiece") is None:
        raise BackboneError(
            f"{folder} has its tokenizer in {found[0]} alone, which needs a package to be read.\n"
            "Type: pip install sentencepiece protobuf; or put a tokenizer.json there"
        )


def _padding_apart(tokenizer: Any, vocabulary: int, folder: Path) -> str:
    """Returns a padding token with which no text ends, and that the model's `vocabulary` embeddings have.

    Transformers takes the last token that is not padding. Where texts end with an end token that is the padding
    token too, that is the token before, on which nothing was trained.
    """
    try:
        with one_line_errors():
            tokens = tokenizer.convert_ids_to_tokens(tokenizer(ANY_TEXT)["input_ids"])
    except ValueError as error:
        raise BackboneError(f"{folder} has no usable tokenizer: {error}") from None
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
