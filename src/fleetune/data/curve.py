"""Learning curves over data size: the same data with fewer training texts, smaller parts inside larger ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fleetune.data.config import DataConfig
from fleetune.data.dataset import Dataset
from fleetune.data.split import nested_subset
from fleetune.errors import DataError


def thinned(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Returns the data set with a share of its training texts, stratified; all else is as it was.

    The texts of a smaller share are among those of a larger one, and hang on no other share of the curve.

    Args:
        dataset: The whole data set.
        share: Above 0, up to 1.
        seed: Of the drawing.
    """
    if share >= 1.0:
        return dataset
    train = dataset.splits["train"]
    chosen = nested_subset(dataset.labels[train], number_of_texts(len(train), share), seed)
    return replace(dataset, splits={**dataset.splits, "train": train[chosen]})


def number_of_texts(texts: int, share: float) -> int:
    """Returns how many of `texts` training texts a share is."""
    return max(1, round(share * texts))


def check_curve(dataset: Dataset, config: DataConfig) -> None:
    """Does nothing if every share of the curve leaves each label a training text, and no two are the same texts.

    Raises:
        DataError: If one does not.
    """
    texts = len(dataset.splits["train"])
    sizes = [number_of_texts(texts, share) for share in config.train_shares]
    for share, size in zip(config.train_shares, sizes, strict=True):
        present = _labels_present(thinned(dataset, share, config.split.seed))
        if not present.all():
            name = dataset.label_names[int(np.flatnonzero(~present)[0])]
            raise DataError(
                f"curve: {share:g} of the {texts:,} training texts is {size:,}, without any of the label {name!r}.\n"
                "Give curve in [data] larger shares, or add training texts with that label"
            )
        if sizes.count(size) > 1:
            raise DataError(
                f"curve: two shares of the {texts:,} training texts are the same {size:,}; give shares further apart"
            )


def _labels_present(dataset: Dataset) -> NDArray[np.bool_]:
    labels = dataset.labels[dataset.splits["train"]]
    if dataset.multi_label:
        return np.asarray(labels.any(axis=0))
    return np.bincount(labels, minlength=dataset.num_labels) > 0
