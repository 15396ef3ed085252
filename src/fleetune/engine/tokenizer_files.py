"""Looks through a tokenizer's files before they are opened: a tokenizer is data from strangers."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetune.engine.silence import quiet
from fleetune.errors import is_panic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG = "tokenizer_config.json"
MAX_CONFIG_BYTES = 4 << 20
"""Gemma 3 has one of 1.2 MB."""
MAX_BYTES = 128 << 20
MAX_CONTAINERS = 2_000_000
"""Lists and tables in one file: a pair for each of the merges, and what a byte each of `[]` would cost otherwise."""
VERSIONED = re.compile(r"tokenizer(\.[\w.-]+)?\.json", re.ASCII)
UNREAD = ("special_tokens_map_file", "tokenizer_file", "added_tokens_file")
"""Paths on the computer of who saved the tokenizer, in whose place transformers takes the folder's own files."""
MAX_EXPANSION = 64
"""Known tokenizers make a text up to twelve times as long, in bytes."""
MAX_PIECE = 64
"""Bytes that a map of signs puts in the place of one; the longest of those in use has 33."""
MAX_STEPS = 256


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Returns the tokenizer in `folder`.

    Raises:
        ValueError: If there is none, or its files are damaged or made to hurt; in one line.
    """
    from transformers import AutoTokenizer

    check_tokenizer_files(folder)
    with one_line_errors(), quiet():
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns whatever a tokenizer raises into a ValueError of one line; the tokenizers library has bare exceptions."""
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ValueError((str(error).strip().splitlines() or [type(error).__name__])[0]) from None


def check_tokenizer_files(folder: Path) -> None:
    """Raises ValueError where a tokenizer's files name others elsewhere, or blow up what they are given."""
    if (folder / CONFIG).is_file():
        _check_config(_table(folder / CONFIG, MAX_CONFIG_BYTES))
    for path in sorted(folder.glob("tokenizer*.json")):
        if path.name != CONFIG and path.is_file():
            try:
                _check_steps(_table(path, MAX_BYTES))
            except (TypeError, AttributeError, LookupError) as error:
                raise ValueError(f"{path.name}: {error}") from None


def _table(path: Path, max_bytes: int) -> dict[str, Any]:
    size = path.stat().st_size
    if size > max_bytes:
        raise ValueError(f"{path.name} has {size:,} bytes; at most {max_bytes:,} are read")
    data = path.read_bytes()
    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
        raise ValueError(f"{path.name} has more than {MAX_CONTAINERS:,} lists and tables")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError(f"{path.name} is not readable as JSON") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} holds no table")
    return document


def _check_config(fields: dict[str, Any]) -> None:
    """Raises ValueError where files outside the folder are named that transformers would open."""
    versions = fields.get("fast_tokenizer_files") or []
    for name in versions if isinstance(versions, list) else [versions]:
        if not isinstance(name, str) or not VERSIONED.fullmatch(name):
            raise ValueError(f"{CONFIG}: fast_tokenizer_files names {str(name)[:80]!r}; delete that line")
    for key, value in fields.items():
        if key.endswith("_file") and key not in UNREAD and isinstance(value, str) and re.search(r"[/\\]", value):
            raise ValueError(f"{CONFIG}: {key[:80]} names a file elsewhere; delete that line")


def _check_steps(document: dict[str, Any]) -> None:
    """Raises ValueError where the steps before the vocabulary make a text many times longer."""
    steps = [*_steps(document.get("normalizer")), *_steps(document.get("pre_tokenizer"))]
    if len(steps) > MAX_STEPS:
        raise ValueError(f"tokenizer.json has {len(steps):,} steps; at most {MAX_STEPS} are taken")
    if sum(step.get("type") == "Precompiled" for step in steps) > 1:
        raise ValueError("tokenizer.json has more than one map of signs (Precompiled)")
    factor = 1
    for step in steps:
        factor *= _expansion(step)
        if factor > MAX_EXPANSION:
            raise ValueError(f"tokenizer.json makes texts more than {MAX_EXPANSION} times as long")


def _steps(node: Any) -> Iterator[dict[str, Any]]:
    """Yields the steps of a sequence of sequences one by one."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            inner = [*(one.get("normalizers") or []), *(one.get("pretokenizers") or [])]
            waiting += reversed(inner)
            if not inner:
                yield one


def _expansion(step: dict[str, Any]) -> int:
    """Returns how many times longer a step makes a text at most, in bytes."""
    match step.get("type"):
        case "Replace":
            content = len(step["content"].encode("utf-8", "replace"))
            pattern = step["pattern"].get("String") if isinstance(step["pattern"], dict) else step["pattern"]
            # What a regular expression matches may be empty.
            return -(-content // len(pattern.encode("utf-8", "replace"))) or 1 if pattern else 1 + content
        case "Prepend":
            return 1 + len(step["prepend"].encode("utf-8", "replace"))
        case "ByteLevel":
            return 2
        case "Metaspace":
            return len(step.get("replacement", "").encode("utf-8", "replace")) or 1
        case "Precompiled":
            _check_map(step["precompiled_charsmap"])
    return 1


def _check_map(encoded: Any) -> None:
    """Raises ValueError where a map of signs is damaged, or makes a long text of one sign."""
    if not encoded:
        return
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, TypeError):
        raise ValueError("tokenizer.json: precompiled_charsmap is no base64") from None
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size % 4 or 4 + size > len(data):
        raise ValueError("tokenizer.json: precompiled_charsmap is damaged")
    if max(map(len, data[4 + size :].split(b"\0"))) > MAX_PIECE:
        raise ValueError(f"tokenizer.json: precompiled_charsmap makes more than {MAX_PIECE} bytes of one sign")
