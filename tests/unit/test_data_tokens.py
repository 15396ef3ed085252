"""The token cache."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fleetune.data import tokens as module
from fleetune.data.dataset import Dataset
from fleetune.data.tokens import tokenize
from fleetune.errors import DataError, StorageError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]


def make_tokenizer(special=True, types=True, words=WORDS):
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        backend.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
        )
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_input_names=inputs
    )


def data(texts, pairs=None):
    number = len(texts)
    everything = np.arange(number, dtype=np.int64)
    none = np.empty(0, dtype=np.int64)
    return Dataset(
        "data", texts, pairs, ["x"], everything * 0, {"train": everything, "validation": none, "test": none},
        everything * 0, everything + 2, ["file.csv"],
    )  # fmt: skip


def row(tokens, index):
    return tokens.input_ids[tokens.offsets[index] : tokens.offsets[index + 1]].tolist()


def test_texts_are_cut_with_their_special_tokens(tmp_path):
    tokens = tokenize(data(["a b", "a b c d e f", "z"]), make_tokenizer(), 5, tmp_path, "tiny")
    assert [row(tokens, index) for index in range(3)] == [[2, 4, 5, 3], [2, 4, 5, 6, 3], [2, 1, 3]]
    assert tokens.lengths.tolist() == [4, 5, 3]
    assert tokens.full_lengths.tolist() == [4, 8, 3]
    assert len(tokens) == 3
    assert isinstance(tokens.input_ids, np.memmap)
    assert [str(array.dtype) for array in (tokens.input_ids, tokens.offsets, tokens.full_lengths)] == [
        "int32",
        "int64",
        "int32",
    ]


def test_of_a_pair_the_longer_text_is_cut_and_segments_are_kept(tmp_path):
    tokens = tokenize(data(["a b c d e", "a"], ["f g", "b"]), make_tokenizer(), 7, tmp_path, "tiny")
    assert row(tokens, 0) == [2, 4, 5, 3, 9, 10, 3]
    assert tokens.type_ids is not None
    assert tokens.type_ids.dtype == np.uint8
    assert tokens.type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    assert tokens.full_lengths.tolist() == [10, 5]


def test_a_tokenizer_without_segments_gives_none(tmp_path):
    assert tokenize(data(["a"]), make_tokenizer(types=False), 8, tmp_path, "tiny").type_ids is None


def test_batches_make_no_difference(tmp_path, monkeypatch):
    texts = [" ".join("abcdefgh"[: 1 + number % 8]) for number in range(50)]
    whole = tokenize(data(texts), make_tokenizer(), 6, tmp_path / "whole", "tiny")
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 7)
    parts = tokenize(data(texts), make_tokenizer(), 6, tmp_path / "parts", "tiny")
    for name in ("input_ids", "type_ids", "offsets", "full_lengths"):
        assert getattr(whole, name).tolist() == getattr(parts, name).tolist()


def count_calls(monkeypatch):
    calls = []
    original = module._encode

    def encode(*arguments):
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(module, "_encode", encode)
    return calls


def test_the_second_time_nothing_is_tokenised(tmp_path, monkeypatch):
    calls = count_calls(monkeypatch)
    tokenizer = make_tokenizer()
    first = tokenize(data(["a b", "c"]), tokenizer, 8, tmp_path, "tiny")
    # A call for something else leaves its settings in the tokenizer, which must not change the key.
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=2)
    second = tokenize(data(["a b", "c"]), tokenizer, 8, tmp_path, "tiny")
    assert len(calls) == 1
    assert first.folder == second.folder
    assert second.input_ids.tolist() == first.input_ids.tolist()
    assert [path.name for path in tmp_path.iterdir()] == [first.folder.name]


@pytest.mark.parametrize("change", ["texts", "border", "pair", "length", "model", "vocabulary", "special"])
def test_whatever_changes_the_tokens_changes_the_key(tmp_path, monkeypatch, change):
    calls = count_calls(monkeypatch)
    tokenize(data(["a b", "c"]), make_tokenizer(), 8, tmp_path, "tiny")
    texts = {"texts": ["a b", "d"], "border": ["a ", "bc"]}.get(change, ["a b", "c"])
    pairs = ["", "c"] if change == "pair" else None
    tokenizer = make_tokenizer(
        special=change != "special", words=[*WORDS[:-1], "z"] if change == "vocabulary" else WORDS
    )
    length, model = 9 if change == "length" else 8, "other" if change == "model" else "tiny"
    tokenize(data(texts, pairs), tokenizer, length, tmp_path, model)
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest", "format", "garbage"])
def test_a_damaged_cache_is_made_again(tmp_path, monkeypatch, damage):
    first = tokenize(data(["a b", "c"]), make_tokenizer(), 8, tmp_path, "tiny")
    expected, folder = first.input_ids.tolist(), first.folder
    del first
    target = folder / "input_ids.npy"
    content = target.read_bytes()
    match damage:
        case "flip":
            target.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "cut":
            target.write_bytes(content[:-2])
        case "remove":
            target.unlink()
        case "manifest":
            (folder / "manifest.json").unlink()
        case "format":
            manifest = json.loads((folder / "manifest.json").read_text())
            (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 0}))
        case _:
            (folder / "manifest.json").write_text("[1, 2")
    calls = count_calls(monkeypatch)
    again = tokenize(data(["a b", "c"]), make_tokenizer(), 8, tmp_path, "tiny")
    assert again.input_ids.tolist() == expected
    assert calls == [1]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "sha256_of", stop)
    with pytest.raises(KeyboardInterrupt):
        tokenize(data(["a"]), make_tokenizer(), 8, tmp_path, "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_faster_process_wins(tmp_path, monkeypatch):
    original = module._write

    def write_twice(parts, folder):
        parts = list(parts)
        original(parts, folder)
        original(parts, folder)

    monkeypatch.setattr(module, "_write", write_twice)
    assert tokenize(data(["a b"]), make_tokenizer(), 8, tmp_path, "tiny").input_ids.tolist() == [2, 4, 5, 3]
    assert len(list(tmp_path.iterdir())) == 1


def test_files_are_those_of_numpy_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 3)
    tokens = tokenize(data(["a b", "c", "b", "a a a", "c b"] * 5), make_tokenizer(), 8, tmp_path / "cache", "tiny")
    for name in ("input_ids", "type_ids"):
        np.save(tmp_path / "whole.npy", np.array(getattr(tokens, name)))
        assert (tokens.folder / f"{name}.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes(), name


def test_a_cache_that_cannot_be_written_is_a_data_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        tokenize(data(["a"]), make_tokenizer(), 8, tmp_path / "file", "tiny")


def test_a_text_without_tokens_is_named(tmp_path):
    with pytest.raises(DataError, match=r"file\.csv:3 gives no tokens"):
        tokenize(data(["a", "\u200b \u2003"[1:]]), make_tokenizer(special=False), 8, tmp_path, "tiny")
