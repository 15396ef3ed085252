"""TF-IDF: logistic regression on counted words and characters, without any language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fleetune.data.arrays import GivenTexts
from fleetune.errors import MethodError
from fleetune.methods.base import MethodConfig
from fleetune.methods.baseline import Baseline, Fitted, Task
from fleetune.methods.majority import UNSEEN, label_frequency_logits
from fleetune.methods.registry import register
from fleetune.runtime import random_stream

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Values of C that cross-validation tries, in this order, until the log loss rises."""
FOLDS = 5
ENOUGH_HELD_OUT, ENOUGH_TEXTS = 1500, 4000
"""Cross-validation takes no more texts than this, and no more folds than hold out so many: C hardly hangs on more."""
MOST_ITERATIONS = 1000
TOKEN = r"(?u)\w+|[^\w\s]"
"""A word of any length, or a sign: exclamation marks and emoticons say much in short texts."""

Range = tuple[int, int]


@register("tfidf", source="Spärck Jones, 1972; Wang & Manning, 2012, ACL P12-2018; scikit-learn")
class TfIdf(Baseline):
    """Fits a logistic regression on TF-IDF features of words and characters.

    It reads texts whole, whatever `max_tokens` says.
    """

    training_fields = ("class_weights",)

    class Config(MethodConfig):
        """Features and regularisation."""

        ngrams: Range = (1, 2)
        """Shortest and longest run of words that is a feature."""
        characters: Range = (3, 4)
        """Shortest and longest run of characters within a word that is a feature; [0, 0] leaves them out."""
        min_df: int = Field(default=2, ge=1)
        """In how many training texts a feature must occur."""
        C: float | None = Field(default=None, gt=0.0)
        """Inverse strength of the penalty on squared coefficients; by cross-validation within training where absent."""

        @model_validator(mode="after")
        def _ranges(self) -> TfIdf.Config:
            for name, (shortest, longest) in (("ngrams", self.ngrams), ("characters", self.characters)):
                off = name == "characters" and (shortest, longest) == (0, 0)
                if not off and not 1 <= shortest <= longest:
                    raise ValueError(f"{name} = [{shortest}, {longest}]: a shortest and a longest length were expected")
            return self

    config: Config

    def fit(self, task: Task) -> Fitted:
        features = Features(self.config, task.texts)
        targets = _Targets(task)
        if self.config.C is None:
            strength = _cross_validated(features.of_training, targets)
        else:
            strength = self.config.C
        weights, biases = targets.fit(features.of_training, strength)

        def logits(texts: GivenTexts) -> NDArray[np.float64]:
            return np.asarray(targets.logits(features.of(texts), weights, biases))

        return Fitted(logits, parameters=sum(one.size for one in (*weights, *biases)))


class Features:
    """TF-IDF features of words and of characters, each text's vector of each kind of length 1.

    A pair (a, b) becomes a, b, a·b (what both have), |a − b| (what one has) and their cosine for each kind.

    Args:
        config: Which features.
        texts: The training texts, from which features and their document frequencies come.

    Raises:
        MethodError: If no feature occurs often enough.
    """

    def __init__(self, config: TfIdf.Config, texts: GivenTexts) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        common: dict[str, Any] = {"min_df": config.min_df, "sublinear_tf": True, "dtype": np.float64}
        self._vectorizers = [TfidfVectorizer(ngram_range=config.ngrams, token_pattern=TOKEN, **common)]
        if config.characters != (0, 0):
            self._vectorizers.append(TfidfVectorizer(analyzer="char_wb", ngram_range=config.characters, **common))
        try:
            counted = [vectorizer.fit_transform(_end_to_end(texts)) for vectorizer in self._vectorizers]
        except ValueError:
            raise MethodError(
                f"tfidf finds no feature that occurs in {config.min_df} training texts; set min_df = 1"
            ) from None
        self.of_training = _side_by_side(counted, texts)
        """Sparse features `(texts, features)` of the training texts."""

    def of(self, texts: GivenTexts) -> Any:
        """Returns the sparse features `(texts, features)`."""
        return _side_by_side([one.transform(_end_to_end(texts)) for one in self._vectorizers], texts)


def _end_to_end(texts: GivenTexts) -> list[str]:
    return [*texts.first, *(texts.second or ())]


def _side_by_side(counted: Sequence[Any], texts: GivenTexts) -> Any:
    """Returns `(texts, features)` from the features of each kind, those of second texts below those of first ones."""
    from scipy.sparse import hstack

    if texts.second is None:
        return hstack(counted).tocsr()
    half = len(texts.first)
    return hstack([block for kind in counted for block in _of_pairs(kind[:half], kind[half:])]).tocsr()


def _of_pairs(a: Any, b: Any) -> Iterator[Any]:
    from scipy.sparse import csr_matrix

    both = a.multiply(b)
    yield from (a, b, both, abs(a - b), csr_matrix(both.sum(axis=1)))


class _Targets:
    """The labels of the training texts as regressions: one over all classes, or one for each of several labels.

    Each has coefficients `(features, outputs)` and intercepts `(outputs,)`; a regression over two classes has one
    output, the log-odds of the second.
    """

    def __init__(self, task: Task) -> None:
        self.labels, self.num_labels, self.multi_label = task.labels, task.num_labels, task.multi_label
        columns = task.labels.T if task.multi_label else [task.labels]
        self.columns = [np.asarray(column, dtype=np.int64) for column in columns]
        self.weights = [_text_weights(column, task, number) for number, column in enumerate(self.columns)]
        self.classes = [np.unique(column) for column in self.columns]

    def __len__(self) -> int:
        return len(self.labels)

    def fit(self, features: Any, strength: float) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        """Returns the coefficients and intercepts of each regression; no outputs where training has one class only."""
        weights, biases = [], []
        for column, counted in zip(self.columns, self.weights, strict=True):
            model = _regression(features, column, counted, strength)
            weights.append(np.zeros((features.shape[1], 0)) if model is None else model.coef_.T)
            biases.append(np.zeros(0) if model is None else model.intercept_)
        return weights, biases

    def logits(
        self, features: Any, weights: list[NDArray[np.float64]], biases: list[NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """Returns logits `(texts, num_labels)`, whose softmax or sigmoid are the regressions' probabilities.

        Classes that training lacks, and labels that have one value there, keep what their frequency says.
        """
        frequencies = label_frequency_logits(self.labels, self.num_labels)
        logits: NDArray[np.float64] = np.tile(frequencies, (features.shape[0], 1))
        scores = [features @ own + bias for own, bias in zip(weights, biases, strict=True)]
        if self.multi_label:
            for place, score in enumerate(scores):
                if score.shape[1]:
                    logits[:, place] = score[:, 0]
            return logits
        present, (score,) = self.classes[0], scores
        if score.shape[1] == 1:
            score = np.hstack([np.zeros_like(score), score])
        if score.shape[1]:
            # Log-probabilities, so that they and the frequencies of absent classes have one scale.
            logits[:, present] = score - np.logaddexp.reduce(score, axis=1, keepdims=True)
        return logits


def _text_weights(column: NDArray[np.int64], task: Task, number: int) -> NDArray[np.float64]:
    """Returns what each text counts `(texts,)` for label `number`; weights mean what they mean in training."""
    if not isinstance(task.class_weights, str):
        given = np.array(task.class_weights, dtype=np.float64)
        return np.where(column == 1, given[number], 1.0) if task.multi_label else given[column]
    if task.class_weights != "balanced":
        return np.ones(len(column))
    counts = np.bincount(column, minlength=2 if task.multi_label else task.num_labels)
    if task.multi_label:
        return np.where(column == 1, counts[0] / max(1, counts[1]), 1.0)
    return np.asarray((len(column) / (task.num_labels * np.maximum(counts, 1)))[column])


def _regression(features: Any, column: NDArray[np.int64], weights: NDArray[np.float64], strength: float) -> Any:
    """Returns the fitted regression, None where there is one class only."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(column)) < 2:
        return None
    return LogisticRegression(C=strength, max_iter=MOST_ITERATIONS).fit(features, column, sample_weight=weights)


def _cross_validated(features: Any, targets: _Targets) -> float:
    """Returns the C of the lowest log loss on training texts that were held out.

    Strengths are tried from the strongest penalty on, until the loss rises.
    """
    folds = _folds(targets)
    # One strength serves all labels, so each label of a held-out text says something about it.
    decisions = max(1, int((folds == 0).sum()) * len(targets.columns))
    used = range(min(FOLDS, -(-ENOUGH_HELD_OUT // decisions)))
    best, lowest = STRENGTHS[0], np.inf
    for strength in STRENGTHS:
        loss = sum(_held_out_loss(features, targets, folds, fold, strength) for fold in used)
        if loss >= lowest:
            break
        best, lowest = strength, loss
    return best


def _folds(targets: _Targets) -> NDArray[np.int64]:
    """Returns each text's fold `(texts,)`, -1 for those left out: by chance that is always the same.

    Where a text has one class, each class is dealt out evenly.
    """
    chance = random_stream("tfidf", "folds").permutation(len(targets))
    order = np.lexsort((chance, *([] if targets.multi_label else [targets.columns[0]])))
    chosen = order[:: -(-len(order) // ENOUGH_TEXTS)]
    folds = np.full(len(targets), -1, dtype=np.int64)
    folds[chosen] = np.arange(len(chosen)) % FOLDS
    return folds


def _held_out_loss(features: Any, targets: _Targets, folds: NDArray[np.int64], fold: int, strength: float) -> float:
    """Returns the weighted sum of log losses on one fold; a class that the others lack counts half a text."""
    seen, held_out = np.flatnonzero((folds >= 0) & (folds != fold)), np.flatnonzero(folds == fold)
    unseen = UNSEEN / max(1, len(seen))
    # A feature that none of them has would get the coefficient 0.
    columns = np.unique(features[seen].indices)
    of_seen, of_held_out = features[seen][:, columns], features[held_out][:, columns]
    loss = 0.0
    for column, weights in zip(targets.columns, targets.weights, strict=True):
        known, truth = np.unique(column[seen]), column[held_out]
        model = _regression(of_seen, column[seen], weights[seen], strength)
        given = model.predict_proba(of_held_out) if model else np.full((len(held_out), len(known)), 1 - unseen)
        rows = np.flatnonzero(np.isin(truth, known))
        likelihood = np.full(len(truth), unseen)
        likelihood[rows] = np.maximum(given[rows, np.searchsorted(known, truth[rows])], np.finfo(np.float64).tiny)
        loss -= float((weights[held_out] * np.log(likelihood)).sum())
    return loss
