"""`TextClassifier`: one fine-tune with scikit-learn's words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from fleetune.bundle import Bundle, load_bundle, save_bundle
from fleetune.calibration import NEUTRAL_TEMPERATURE, calibrated_probabilities, calibrated_thresholds, fit_temperature
from fleetune.data.arrays import GivenLabels, GivenTexts, as_items, classes_from, plain, read_labels, read_texts
from fleetune.data.config import SplitConfig
from fleetune.data.cutting import Cutting
from fleetune.data.dataset import Dataset
from fleetune.data.duplicates import group_duplicates, normalised_texts
from fleetune.data.split import split_texts
from fleetune.data.tokens import Tokens, tokenize_in_memory
from fleetune.engine.backbone import Backbone, load_backbone, load_tokenizer
from fleetune.engine.config import BackboneConfig, TrainingConfig
from fleetune.engine.evaluation import trial_logits
from fleetune.engine.events import Evaluated, Failed, Finished
from fleetune.engine.fleet import Fleet, FleetData
from fleetune.engine.trial import TrialSpec
from fleetune.errors import DataError, RecipeError, TrialFailedError
from fleetune.methods import get
from fleetune.methods.base import Method, describe_validation
from fleetune.methods.baseline import Baseline
from fleetune.thresholds import final_thresholds

if TYPE_CHECKING:
    from torch import Tensor

Texts = Iterable[Any]
"""Strings or pairs of strings in a list, an array, a Series or a frame."""
Labels = Iterable[Any]
"""A label a text, or several: see `TextClassifier.fit`."""
PROBE_TEXTS = 32
"""Training texts that are kept, to compare logits with when the classifier is saved."""
TRAINING_FIELDS = (
    "epochs",
    "learning_rate",
    "batch_size",
    "metric",
    "loss",
    "class_weights",
    "thresholds",
    "precision",
)


class TextClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of texts, fine-tuned from a pretrained language model.

    Args:
        backbone: A folder, a hub name, or an embedded model such as `embedded:minilm`.
        method: How to fine-tune: `LoRA(rank=8)`, another method, or a method's kind with its default settings.
        epochs: Passes over the training texts.
        learning_rate: Peak learning rate; for `full`, 2e-5 to 1e-4 are usual.
        batch_size: Texts in one step.
        max_tokens: Longest sequence of tokens, special tokens included.
        long_texts: What becomes of longer texts: `head` cuts them, `head_tail` keeps their beginning and end, `windows`
            reads them in overlapping windows and pools the logits.
        head_share: With `head_tail`, the beginning's share of the room.
        window_stride: With `windows`, tokens by which each starts later; half of `max_tokens` if None.
        max_windows: With `windows`, the most that a text has; it is cut after them.
        window_pool: With `windows`, `mean` or `max`.
        validation: Share of the texts kept aside to choose the best epoch by `metric`; 0 keeps the last.
        seed: Seed of the start, the order, the dropout and the split.
        precision: `auto`, `bf16` or `fp32`.
        metric: What chooses the best epoch.
        loss: `cross_entropy`, or `focal`.
        class_weights: `none`, `balanced`, or a number for each of `classes_`; multi-label, a label's positives are
            weighed.
        thresholds: Multi-label: `tuned` for each label's F1 on the texts kept aside (0.5 where there are none), or a
            number, for the probabilities as they are before calibration.

    Attributes:
        classes_: The labels in the order of the columns of `predict_proba`: strings sorted, numbers by value.
        history_: One dictionary an evaluation: `step`, `epoch` and the metrics on the texts kept aside.
        temperature_: What logits are divided by before they become probabilities; fitted on the texts kept aside, 1
            where there are none. It changes no prediction.
        thresholds_: Probability from which a label is given, one each, if multi-label; else None. May be changed.
        positive_threshold_: Of two classes, the probability from which the second is given; the more probable one if
            None. May be changed.

    Example:
        >>> classifier = TextClassifier(method=LoRA(rank=8)).fit(texts, labels)
        >>> classifier.predict(["what a day"])
    """

    def __init__(
        self,
        backbone: str = "embedded:minilm",
        method: Method | str = "lora",
        *,
        epochs: float = 3.0,
        learning_rate: float = 5e-4,
        batch_size: int = 16,
        max_tokens: int = 128,
        long_texts: str = "head",
        head_share: float = 0.25,
        window_stride: int | None = None,
        max_windows: int = 8,
        window_pool: str = "mean",
        validation: float = 0.1,
        seed: int = 0,
        precision: str = "auto",
        metric: str = "f1_macro",
        loss: str = "cross_entropy",
        class_weights: str | Sequence[float] = "none",
        thresholds: str | float = "tuned",
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.long_texts = long_texts
        self.head_share = head_share
        self.window_stride = window_stride
        self.max_windows = max_windows
        self.window_pool = window_pool
        self.validation = validation
        self.seed = seed
        self.precision = precision
        self.metric = metric
        self.loss = loss
        self.class_weights = class_weights
        self.thresholds = thresholds

    def fit(self, X: Texts, y: Labels) -> Self:
        """Trains on texts and their labels.

        Args:
            X: Strings, or pairs of strings; a list, an array or a pandas Series (a frame of two columns for pairs).
            y: One label a text (strings, integers, numbers, booleans); or several: a list of labels a text, or a 0/1
                array or frame with one column a label.

        Raises:
            DataError: If texts or labels are unusable.
            RecipeError: If a parameter is out of its range.
            BackboneError, MethodError: If the backbone cannot be used, or not with this method.
            TrialFailedError: If the training diverged.
        """
        training, cutting = self._training(), self._cutting()
        texts = read_texts(X)
        labels = read_labels(y)
        dataset = _dataset(texts, labels)
        training.check_labels(dataset.num_labels, dataset.multi_label)
        dataset = replace(dataset, splits=self._split(dataset))
        config = BackboneConfig(model=str(self.backbone))
        method = get(self.method)() if isinstance(self.method, str) else self.method
        if isinstance(method, Baseline):
            raise RecipeError(
                f"{method.kind} is a baseline, there to compare with in an Experiment; TextClassifier takes a method "
                "that trains, such as 'lora'"
            )
        tokenizer = load_tokenizer(config)
        tokens = tokenize_in_memory(dataset, tokenizer, self.max_tokens, cutting)
        backbone = load_backbone(config, dataset.num_labels, self.precision, dataset.label_names)
        _check_lengths(tokens, backbone)
        self.tensors_, self.history_, logits = _train(
            backbone, TrialSpec("classifier", method, training, self.seed), dataset, tokens
        )
        self.backbone_, self.method_, self.tokenizer_ = backbone, method, tokenizer
        self.classes_, self.label_names_, self.label_type_ = labels.classes, labels.names, labels.label_type
        self.temperature_, self.thresholds_ = _calibration(training, dataset, logits)
        self.positive_threshold_: float | None = None
        self.pairs_, self.max_tokens_, self.cutting_ = dataset.pairs is not None, self.max_tokens, cutting
        self._probe = _rows(texts, np.linspace(0, len(dataset) - 1, min(PROBE_TEXTS, len(dataset))).astype(np.int64))
        return self

    def _training(self) -> TrainingConfig:
        try:
            return TrainingConfig.model_validate({name: getattr(self, name) for name in TRAINING_FIELDS})
        except ValidationError as error:
            raise RecipeError(describe_validation(error, TrainingConfig, "TextClassifier")) from None

    def _cutting(self) -> Cutting:
        try:
            return Cutting.model_validate({name: getattr(self, name) for name in Cutting.model_fields})
        except ValidationError as error:
            raise RecipeError(describe_validation(error, Cutting, "TextClassifier")) from None

    def _split(self, dataset: Dataset) -> dict[Any, NDArray[np.int64]]:
        try:
            config = SplitConfig(validation=self.validation, test=0.0, seed=self.seed)
        except ValidationError as error:
            raise RecipeError(describe_validation(error, SplitConfig, "TextClassifier")) from None
        groups = group_duplicates(normalised_texts(dataset.texts, dataset.pairs))
        return dict(split_texts(dataset.labels, groups, config))

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels."""
        check_is_fitted(self, "classes_")
        return self.thresholds_ is not None

    def predict_proba(self, X: Texts) -> NDArray[np.float64]:
        """Returns calibrated probabilities `(texts, num_labels)` by `classes_`; rows sum to 1 unless multi-label."""
        return calibrated_probabilities(self.decision_function(X), self.temperature_, self.multi_label)

    def decision_function(self, X: Texts) -> NDArray[np.float32]:
        """Returns raw logits `(texts, num_labels)` in the order of `classes_`, two columns for two classes.

        Raises:
            NotFittedError: Before `fit` or `load`.
            DataError: If a text is not a string, or pairs are expected and single texts come.
        """
        check_is_fitted(self, "classes_")
        texts = read_texts(X, allow_none=True)
        if not texts.first:
            return np.empty((0, len(self.classes_)), dtype=np.float32)
        if (texts.second is not None) != self.pairs_:
            expected, got = ("pairs", "single texts") if self.pairs_ else ("single texts", "pairs")
            raise DataError(f"this classifier was trained on {expected}; got {got}")
        tokens = self._tokens(texts)
        return trial_logits(self.backbone_, self.method_, self.tensors_, tokens)

    def _tokens(self, texts: GivenTexts) -> Tokens:
        labels = np.zeros(len(texts.first), dtype=np.int64)
        dataset = _bare_dataset(texts, labels, self.label_names_)
        return tokenize_in_memory(dataset, self.tokenizer_, self.max_tokens_, self.cutting_)

    def predict(self, X: Texts) -> Any:
        """Returns one label a text; if multi-label, a tuple of labels a text, or a 0/1 array where `fit` had one."""
        probabilities = self.predict_proba(X)
        if self.positive_threshold_ is not None:
            return self.classes_[(probabilities[:, 1] >= self.positive_threshold_).astype(np.int64)]
        if self.thresholds_ is None:
            return self.classes_[probabilities.argmax(axis=1)]
        given = probabilities >= self.thresholds_
        if self.label_type_ == "indicator":
            return given.astype(np.int64)
        return [tuple(self.classes_[row].tolist()) for row in given]

    def score(self, X: Texts, y: Labels, sample_weight: ArrayLike | None = None) -> float:
        """Returns the share of texts whose label is right; if multi-label, whose labels are all right."""
        from sklearn.metrics import accuracy_score

        predicted: Any = self.predict(X)
        if self.multi_label and self.label_type_ != "indicator":
            truth = [frozenset(plain(label) for label in labels) for labels in as_items(y)]
            right = [frozenset(labels) == wanted for labels, wanted in zip(predicted, truth, strict=True)]
            return float(np.average(right, weights=None if sample_weight is None else np.asarray(sample_weight)))
        return float(accuracy_score(y, predicted, sample_weight=sample_weight))

    def save(self, folder: str | Path, *, merge: bool = False, overwrite: bool = False) -> float:
        """Saves a bundle in `folder`, and returns by how much its logits differ after reloading, at most 1e-4.

        Args:
            folder: It must not exist or be empty, or hold a bundle if `overwrite`.
            merge: Whether to write a complete Hugging Face model that needs no backbone.
            overwrite: Whether a bundle there may be replaced.

        Raises:
            NotFittedError: Before `fit` or `load`.
            BundleError: If the folder is taken.
            ExportMismatchError: If the reloaded bundle gives other logits.
        """
        check_is_fitted(self, "classes_")
        training = {name: getattr(self, name) for name in (*TRAINING_FIELDS, "validation", "seed")}
        difference = save_bundle(
            Path(folder),
            self.backbone_,
            self.method_,
            self.tensors_,
            self.label_names_,
            multi_label=self.multi_label,
            pairs=self.pairs_,
            max_tokens=self.max_tokens_,
            long_texts=self.cutting_,
            training={**training, "evaluations": self.history_},
            thresholds=None if self.thresholds_ is None else [float(value) for value in self.thresholds_],
            positive_threshold=self.positive_threshold_,
            temperature=self.temperature_,
            tokenizer=self.tokenizer_,
            label_type=self.label_type_,
            probe=self._tokens(self._probe),
            merge=merge,
            overwrite=overwrite,
        )
        assert difference is not None
        return difference

    @classmethod
    def load(cls, folder: str | Path, *, backbone: str | None = None, precision: str | None = None) -> Self:
        """Returns the classifier that a bundle holds, ready to predict.

        Args:
            folder: The bundle's folder.
            backbone: Where the backbone is now, if not where it was.
            precision: Precision to predict in; that of the training if absent, bf16 only where it is fast.

        Raises:
            BundleError: If the bundle is damaged, or the backbone is not the one that it was trained on.
            BackboneError: If the backbone cannot be found.
        """
        return cls._from_bundle(load_bundle(Path(folder)), backbone, precision)

    @classmethod
    def _from_bundle(cls, bundle: Bundle, backbone: str | None, precision: str | None) -> Self:
        manifest = bundle.manifest
        if precision is None:
            precision = "auto" if manifest.backbone.precision == "bf16" else manifest.backbone.precision
        names = (*TRAINING_FIELDS, "validation", "seed")
        known = {name: manifest.training[name] for name in names if name in manifest.training}
        method = get(manifest.method.kind)(**manifest.method.settings)
        made = {**known, "precision": precision, "max_tokens": manifest.max_tokens, "method": method}
        made |= manifest.long_texts.model_dump()
        classifier = cls(backbone=backbone or manifest.backbone.model, **made)
        classifier.backbone_ = bundle.open_backbone(precision, backbone)
        classifier.tokenizer_ = bundle.open_tokenizer(backbone)
        classifier.method_, classifier.tensors_ = bundle.method, bundle.tensors
        classifier.label_names_, classifier.label_type_ = list(manifest.labels), manifest.label_type
        classifier.classes_ = classes_from(classifier.label_names_, manifest.label_type)
        classifier.thresholds_ = None if manifest.thresholds is None else np.array(manifest.thresholds)
        classifier.temperature_ = manifest.temperature
        classifier.positive_threshold_ = manifest.positive_threshold
        classifier.pairs_, classifier.max_tokens_ = manifest.pairs, manifest.max_tokens
        classifier.cutting_ = manifest.long_texts
        classifier.history_ = list(manifest.training.get("evaluations", []))
        # No training text is known any more; the labels' names are texts too.
        classifier._probe = GivenTexts(classifier.label_names_, classifier.label_names_ if manifest.pairs else None)
        return classifier

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.classifier_tags.multi_label = True
        return tags


def _dataset(texts: GivenTexts, labels: GivenLabels) -> Dataset:
    if len(texts.first) != len(labels.values):
        raise DataError(
            f"there are {len(texts.first):,} texts and {len(labels.values):,} labels; one each was expected"
        )
    return _bare_dataset(texts, labels.values, labels.names)


def _bare_dataset(texts: GivenTexts, labels: NDArray[Any], names: list[str]) -> Dataset:
    count = len(texts.first)
    files, lines = np.zeros(count, dtype=np.int64), np.arange(count, dtype=np.int64)
    return Dataset("texts", texts.first, texts.second, names, labels, {}, files, lines, ["texts"])


def _rows(texts: GivenTexts, chosen: NDArray[np.int64]) -> GivenTexts:
    second = None if texts.second is None else [texts.second[row] for row in chosen]
    return GivenTexts([texts.first[row] for row in chosen], second)


def _check_lengths(tokens: Tokens, backbone: Backbone) -> None:
    longest = int(tokens.longest_sequences.max())
    if backbone.max_positions is not None and longest > backbone.max_positions:
        raise RecipeError(
            f"a text has {longest} tokens and this backbone takes {backbone.max_positions}.\n"
            f"Type: max_tokens={backbone.max_positions}"
        )


def _train(
    backbone: Backbone, spec: TrialSpec, dataset: Dataset, tokens: Tokens
) -> tuple[dict[str, Tensor], list[dict[str, Any]], NDArray[np.float32] | None]:
    """Returns the best tensors of one trial, its evaluations, and the best tensors' logits on validation if any."""
    fleet = Fleet(backbone, [spec], FleetData(tokens, dataset.labels, dataset.splits))
    history: list[dict[str, Any]] = []
    logits: NDArray[np.float32] | None = None
    for event in fleet.train():
        if isinstance(event, Failed):
            raise TrialFailedError(f"the training failed: {event.reason}.\nTry a lower learning_rate")
        if isinstance(event, Evaluated):
            metrics = {name: float(value) for name, value in event.metrics.items()}
            history.append({"step": event.step, "epoch": event.epoch, **metrics})
        if isinstance(event, Finished):
            logits = event.predictions.get("validation")
    trial = fleet.trials[0]
    return trial.best or trial.parameters.state(), history, logits


def _calibration(
    training: TrainingConfig, dataset: Dataset, logits: NDArray[np.float32] | None
) -> tuple[float, NDArray[np.float64] | None]:
    """Returns the temperature, and from which probability each label is given, None where texts have one label each."""
    held_out = None if logits is None else (dataset.labels[dataset.splits["validation"]], logits)
    temperature = NEUTRAL_TEMPERATURE if held_out is None else fit_temperature(*held_out)
    if not dataset.multi_label:
        return temperature, None
    plain = final_thresholds(training.thresholds, dataset.num_labels, held_out)
    return temperature, calibrated_thresholds(plain, temperature)
