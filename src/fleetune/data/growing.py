"""A NumPy file that grows at its end, for an array that is never in memory as a whole."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray


class GrowingArray:
    """An `.npy` file of one dimension, the same to the byte as `np.save` would write; complete after the `with` block.

    Args:
        path: The file, which is made anew.
        dtype: Of its values.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._file = path.open("wb")
        self._length = 0

    def __enter__(self) -> GrowingArray:
        self._write_header()
        return self

    def append(self, values: NDArray[Any]) -> None:
        """Writes values after those that are there."""
        self._file.write(np.ascontiguousarray(values, dtype=self.dtype).tobytes())
        self._length += len(values)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._write_header()

    def _write_header(self) -> None:
        # NumPy leaves room in a header for a longer first dimension, so that the second is as long as the first.
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(
            self._file,
            {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self._length,)},
        )
