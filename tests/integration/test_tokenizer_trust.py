"""Tokenizers are data from strangers: one that is made to hurt is refused in a line or two."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetune.data.dataset import Dataset
from fleetune.data.tokens import tokenize_in_memory
from fleetune.engine.config import BackboneConfig
from fleetune.engine.tokenizer import load_tokenizer
from fleetune.engine.tokenizer_files import check_tokenizer_files, read_tokenizer
from fleetune.errors import BackboneError, DataError
from tests.tiny import tiny_folder

WORDS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "a", "b", "##a", "text", "good", "bad"]


def word_pieces() -> dict[str, Any]:
    """Returns a small `tokenizer.json` with steps of many kinds."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    steps = [normalizers.Replace("``", "x"), normalizers.NFKC(), normalizers.Prepend("a"), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.add_special_tokens(WORDS[:4])
    return dict(json.loads(tokenizer.to_str()))


def written(folder: Path, document: dict[str, Any], **config: Any) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(document))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


def tokenized(folder: Path, *texts: str) -> list[int]:
    """Returns what the tokenizer in `folder` makes of some texts."""
    none = np.zeros(len(texts), dtype=np.int64)
    dataset = Dataset("texts", list(texts), None, [], none, {}, none, none, ["texts"])
    return tokenize_in_memory(dataset, read_tokenizer(folder), 64).input_ids.tolist()


def replacing(pattern: Any, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def charsmap(replacement: bytes) -> str:
    return base64.b64encode((4).to_bytes(4, "little") + bytes(4) + b"x\0" + replacement + b"\0").decode()


def test_a_plain_tokenizer_is_read(tmp_path: Path) -> None:
    assert tokenized(written(tmp_path, word_pieces()), "good text") == [1, 0, 7, 2]
    folder = written(tmp_path, word_pieces(), fast_tokenizer_files=["tokenizer.1.0.json", "tokenizer.json"])
    check_tokenizer_files(folder)
    check_tokenizer_files(written(tmp_path, word_pieces(), special_tokens_map_file="/root/x.json", merges_file="m.txt"))


@pytest.mark.parametrize(
    "steps",
    [
        [replacing({"String": "a"}, "a" * 50)] * 6,
        [replacing({"String": "a"}, "aa")] * 30,
        [replacing({"Regex": ""}, "a")] * 30,
        [replacing({"String": ""}, "a")] * 30,
        [{"type": "Sequence", "normalizers": [replacing({"String": "a"}, "a" * 9)]}] * 3,
        [{"type": "ByteLevel"}] * 30,
        [{"type": "Prepend", "prepend": "a" * 1000}],
        [{"type": "NFC"}] * 1_000,
        [{"type": "Precompiled", "precompiled_charsmap": "AQAAAAAAAAA="}],
        [{"type": "Precompiled", "precompiled_charsmap": "!"}],
        [{"type": "Precompiled", "precompiled_charsmap": charsmap(b"a" * 100)}],
        [{"type": "Precompiled", "precompiled_charsmap": charsmap(b"aa")}] * 2,
        [{"type": "Replace", "pattern": 3, "content": 4}],
        [{"type": "Replace"}],
    ],
    ids=lambda steps: f"{str(steps[0])[:60]} x {len(steps)}",
)
def test_steps_that_blow_a_text_up_are_refused_before_they_are_made(tmp_path: Path, steps: list[Any]) -> None:
    document = {**word_pieces(), "normalizer": {"type": "Sequence", "normalizers": steps}}
    with pytest.raises(ValueError, match=r"tokenizer\.json") as refused:
        check_tokenizer_files(written(tmp_path, document))
    assert len(str(refused.value).splitlines()) == 1


def test_steps_between_words_count_too(tmp_path: Path) -> None:
    steps = {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False}] * 30}
    with pytest.raises(ValueError, match="times as long"):
        check_tokenizer_files(written(tmp_path, {**word_pieces(), "pre_tokenizer": steps}))


@pytest.mark.parametrize(
    "steps",
    [
        [{"type": "Prepend", "prepend": "\u2581"}, replacing({"String": " "}, "\u2581")],
        [replacing({"String": "``"}, '"'), {"type": "Precompiled", "precompiled_charsmap": charsmap(b"y" * 33)},
         replacing({"Regex": " {2,}"}, "\u2581")],
        [{"type": "Lowercase"}, replacing({"Regex": r"\s+"}, " "), {"type": "ByteLevel"}],
    ],
    ids=lambda steps: str(steps[0])[:40],
)  # fmt: skip
def test_steps_of_known_tokenizers_pass(tmp_path: Path, steps: list[Any]) -> None:
    check_tokenizer_files(
        written(tmp_path, {**word_pieces(), "normalizer": {"type": "Sequence", "normalizers": steps}})
    )


@pytest.mark.parametrize(
    "config",
    [
        {"fast_tokenizer_files": ["../../outside/tokenizer.1.0.json"]},
        {"fast_tokenizer_files": "/tmp/tokenizer.1.0.json"},
        {"fast_tokenizer_files": [3]},
        {"merges_file": "../merges.txt"},
        {"vocab_file": "/etc/passwd"},
        {"long": "x" * (5 << 20)},
    ],
    ids=lambda config: str(config)[:40],
)
def test_a_backbones_tokenizer_stays_in_its_folder(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = written(tmp_path, word_pieces(), **config)
    (folder / "config.json").write_bytes((tiny_folder("bert") / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((tiny_folder("bert") / "model.safetensors").read_bytes())
    with pytest.raises(BackboneError, match="tokenizer_config") as refused:
        load_tokenizer(BackboneConfig(model=str(folder)))
    assert len(str(refused.value).splitlines()) <= 2


def test_lists_and_tables_of_a_tokenizer_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path, {**word_pieces(), "x": [[]] * 100})
    check_tokenizer_files(folder)
    monkeypatch.setattr("fleetune.engine.tokenizer_files.MAX_CONTAINERS", 100)
    with pytest.raises(ValueError, match="more than 100 lists and tables"):
        check_tokenizer_files(folder)


def failing(kind: str) -> dict[str, Any]:
    """Returns a tokenizer that fails once it is used."""
    document = word_pieces()
    if kind == "panic":
        document["post_processor"]["single"].append({"Sequence": {"id": "B", "type_id": 0}})
    elif kind == "unknown":
        document["normalizer"] = document["pre_tokenizer"] = document["post_processor"] = None
        document["added_tokens"] = []
        document["model"] = {"type": "Unigram", "unk_id": None, "vocab": [["q", -1.0]], "byte_fallback": False}
    else:
        document["model"]["vocab"]["a"] = 2**32 - 1
    return document


@pytest.mark.parametrize("kind", ["panic", "unknown", "number"])
def test_a_tokenizer_that_fails_on_texts_is_two_clear_lines(tmp_path: Path, kind: str) -> None:
    folder = written(tmp_path, failing(kind), **({"pad_token": "q", "unk_token": None} if kind == "unknown" else {}))
    tokenizer = read_tokenizer(folder)
    none = np.zeros(1, dtype=np.int64)
    with pytest.raises(DataError, match="the tokenizer") as refused:
        tokenize_in_memory(Dataset("x", ["a"], None, [], none, {}, none, none, ["x"]), tokenizer, 64)
    assert len(str(refused.value).splitlines()) == 2


def test_a_library_that_breaks_down_ends_the_command_with_a_few_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fleetune.cli import app as commands
    from fleetune.cli.entry import run_command_line

    class PanicException(BaseException):
        pass

    def panics(*_: Any, **__: Any) -> int:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(commands, "app", panics)
    assert run_command_line(["plan"]) == 1
    said = capsys.readouterr().err
    assert "index out of bounds" in said and len(said.splitlines()) <= 3
