"""Zero-shot: what the pretrained model says of the labels' names, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from fleetune.data.arrays import GivenTexts
from fleetune.errors import MethodError
from fleetune.methods.base import MethodConfig
from fleetune.methods.baseline import Baseline, Fitted, PretrainedModel, Task
from fleetune.methods.registry import register
from fleetune.metrics import sigmoid, softmax

SCALE = 20.0
"""Factor of cosines in logits: that of the loss that sentence encoders are trained with (sentence-transformers'
MultipleNegativesRankingLoss). It is fitted to nothing here."""
CONTENT_FREE = ("N/A", "[MASK]", "")
"""Texts that say nothing (Zhao et al., 2021, section 5)."""
PLACEHOLDERS = ("text", "text_a", "text_b", "labels", "label")
PROMPT = "{text}\n\nLabel ({labels}):"
LABEL_PROMPT = '{text}\n\nDoes the label "{label}" apply, yes or no?\nAnswer:'
PAIR = "First: {text_a}\nSecond: {text_b}"

Logits = NDArray[np.float64]


@register(
    "zero_shot",
    source="Brown et al., 2020, arXiv:2005.14165; Zhao et al., 2021, arXiv:2102.09690; "
    "Reimers & Gurevych, 2019, arXiv:1908.10084",
)
class ZeroShot(Baseline):
    """Scores label texts as continuations of a prompt, or by the cosine of their vectors to the text's.

    Texts are cut at their head to `max_tokens`, whatever `long_texts` says.
    """

    reads_model = True
    reads_training_texts = False
    training_fields = ("precision",)
    tried_texts = 100

    class Config(MethodConfig):
        """What the model is asked, and how its answer is read."""

        prompt: str | None = None
        """Template with {text} (or {text_a} and {text_b}) and, if wanted, {labels}; multi-label, with {label}."""
        label_texts: dict[str, str] | tuple[str, ...] | None = None
        """What stands for each label: a table by label, or a list in the labels' order; their names where absent."""
        score: Literal["auto", "continuation", "cosine"] = "auto"
        """How labels are scored; `auto` is by continuation where the model generates and is no sentence encoder."""
        calibrate: bool = True
        """Whether what the model prefers for texts that say nothing is taken off."""
        length_normalisation: bool = False
        """Whether a continuation's log-likelihood is divided by its number of tokens."""
        chat: bool = False
        """Whether the prompt is put into the tokenizer's chat template."""

        @field_validator("prompt")
        @classmethod
        def _known_placeholders(cls, prompt: str | None) -> str | None:
            wrong = [name for name in _placeholders(prompt or "") if name not in PLACEHOLDERS]
            if wrong:
                raise ValueError(f"unknown placeholder {{{wrong[0]}}}; known: {', '.join(PLACEHOLDERS)}")
            return prompt

    config: Config

    def check_labels(self, label_names: Sequence[str], multi_label: bool, pairs: bool) -> None:
        self.label_texts(label_names)
        if self.config.prompt is None:
            return
        needed = {"text_a", "text_b"} if pairs else {"text"}
        unfit = {"text", "text_a", "text_b", "label"} - needed
        if multi_label:
            needed, unfit = needed | {"label"}, unfit - {"label"}
        used = set(_placeholders(self.config.prompt))
        if missing := sorted(needed - used):
            raise MethodError(f"zero_shot: prompt lacks {{{missing[0]}}}, which these texts and labels need")
        if surplus := sorted(unfit & used):
            raise MethodError(f"zero_shot: prompt has {{{surplus[0]}}}, which these texts and labels do not give")

    def label_texts(self, label_names: Sequence[str]) -> list[str]:
        """Returns what stands for each label.

        Raises:
            MethodError: If `label_texts` does not name the labels.
        """
        given = self.config.label_texts
        if given is None:
            return [name.replace("_", " ") for name in label_names]
        if isinstance(given, Mapping):
            if missing := [name for name in label_names if name not in given]:
                raise MethodError(f"zero_shot: label_texts lacks '{missing[0]}'; labels: {', '.join(label_names)}")
            if surplus := [name for name in given if name not in label_names]:
                raise MethodError(f"zero_shot: '{surplus[0]}' in label_texts is no label: {', '.join(label_names)}")
            return [given[name] for name in label_names]
        if len(given) != len(label_names):
            raise MethodError(
                f"zero_shot: label_texts has {len(given)} texts for {len(label_names)} labels: {', '.join(label_names)}"
            )
        return list(given)

    def uses_continuations(self, model: PretrainedModel) -> bool:
        """Returns whether labels are scored as continuations of a prompt, not by cosine."""
        if self.config.score == "auto":
            return model.generates and not model.encodes_sentences
        return self.config.score == "continuation"

    def notes(self, model: PretrainedModel) -> tuple[str, ...]:
        if self.uses_continuations(model):
            return ("zero_shot scores label texts as continuations of a prompt.",)
        trained = "" if model.encodes_sentences else ", which this model was not trained for"
        return (f"zero_shot compares vectors of texts and label texts by their cosine{trained}.",)

    def fit(self, task: Task) -> Fitted:
        model = task.model
        assert model is not None
        if self.uses_continuations(model) and not model.generates:
            raise MethodError('zero_shot: this model has no head that scores the next token; set score = "cosine"')
        names = self.label_texts(task.label_names)
        by_continuation = self.uses_continuations(model)
        score = self._by_continuation if by_continuation else self._by_cosine
        bias: Logits | float = 0.0
        if self.config.calibrate:
            # No text at all has a place in a prompt, but not every model has a vector for it.
            nothing = [text for text in CONTENT_FREE if text or by_continuation]
            given = GivenTexts(nothing, None if task.texts.second is None else nothing)
            bias = _mean_preference(score(model, given, names, task.multi_label), task.multi_label)

        def logits(texts: GivenTexts) -> Logits:
            return score(model, texts, names, task.multi_label) - bias

        return Fitted(logits)

    def _by_continuation(
        self, model: PretrainedModel, texts: GivenTexts, names: list[str], multi_label: bool
    ) -> Logits:
        """Returns log P(label text | prompt), or where multi-label log P(yes) - log P(no) for each label."""
        texts = model.cut(texts)
        prompts = [
            prompt for row in range(len(texts.first)) for prompt in self._prompts(texts, row, names, multi_label)
        ]
        # A chat template ends where the answer begins; else the answer is the next word.
        blank = "" if self.config.chat else " "
        answers = [blank + answer for answer in (("yes", "no") if multi_label else names)]
        scores, tokens = model.log_likelihoods(prompts, answers, self.config.chat)
        if self.config.length_normalisation:
            scores = scores / tokens
        return (scores[:, 0] - scores[:, 1]).reshape(len(texts.first), len(names)) if multi_label else scores

    def _prompts(self, texts: GivenTexts, row: int, names: list[str], multi_label: bool) -> list[str]:
        fields = {"text": texts.first[row], "labels": _listed(names)}
        if texts.second is not None:
            fields |= {"text_a": texts.first[row], "text_b": texts.second[row]}
        template = self.config.prompt or _default_prompt(multi_label, pairs=texts.second is not None)
        return [template.format(**fields, label=name) for name in (names if multi_label else names[:1])]

    def _by_cosine(self, model: PretrainedModel, texts: GivenTexts, names: list[str], multi_label: bool) -> Logits:
        """Returns the scaled cosine of each text's vector to each label text's."""
        vectors, of_labels = model.vectors(texts), model.vectors(GivenTexts(names, None))
        return np.asarray(SCALE * (vectors.astype(np.float64) @ of_labels.T.astype(np.float64)))


def _placeholders(template: str) -> list[str]:
    try:
        return [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{error}; write {{{{ and }}}} for braces that are meant as such") from None


def _listed(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _default_prompt(multi_label: bool, pairs: bool) -> str:
    template = LABEL_PROMPT if multi_label else PROMPT
    return template.replace("{text}", PAIR) if pairs else template


def _mean_preference(logits: Logits, multi_label: bool) -> Logits:
    """Returns the logits `(num_labels,)` of the mean probabilities: dividing by those is what Zhao et al. do."""
    if multi_label:
        mean = np.clip(sigmoid(logits).mean(axis=0), 1e-12, 1 - 1e-12)
        return np.asarray(np.log(mean) - np.log1p(-mean))
    return np.asarray(np.log(np.maximum(softmax(logits).mean(axis=0), 1e-300)))
