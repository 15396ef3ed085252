"""From the logits of a text's windows to the text's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.data.cutting import WindowPool


@dataclass(frozen=True)
class Windows:
    """Which sequences are windows of one text.

    Attributes:
        counts: `(texts,)` int64 windows of each text; they lie side by side, in the order of the texts.
        pool: `mean` or `max`, label by label.
    """

    counts: Tensor
    pool: WindowPool

    def pooled(self, logits: Tensor) -> Tensor:
        """Returns the texts' logits `(texts, num_labels)`, given their windows' `(sequences, num_labels)`.

        Of windows with the same largest logit each has an equal share of its gradient.
        """
        pooled: Tensor = torch.segment_reduce(logits, self.pool, lengths=self.counts, axis=0)
        return pooled
