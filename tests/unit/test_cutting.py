"""Long texts as sequences: which tokens each sequence has, and which texts are cut all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fleetune.data.config import DataConfig
from fleetune.data.cutting import Cutting
from fleetune.data.dataset import Dataset
from fleetune.data.tokens import Tokens, tokenize, tokenize_in_memory
from fleetune.errors import DataError, RecipeError
from fleetune.lab.plan import plan
from fleetune.lab.recipe import recipe_from

FIRST = 10
"""Id of word 0, so that a token tells its place in the text."""
WORDS = 200


def make_tokenizer(single: str = "[CLS] $A [SEP]", pair: str = "[CLS] $A [SEP] $B:1 [SEP]:1") -> Any:
    """Returns a tokenizer of words `0`, `1`, …, that takes `a` for word 0; the templates place special tokens."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": FIRST}
    vocabulary |= {str(number): FIRST + 1 + number for number in range(WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single, pair, [("[CLS]", 2), ("[SEP]", 3)])
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", model_input_names=inputs)


TOKENIZER = make_tokenizer()


def words(count: int, first: int = 0) -> str:
    return " ".join(str(number) for number in range(first, first + count))


def ids(numbers: Any) -> list[int]:
    return [FIRST + 1 + int(number) for number in numbers]


def dataset(texts: list[str], pairs: list[str] | None = None) -> Dataset:
    places = np.arange(len(texts))
    return Dataset("data", texts, pairs, ["x"], places * 0, {}, places * 0, places, ["file"])


def tokens_of(texts: list[str], max_tokens: int, pairs: list[str] | None = None, **fields: Any) -> Tokens:
    return tokenize_in_memory(dataset(texts, pairs), TOKENIZER, max_tokens, Cutting(**fields))


def sequences(tokens: Tokens, text: int) -> list[list[int]]:
    found = tokens.sequences_of(np.array([text]))
    return [tokens.input_ids[tokens.offsets[one] : tokens.offsets[one + 1]].tolist() for one in found]


@settings(deadline=None)
@given(st.integers(0, WORDS), st.integers(3, 70), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.99]))
def test_head_tail_keeps_so_many_of_either_end(length: int, max_tokens: int, share: float) -> None:
    tokens = tokens_of([words(length)], max_tokens, long_texts="head_tail", head_share=share)
    room = max_tokens - 2
    head = int(np.floor(share * room + 0.5))
    kept = range(length) if length <= room else [*range(head), *range(length - room + head, length)]
    assert sequences(tokens, 0) == [[2, *ids(kept), 3]]
    assert tokens.full_lengths.tolist() == [length + 2]
    assert tokens.truncated.tolist() == [length > room]


def test_the_default_share_is_the_papers() -> None:
    found = Cutting(long_texts="head_tail").sequences([2000], (1, 1), 512)
    assert [one.tolist() for one in found] == [[0, *range(1, 129), *range(2001 - 382, 2001), 2001]]


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(5, 70))
def test_of_a_pair_head_tail_shortens_what_head_shortens(first: int, second: int, max_tokens: int) -> None:
    pair = [words(first)], max_tokens, [words(second, 100)]
    cut, whole = tokens_of(*pair), tokens_of(*pair, long_texts="head_tail", head_share=0.5)
    assert cut.type_ids is not None and whole.type_ids is not None
    assert whole.type_ids.tolist() == cut.type_ids.tolist(), "each text keeps as many tokens as the tokenizer leaves it"
    assert whole.truncated.tolist() == cut.truncated.tolist() == [first + second + 3 > max_tokens]
    got = whole.input_ids.tolist()
    border = got.index(3)
    for inner, start, length in ((got[1:border], 0, first), (got[border + 1 : -1], 100, second)):
        head = int(np.floor(0.5 * len(inner) + 0.5)) if len(inner) < length else length
        assert inner == ids([*range(start, start + head), *range(start + length - len(inner) + head, start + length)])


@settings(deadline=None)
@given(st.integers(0, WORDS), st.integers(3, 50), st.integers(1, 48), st.integers(1, 12))
def test_windows_cover_a_text_up_to_their_number(length: int, max_tokens: int, stride: int, most: int) -> None:
    room = max_tokens - 2
    stride = min(stride, room)
    fields: dict[str, Any] = {"long_texts": "windows", "window_stride": stride, "max_windows": most}
    tokens = tokens_of([words(1), words(length), words(1)], max_tokens, **fields)
    windows = sequences(tokens, 1)
    needed = 1
    while (needed - 1) * stride + room < length:
        needed += 1
    assert len(windows) == min(needed, most) == tokens.sequence_counts[1]
    assert all(window[0] == 2 and window[-1] == 3 for window in windows), "special tokens stand in every window"
    assert [window[1:-1] for window in windows[:-1]] == [
        ids(range(number * stride, number * stride + room)) for number in range(len(windows) - 1)
    ]
    last = windows[-1][1:-1]
    start = min((len(windows) - 1) * stride, max(0, length - room))
    assert last == ids(range(start, min(length, start + room))), "the last window ends with the text, as full as others"
    shown = {token for window in windows for token in window[1:-1]}
    assert tokens.truncated.tolist() == [False, shown != set(ids(range(length))), False]
    assert tokens.truncated[1] == (needed > most)
    assert tokens.full_lengths.tolist() == [3, length + 2, 3]
    assert tokens.lengths[1] == sum(map(len, windows)) and tokens.longest_sequences[1] == max(map(len, windows))
    assert sequences(tokens, 0) == sequences(tokens, 2) == [[2, *ids([0]), 3]]


def test_a_window_starts_half_of_max_tokens_later_unless_told() -> None:
    tokens = tokens_of([words(20)], 10, long_texts="windows")
    assert [window[1] for window in sequences(tokens, 0)] == ids([0, 5, 10, 12])


def test_special_tokens_stand_where_the_tokenizer_puts_them() -> None:
    cutting = Cutting(long_texts="windows", window_stride=3)
    for single, frame in (("$A", ([], [])), ("[CLS] [CLS] $A", ([2, 2], [])), ("$A [SEP]", ([], [3]))):
        tokens = tokenize_in_memory(dataset([words(9)]), make_tokenizer(single), 6, cutting)
        room = 6 - sum(map(len, frame))
        starts = [0, 3, 6][: 1 + -(-(9 - room) // 3)]
        expected = [[*frame[0], *ids(np.arange(room) + min(start, 9 - room)), *frame[1]] for start in starts]
        assert sequences(tokens, 0) == expected
    pair = make_tokenizer(pair="[CLS] $A [SEP] [SEP] $B [SEP]")
    tokens = tokenize_in_memory(
        dataset([words(9)], [words(1)]), pair, 9, Cutting(long_texts="head_tail", head_share=0.5)
    )
    assert sequences(tokens, 0) == [[2, *ids([0, 1, 7, 8]), 3, 3, *ids([0]), 3]]


def test_a_text_that_holds_special_tokens_is_no_frame() -> None:
    text = f"{words(4)} [SEP] [CLS] {words(3, 4)} [SEP] [SEP]"
    tokens = tokens_of([text], 7, long_texts="head_tail", head_share=0.4)
    assert sequences(tokens, 0) == [[2, *ids([0, 1]), *ids([6]), 3, 3, 3]]


def test_the_cache_knows_windows_and_tells_settings_apart(tmp_path: Path) -> None:
    texts = dataset([words(20), words(2), words(50)])
    chosen = [
        Cutting(),
        Cutting(long_texts="head_tail"),
        Cutting(long_texts="head_tail", head_share=0.5),
        Cutting(long_texts="windows", max_windows=3),
        Cutting(long_texts="windows", max_windows=3, window_stride=2),
        Cutting(long_texts="windows"),
        Cutting(long_texts="windows", window_pool="max"),
    ]
    for cutting in chosen:
        for _ in range(2):
            stored, fresh = (
                tokenize(texts, TOKENIZER, 10, tmp_path, "tiny", cutting),
                tokenize_in_memory(texts, TOKENIZER, 10, cutting),
            )
            assert isinstance(stored.input_ids, np.memmap)
            assert stored.pool == fresh.pool == cutting.window_pool and len(stored) == len(fresh) == 3
            for name in ("input_ids", "type_ids", "offsets", "lengths", "sequence_counts", "truncated"):
                assert getattr(stored, name).tolist() == getattr(fresh, name).tolist(), name
    assert len(list(tmp_path.iterdir())) == len(chosen)


def test_no_texts_are_no_sequences() -> None:
    tokens = tokens_of([], 10, long_texts="windows")
    assert len(tokens) == len(tokens.lengths) == len(tokens.longest_sequences) == len(tokens.sequence_counts) == 0


@pytest.mark.parametrize(
    ("max_tokens", "pairs", "fields", "error", "said"),
    [
        (2, False, {"long_texts": "windows"}, DataError, "leaves no room for text beside 2 special tokens"),
        (4, True, {"long_texts": "head_tail"}, DataError, "leaves no room for text beside 3 special tokens"),
        (9, False, {"long_texts": "windows", "window_stride": 8}, RecipeError, "leaves tokens out.*\nGive at most 7"),
        (9, True, {"long_texts": "windows"}, RecipeError, 'takes single texts.*\nType: long_texts = "head_tail"'),
    ],
)
def test_what_cannot_be_cut_is_said_even_if_no_text_is_long(
    max_tokens: int, pairs: bool, fields: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=r"(?s)" + said):
        tokens_of([""], max_tokens, [""] if pairs else None, **fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"long_texts": "tail"}, "head_tail"),
        ({"head_share": 0.5}, 'head_share goes with long_texts = "head_tail", not with "head"'),
        ({"long_texts": "head_tail", "max_windows": 4}, 'max_windows goes with long_texts = "windows"'),
        ({"long_texts": "windows", "head_share": 0.5}, "head_share goes with"),
        ({"long_texts": "head_tail", "head_share": 1.0}, "less than 1"),
        ({"long_texts": "windows", "window_stride": 0}, "greater than or equal to 1"),
        ({"long_texts": "windows", "text": ["a", "b"]}, "a pair of columns"),
    ],
)
def test_settings_without_effect_or_sense_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataConfig.model_validate({"path": "texts.csv", **fields})


def test_a_trials_id_hangs_on_what_becomes_of_long_texts() -> None:
    chosen: list[dict[str, Any]] = [
        {},
        {"long_texts": "head_tail"},
        {"long_texts": "head_tail", "head_share": 0.5},
        {"long_texts": "windows"},
        {"long_texts": "windows", "window_stride": 16},
        {"long_texts": "windows", "max_windows": 3},
        {"long_texts": "windows", "window_pool": "max"},
    ]
    found = []
    for fields in [*chosen, {"long_texts": "head", "max_windows": 8}]:
        document = {"data": {"path": "x.csv", **fields}, "backbone": {"model": "m"}, "method": [{"kind": "head"}]}
        made = plan(recipe_from(document, Path("/base"), "r.toml"), lambda trials: True, {"x": "hash"})
        found.append(made.trials[0].id)
    assert len(set(found)) == len(chosen) and found[-1] == found[0]
