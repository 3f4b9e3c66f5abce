"""Arrays written row by row, and stratified draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray


class ArrayWriter:
    """Writes an .npy file of a length that is not known in advance; a context manager.

    NumPy's header has room for a longer first axis. It is rewritten at the end.
    """

    def __init__(self, path: Path, row: tuple[int, ...], dtype: type[np.generic]) -> None:
        self._file = path.open("wb")
        self._row, self._dtype = row, np.dtype(dtype)
        self.rows = 0
        self._write_header()
        self._start = self._file.tell()

    def __enter__(self) -> Self:
        return self

    def append(self, rows: NDArray[Any]) -> None:
        """Write rows [n, *row]; `ValueError` for another shape or dtype."""
        if rows.shape[1:] != self._row or rows.dtype != self._dtype:
            raise ValueError(f"rows {rows.dtype} {rows.shape} do not fit {self._dtype} {self._row}")
        self._file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file.seek(0)
            self._write_header()
            assert self._file.tell() == self._start
        self._file.close()

    def _write_header(self) -> None:
        header = {
            "descr": npy.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.rows, *self._row),
        }
        npy.write_array_header_1_0(self._file, header)


def draw(labels: NDArray[np.int64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw a stratified subset by the largest-remainder method.

    Args:
        labels: int64 [N].
        count: size of the subset, at most N.
        random: decides which samples of a class are drawn.

    Returns:
        Sorted indices int64 [count]. Of every class with two samples or more, at least one is
        drawn and at least one is left, as far as `count` allows.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    most = sizes - 1 if count <= (sizes - 1).sum() else sizes
    least = (sizes > 1).astype(int) if count >= (sizes > 1).sum() else np.zeros_like(sizes)
    exact = sizes * (count / len(labels))
    take = np.minimum(np.maximum(np.floor(exact).astype(int), least), most)
    while take.sum() != count:
        step = 1 if take.sum() < count else -1
        free = take < most if step > 0 else take > least
        due = np.where(free, step * (exact - take), -np.inf)
        take[np.argmax(due)] += step
    chosen = [
        random.permutation(np.flatnonzero(labels == name))[:n]
        for name, n in zip(classes, take, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
