"""A pretrained model as it is: how likely it holds a continuation, and which vector it gives a sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fleetune.data.arrays import GivenTexts
from fleetune.data.dataset import Dataset
from fleetune.data.tokens import Tokens, tokenize_in_memory
from fleetune.engine.backbone import Backbone
from fleetune.engine.evaluation import SLOT_APART, tokens_in_one_pass
from fleetune.engine.lanes import lanes
from fleetune.engine.layout import Layout, Pack, pack_texts
from fleetune.engine.parity import IMPLEMENTATIONS
from fleetune.engine.relative import set_attention
from fleetune.engine.vocabulary import Vocabulary, has_vocabulary, load_vocabulary
from fleetune.errors import BackboneError, MethodError

if TYPE_CHECKING:
    from torch import Tensor

PROMPTS_AT_ONCE = 2_000
SENTENCE_MODULES = "modules.json"
"""What sentence-transformers writes beside a model."""

Pooling = Literal["mean", "first", "last"]
_POOLING: dict[str, Pooling] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
}


class FrozenModel:
    """A frozen backbone without any delta, asked as it is: the `PretrainedModel` of baselines.

    Args:
        backbone: The backbone; it is left as it was.
        tokenizer: Its tokenizer.
        max_tokens: Length at which texts are cut, special tokens included.
    """

    def __init__(self, backbone: Backbone, tokenizer: Any, max_tokens: int) -> None:
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    @cached_property
    def generates(self) -> bool:
        """Whether it is a decoder whose checkpoint has a head over the vocabulary."""
        return has_vocabulary(self.backbone)

    @property
    def encodes_sentences(self) -> bool:
        """Whether sentence-transformers trained or packed it: its folder then has a `modules.json`."""
        return (self.backbone.folder / SENTENCE_MODULES).is_file()

    def cut(self, texts: GivenTexts) -> GivenTexts:
        """Returns the texts cut to `max_tokens`; of a pair the longer one first.

        Raises:
            BackboneError: If the tokenizer does not tell where its tokens lie in the text.
        """
        if not getattr(self.tokenizer, "is_fast", False):
            raise BackboneError("zero_shot needs a tokenizer with a tokenizer.json, to cut texts at max_tokens")
        first, second = list(texts.first), None if texts.second is None else list(texts.second)
        for start in range(0, len(first), PROMPTS_AT_ONCE):
            rows = slice(start, start + PROMPTS_AT_ONCE)
            encoded = self.tokenizer(
                first[rows], None if second is None else second[rows], truncation="longest_first",
                max_length=self.max_tokens, return_offsets_mapping=True, verbose=False,
            )  # fmt: skip
            for number, encoding in enumerate(encoded.encodings, start=start):
                if not encoding.overflowing:
                    continue
                first[number] = first[number][_span_of(encoding, 0)]
                if second is not None:
                    second[number] = second[number][_span_of(encoding, 1)]
        return GivenTexts(first, second)

    def vectors(self, texts: GivenTexts) -> NDArray[np.float32]:
        """Returns the vectors `(texts, width)`, of length 1; of pairs as the tokenizer joins them.

        Raises:
            MethodError: If a text is longer than the model takes.
        """
        tokens = tokenize_in_memory(_unlabelled(texts), self.tokenizer, self.max_tokens)
        self._check_lengths(tokens)
        results: list[NDArray[np.float32]] = []
        layout, pooling = self.backbone.layout, self.pooling
        # Every token's state is read, and the packed layout of some encoders makes only the first token's.
        self._set_layout("padded")
        try:
            passes = list(_passes(tokens))

            def run(rows: NDArray[np.int64]) -> NDArray[np.float32]:
                with torch.inference_mode():
                    pack, hidden = self._hidden(tokens, rows, "padded")
                    pooled = torch.nn.functional.normalize(_pool(hidden.float(), pack, pooling), dim=-1)
                    return np.asarray(pooled.cpu().numpy())

            results = lanes().map(run, passes)
        finally:
            self._set_layout(layout)
        return _in_order(passes, results)

    def _set_layout(self, layout: Layout) -> None:
        set_attention(self.backbone.model, self.backbone.architecture, IMPLEMENTATIONS[layout])

    @cached_property
    def pooling(self) -> Pooling:
        """How sentence-transformers pools the model's last states; by their mean where nothing is said."""
        for file in sorted(self.backbone.folder.glob("*_Pooling/config.json")):
            settings = json.loads(file.read_text("utf-8"))
            for key, pooling in _POOLING.items():
                if settings.get(key):
                    return pooling
        return "mean"

    def log_likelihoods(
        self, prompts: Sequence[str], continuations: Sequence[str], chat: bool = False
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Returns log P(continuation | prompt) and its number of tokens, both `(prompts, continuations)`.

        A prompt and its continuation are made into tokens together; the continuation's are those from where they
        first differ from the prompt's alone.

        Raises:
            MethodError: If the tokenizer has no chat template where one is wanted, or a prompt is too long.
        """
        scores = np.zeros((len(prompts), len(continuations)))
        counts = np.zeros((len(prompts), len(continuations)), dtype=np.int64)
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            some = [self._rendered(prompt, chat) for prompt in prompts[start : start + PROMPTS_AT_ONCE]]
            questions = self._questions(some, continuations, chat)
            rows = slice(start, start + len(some))
            scores[rows], counts[rows] = self._answers(questions, scores[rows].shape)
        return scores, counts

    def _rendered(self, prompt: str, chat: bool) -> str:
        if not chat:
            return prompt
        if not self.tokenizer.chat_template:
            raise MethodError("zero_shot: this tokenizer has no chat template; leave chat out")
        turn = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))

    def _questions(self, prompts: list[str], continuations: Sequence[str], chat: bool) -> list[_Question]:
        alone = self._token_ids(prompts, chat)
        whole = self._token_ids([prompt + more for prompt in prompts for more in continuations], chat)
        width = len(continuations)
        return [
            _Question(row, column, whole[row * width + column], _first_difference(before, whole[row * width + column]))
            for row, before in enumerate(alone)
            for column in range(width)
        ]

    def _token_ids(self, texts: list[str], chat: bool) -> list[list[int]]:
        """Returns the tokens of texts, after those that the tokenizer puts before any text, and none after."""
        # A chat template has written its special tokens itself.
        before = [] if chat else self._first_tokens
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [[*before, *ids] for ids in encoded["input_ids"]]

    @cached_property
    def _first_tokens(self) -> list[int]:
        encoded = self.tokenizer("a", return_special_tokens_mask=True)
        count = encoded["special_tokens_mask"].index(0)
        return list(encoded["input_ids"][:count])

    def _answers(
        self, questions: list[_Question], shape: tuple[int, ...]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Returns the log-likelihood of each question's continuation, and its tokens."""
        inputs, place_of = _fewest_inputs(questions)
        tokens = _tokens_of(inputs)
        self._check_lengths(tokens)
        asked: list[list[_Question]] = [[] for _ in inputs]
        for question, place in zip(questions, place_of, strict=True):
            asked[place].append(question)
        scores, counts = np.zeros(shape), np.zeros(shape, dtype=np.int64)

        def run(rows: NDArray[np.int64]) -> list[tuple[_Question, float]]:
            with torch.inference_mode():
                pack, hidden = self._hidden(tokens, rows, self.backbone.layout)
                return self._log_likelihoods(pack, hidden, [asked[row] for row in rows])

        for answers in lanes().map(run, list(_passes(tokens))):
            for question, log_likelihood in answers:
                scores[question.row, question.column] = log_likelihood
                counts[question.row, question.column] = len(question.targets)
        return scores, counts

    def _log_likelihoods(
        self, pack: Pack, hidden: Tensor, asked: list[list[_Question]]
    ) -> list[tuple[_Question, float]]:
        """Returns the questions of a pack's texts with their log-likelihoods."""
        starts = pack.starts.tolist() if pack.layout == "packed" else [n * hidden.shape[1] for n in range(len(asked))]
        questions = [(start, question) for start, own in zip(starts, asked, strict=True) for question in own]
        # A token is foretold by the state of the one before.
        places = [start + place - 1 for start, one in questions for place in range(one.start, len(one.tokens))]
        targets = [target for _, question in questions for target in question.targets]
        states, which = torch.unique(torch.tensor(places, device=hidden.device), return_inverse=True)
        rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, states)
        values = self._vocabulary.log_probabilities(rows, which, torch.tensor(targets, device=hidden.device))
        sums = [float(part.sum()) for part in values.split([len(question.targets) for _, question in questions])]
        return [(question, value) for (_, question), value in zip(questions, sums, strict=True)]

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return load_vocabulary(self.backbone)

    def _hidden(self, tokens: Tokens, rows: NDArray[np.int64], layout: Layout) -> tuple[Pack, Tensor]:
        """Returns a pack of texts, and the last hidden states of its tokens."""
        pack = pack_texts(tokens, [(SLOT_APART, rows)], layout, multiple=self.backbone.pack_multiple)
        self.backbone.state.begin(pack, {})
        try:
            return pack, self.backbone._hidden(pack)
        finally:
            self.backbone.state.end()

    def _check_lengths(self, tokens: Tokens) -> None:
        longest, most = int(tokens.lengths.max(initial=0)), self.backbone.max_positions
        if most is not None and longest > most:
            raise MethodError(f"zero_shot: {longest} tokens, and this model takes {most}; set a lower max_tokens")


@dataclass(frozen=True)
class _Question:
    """How likely are `tokens` from `start` on, given those before? `row` and `column` are the answer's place."""

    row: int
    column: int
    tokens: list[int]
    start: int

    @property
    def targets(self) -> list[int]:
        """The tokens whose likelihood is asked for."""
        return self.tokens[self.start :]


def _first_difference(before: list[int], whole: list[int]) -> int:
    """Returns where the continuation's tokens begin.

    Raises:
        MethodError: If there is no token before it, or none of its own.
    """
    length = next(
        (n for n, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), min(len(before), len(whole))
    )
    if not 0 < length < len(whole):
        raise MethodError("zero_shot: the prompt or a label text gives no tokens with this tokenizer")
    return length


def _fewest_inputs(questions: Sequence[_Question]) -> tuple[list[list[int]], list[int]]:
    """Returns token sequences that answer all questions, and which of them answers each.

    The last token of a question is only foretold, so labels of one token have one input; and one that begins like a
    longer one is answered by it.
    """
    inputs: list[list[int]] = []
    place_of = [0] * len(questions)
    known: dict[tuple[int, ...], int] = {}
    for number in sorted(range(len(questions)), key=lambda n: (questions[n].row, -len(questions[n].tokens))):
        tokens = questions[number].tokens[:-1]
        key = tuple(tokens)
        if key not in known:
            # Every question starts behind its prompt, so only beginnings from there on can be asked for.
            shortest = min(questions[number].start, len(tokens))
            known |= {key[:end]: len(inputs) for end in range(shortest, len(key) + 1) if key[:end] not in known}
            inputs.append(tokens)
        place_of[number] = known[key]
    return inputs, place_of


def _pool(hidden: Tensor, pack: Pack, pooling: Pooling) -> Tensor:
    """Returns `(texts, width)` from padded states `(texts, longest, width)`."""
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), pack.lengths - 1]
    assert pack.attention_mask is not None
    real = pack.attention_mask.unsqueeze(-1)
    return (hidden * real).sum(dim=1) / pack.lengths.unsqueeze(-1)


def _span_of(encoding: Any, sequence: int) -> slice:
    """Returns which characters the tokens of one sequence of a pair stand for."""
    spans = [span for span, own in zip(encoding.offsets, encoding.sequence_ids, strict=True) if own == sequence]
    return slice(min((start for start, _ in spans), default=0), max((end for _, end in spans), default=0))


def _unlabelled(texts: GivenTexts) -> Dataset:
    none = np.zeros(len(texts.first), dtype=np.int64)
    return Dataset("texts", texts.first, texts.second, [], none, {}, none, np.arange(len(none)), ["texts"])


def _tokens_of(rows: list[list[int]]) -> Tokens:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(lengths.sum()))
    return Tokens(ids, None, np.concatenate([[0], np.cumsum(lengths)]), lengths.astype(np.int32), Path())


def _passes(tokens: Tokens) -> Iterator[NDArray[np.int64]]:
    """Yields texts of about one length, as many as a forward pass holds."""
    order = np.argsort(tokens.lengths, kind="stable")
    start, limit = 0, tokens_in_one_pass()
    for end in range(1, len(order) + 1):
        # Padded, each takes as much room as the longest, which comes last.
        if end == len(order) or (end + 1 - start) * int(tokens.lengths[order[end]]) > limit:
            yield order[start:end]
            start = end


def _in_order(passes: list[NDArray[np.int64]], results: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    order = np.concatenate(passes)
    return np.concatenate(results)[np.argsort(order)]
