"""Labelled texts in memory, between reading and tokenising."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Dataset:
    """Accepted texts with labels, and which split each belongs to.

    Attributes:
        name: Name in tables.
        texts: One string a text.
        pairs: The second string of each text where texts are pairs, else None.
        label_names: Labels by name, in the order of the classifier's outputs.
        labels: `(texts,)` int64 class indices, or `(texts, num_labels)` uint8 where multi-label; `absent_label` where
            a text of test has none.
        splits: Sorted indices into `texts` by split name; a split that does not exist is empty.
        files: `(texts,)` index into `sources` of the file a text came from.
        lines: `(texts,)` line (CSV, JSONL: 1-based, of the record's start) or row (Parquet, 0-based) there.
        sources: Names of the files or hub splits read.
        slices: The user's columns by name, one value a text; nothing is trained on them.
    """

    name: str
    texts: list[str]
    pairs: list[str] | None
    label_names: list[str]
    labels: NDArray[np.int64] | NDArray[np.uint8]
    splits: dict[SplitName, NDArray[np.int64]]
    files: NDArray[np.int64]
    lines: NDArray[np.int64]
    sources: list[str] = field(default_factory=list)
    slices: dict[str, list[str]] = field(default_factory=dict)

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        return self.labels.ndim == 2

    @property
    def num_labels(self) -> int:
        """Number of the classifier's outputs."""
        return len(self.label_names)

    def has_labels(self, split: SplitName) -> bool:
        """Returns whether there are texts in `split`, and labels to score them by."""
        labels = self.labels[self.splits[split]]
        return bool(len(labels)) and are_known(labels)

    def __len__(self) -> int:
        return len(self.texts)

    def content_hash(self) -> str:
        """Returns the SHA-256 of everything that training sees: texts, labels, their names and the splits."""
        digest = hashlib.sha256()
        hash_texts(digest, self.label_names)
        hash_texts(digest, self.texts)
        hash_texts(digest, self.pairs or [])
        digest.update(f"{self.labels.shape}{self.labels.dtype}".encode())
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        for split in SPLITS:
            digest.update(f"{split}{len(self.splits[split])}".encode())
            digest.update(np.ascontiguousarray(self.splits[split]).tobytes())
        return digest.hexdigest()

    def place(self, index: int) -> str:
        """Returns where text `index` comes from, as `file:line`."""
        return f"{self.sources[int(self.files[index])]}:{int(self.lines[index])}"


def absent_label(labels: NDArray[Any]) -> int:
    """Returns what stands for a label that is not known: -1, or 255 where `labels` is 0/1 `(texts, num_labels)`."""
    return 255 if labels.ndim == 2 else -1


def are_known(labels: NDArray[Any]) -> bool:
    """Returns whether none of the labels is absent."""
    return not (labels == absent_label(labels)).any()


def hash_texts(digest: hashlib._Hash, texts: Iterable[str]) -> None:
    """Adds the texts to `digest`, each with its length, so that no two lists look alike."""
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    digest.update(b"end")
