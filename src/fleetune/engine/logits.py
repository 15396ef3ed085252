"""Logits of many texts, kept where they do not fill memory."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleetune.data.writing import make_folder

MOST_BYTES_IN_MEMORY = 1 << 20
"""Of one trial's logits on one split; more go into a file."""
VALUE_BYTES = 4


class KeptLogits:
    """One trial's logits of some texts, written in any order: in memory, or in a file where they are many.

    The file has no name: it is gone with this object, or with the process, however that ends.

    Args:
        texts: How many there are.
        num_labels: Number of the classifier's outputs.
        folder: Where a file may lie, made if only itself is missing; None keeps them in memory.

    Raises:
        FileNotFoundError: If the folder above it is gone.
    """

    def __init__(self, texts: int, num_labels: int, folder: Path | None) -> None:
        self.shape = texts, num_labels
        self._file, self._values = None, None
        if folder is None or texts * num_labels * VALUE_BYTES <= MOST_BYTES_IN_MEMORY:
            self._values = np.empty(self.shape, dtype=np.float32)
        else:
            # The folder alone: a run's folder that was moved away is not made anew where it was.
            make_folder(folder, above=0)
            self._file = tempfile.TemporaryFile(buffering=0, prefix=".logits-", dir=folder)  # noqa: SIM115

    @classmethod
    def of(cls, values: NDArray[np.float32], folder: Path | None) -> KeptLogits:
        """Returns logits `(texts, num_labels)` that are known already, kept like others."""
        kept = cls(values.shape[0], values.shape[1], folder)
        kept.put(np.arange(len(values)), values)
        return kept

    def put(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Writes the logits `(rows, num_labels)` of the texts numbered in `rows`.

        Raises:
            OSError: If the disk is full.
        """
        if self._values is not None:
            self._values[rows] = values
            return
        assert self._file is not None
        width = self.shape[1] * VALUE_BYTES
        data, handle = memoryview(np.ascontiguousarray(values, dtype=np.float32).tobytes()), self._file.fileno()
        # Not through a mapping: a disk that is full would kill the process there, and here it is an error.
        for place, row in enumerate(rows.tolist()):
            written = 0
            while written < width:
                # The system may take a part, and the rest the next time.
                taken = os.pwrite(handle, data[place * width + written : (place + 1) * width], row * width + written)
                if not taken:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                written += taken

    def array(self) -> NDArray[np.float32]:
        """Returns all of them `(texts, num_labels)`; those of a file are read as they are looked at."""
        if self._values is not None:
            return self._values
        # The mapping outlives this object, and lasts as long as the array; what is written to it stays out of the file.
        return np.asarray(np.memmap(self._file, dtype=np.float32, mode="c", shape=self.shape))  # type: ignore[call-overload]
