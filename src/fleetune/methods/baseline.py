"""What a baseline is: a way to predict that trains nothing of the backbone, and is there to be compared with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fleetune.data.arrays import GivenTexts
from fleetune.methods.base import BackboneShape, Method, ParameterSpec, Site, SiteCall

if TYPE_CHECKING:
    from torch import Tensor


class PretrainedModel(Protocol):
    """What a pretrained model can be asked as it is; the engine answers."""

    @property
    def generates(self) -> bool:
        """Whether it can tell how likely a text goes on with certain words."""

    @property
    def encodes_sentences(self) -> bool:
        """Whether it was trained to give vectors that can be compared by their cosine."""

    def cut(self, texts: GivenTexts) -> GivenTexts:
        """Returns the texts cut to the recipe's `max_tokens`; of a pair the longer one first."""

    def vectors(self, texts: GivenTexts) -> NDArray[np.float32]:
        """Returns the vectors `(texts, width)`, of length 1, pooled as the model's folder says, else by their mean."""

    def log_likelihoods(
        self, prompts: Sequence[str], continuations: Sequence[str], chat: bool = False
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Returns log P(continuation | prompt) and its number of tokens, both `(prompts, continuations)`.

        Args:
            prompts: What stands before.
            continuations: What may follow, with the blank that it begins with, if any.
            chat: Whether each prompt is put into the tokenizer's chat template, as what the user said.
        """


@dataclass(frozen=True)
class Task:
    """All that a baseline may know before it predicts; validation and test are not in it.

    Attributes:
        label_names: Labels in the order of the logits.
        texts: The training texts.
        labels: Their labels: `(texts,)` class indices, or 0/1 `(texts, num_labels)` where multi-label.
        class_weights: `none`, `balanced` or a number a label, as the recipe's training says.
        model: The pretrained model, for a baseline that reads it.
    """

    label_names: Sequence[str]
    texts: GivenTexts
    labels: NDArray[np.int64] | NDArray[np.uint8]
    class_weights: str | Sequence[float] = "none"
    model: PretrainedModel | None = None

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        return self.labels.ndim == 2

    @property
    def num_labels(self) -> int:
        """Number of labels."""
        return len(self.label_names)


@dataclass(frozen=True)
class Fitted:
    """A baseline that can predict.

    Attributes:
        logits: Returns the logits `(texts, num_labels)` of texts: softmax, or sigmoid where multi-label, gives its
            probabilities.
        parameters: Number of values fitted to the training texts.
    """

    logits: Callable[[GivenTexts], NDArray[np.floating]]
    parameters: int = 0


class Baseline(Method):
    """A method that attaches nowhere. It gives the same predictions each time, so it has one trial and no seeds."""

    shares_backbone = False
    reads_model: ClassVar[bool] = False
    """Whether it asks the pretrained model; one that does not is the same over every backbone."""
    reads_training_texts: ClassVar[bool] = True
    """Whether it is fitted to them; one that is not is the same whatever their number."""
    is_floor: ClassVar[bool] = False
    """Whether it learns nothing by intent, so that one answer for every text is no failure."""
    training_fields: ClassVar[tuple[str, ...]] = ()
    """Which settings of `[training]` it heeds; the others say nothing to it."""
    tried_texts: ClassVar[int] = 500
    """On how many texts a forecast tries it."""

    def check_labels(self, label_names: Sequence[str], multi_label: bool, pairs: bool) -> None:
        """Does nothing where the settings fit such labels and texts.

        Raises:
            MethodError: If they do not.
        """

    def notes(self, model: PretrainedModel) -> tuple[str, ...]:
        """Returns what a report must say of how it uses `model`."""
        return ()

    @abstractmethod
    def fit(self, task: Task) -> Fitted:
        """Returns the baseline ready to predict.

        Raises:
            MethodError: If it cannot be made of these texts, or not with this model.
        """

    def sites(self, shape: BackboneShape) -> list[Site]:
        return []

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        return {}

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        return output
