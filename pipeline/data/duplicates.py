"""Near-duplicates: one picture in another size, encoding or brightness, or taken a moment later.

Two images are as similar as the cosine between their gradients, in grey and at 24 pixels a side.
Neither brightness nor contrast matters. By Parseval's theorem that is the cosine between their DCT
coefficients, each weighted by the square root of its eigenvalue of the Laplacian. The 8 x 8 lowest
of them find the candidates, in blocks of matrix products; all of them decide.

Over 70 photos, a photo and itself had at least 0.989 after JPEG at quality 30, at half or at 96
pixels of its size, or 1.1 times as bright; 0.95 where 1.3 times as bright; and 0.91 in 95% of the
cases where moved by a hundredth and turned by a degree. Two different photos of 396 had at most
0.66. Cut by 2% at two sides, a photo has 0.8 and is mostly not found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

from pipeline.core.progress import track
from pipeline.data.batches import images_per_call

SIDE, LOWEST = 24, 8

LIMITS = ((0.1, 0.9), (0.4, 0.99))
"""How alike a set's images are, and the similarity from which two of them are near-duplicates;
in between it is interpolated. Photos have an alikeness of 0.09, Fashion-MNIST of 0.39: there a
limit of 0.98 reports pairs of trousers of one cut, 0.99 the same picture twice."""

MARGIN = 0.02
"""By which the lowest coefficients alone may give a lower similarity. 0.011 was seen."""

_SAMPLE = 1024
_ROWS, _COLUMNS = 256, 1024
_MOST = 4
"""Candidates per image in a block, where there are more on average. Bounds time and memory for
sets of thousands of copies."""
_PAIRS = 4096


@dataclass(frozen=True)
class Prints:
    """What is compared, of N images: 1.4 kB of each. A flat image is similar to none."""

    coarse: NDArray[np.float32]
    """[N, C], of length 1."""
    fine: NDArray[np.float16]
    """[N, F], of length 1."""

    def __len__(self) -> int:
        """How many images."""
        return len(self.fine)


@dataclass(frozen=True)
class Closest:
    """Of each of N images the most similar one among others."""

    similarity: NDArray[np.float32]
    """[N]; 0 where none reaches the limit."""
    place: NDArray[np.int64]
    """[N], indices of those others; -1 where none reaches the limit."""

    def found(self) -> NDArray[np.int64]:
        """Indices of images with a near-duplicate."""
        return np.flatnonzero(self.place >= 0)


def prints(images: NDArray[np.uint8], label: str = "compare") -> Prints:
    """The prints of images uint8 [N, H, W, C], which may be memory-mapped; `label` is the bar's."""
    count, height, width, channels = images.shape
    rows, columns = min(SIDE, height), min(SIDE, width)
    down, across = _means(height, rows), _means(width, columns)
    weights = _weights(rows, columns)
    low = np.zeros_like(weights, bool)
    low[:LOWEST, :LOWEST] = True
    coarse = np.empty((count, np.count_nonzero(low & (weights > 0))), np.float32)
    fine = np.empty((count, weights.size - 1), np.float16)
    step = images_per_call(512, height, width)
    for start in track(range(0, count, step), label, count, step=step):
        part = slice(start, start + step)
        lines = images[part].reshape(-1, height, width * channels).astype(np.float32)
        grey = (down @ lines).reshape(-1, rows, width, channels).mean(-1)
        small = grey @ across.T
        gradients = dctn(small, axes=(1, 2), norm="ortho") * weights
        coarse[part] = _unit(gradients[:, low & (weights > 0)])
        fine[part] = _unit(gradients[:, weights > 0])
    return Prints(coarse, fine)


def limit_of(images: Prints) -> float:
    """The similarity from which two images of this set are near-duplicates; see `LIMITS`.

    The set's alikeness is the 95th percentile of the similarities of all pairs among 1,024 images.
    """
    sample = images.fine[:: max(1, len(images) // _SAMPLE)].astype(np.float32)
    pairs = (sample @ sample.T)[np.triu_indices(len(sample), 1)]
    alikeness = float(np.quantile(pairs, 0.95)) if len(pairs) else 0.0
    (least, low), (most, high) = LIMITS
    return float(np.interp(alikeness, (least, most), (low, high)))


def closest(images: Prints, others: Prints | None, limit: float, label: str = "search") -> Closest:
    """The most similar of `others` for each image, where one reaches `limit`.

    Args:
        images: N of them.
        others: where to search; None: in `images`, among those before each.
        limit: a similarity in (0, 1].
        label: of the progress bar.
    """
    similarity = np.zeros(len(images), np.float32)
    place = np.full(len(images), -1, np.int64)
    among = images if others is None else others
    for start in track(range(0, len(images), _ROWS), label, len(images), step=_ROWS):
        stop = min(start + _ROWS, len(images))
        for first in range(0, stop if others is None else len(among), _COLUMNS):
            similar = images.coarse[start:stop] @ among.coarse[first : first + _COLUMNS].T
            if others is None and first + _COLUMNS > start:
                similar[np.triu_indices(len(similar), start - first, similar.shape[1])] = 0
            row, column = _candidates(similar, limit - MARGIN)
            row, column = row + start, column + first
            for part in _parts(len(row)):
                one, other = row[part], column[part]
                exact = np.einsum("nf,nf->n", images.fine[one], among.fine[other], dtype=np.float32)
                better = np.flatnonzero((exact >= limit) & (exact > similarity[one]))
                better = better[np.argsort(exact[better], kind="stable")]  # the last one stays
                similarity[one[better]] = exact[better]
                place[one[better]] = other[better]
    return Closest(similarity, place)


def _candidates(
    similar: NDArray[np.float32], limit: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns where coarse similarities reach `limit`; see `_MOST`."""
    reach = similar >= limit
    if np.count_nonzero(reach) > _MOST * len(reach) and reach.shape[1] > _MOST:
        columns = np.argpartition(-similar, _MOST, axis=1)[:, :_MOST]
        kept = np.zeros_like(reach)
        np.put_along_axis(kept, columns, values=True, axis=1)
        reach &= kept
    row, column = np.nonzero(reach)
    return row, column


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + _PAIRS) for start in range(0, count, _PAIRS))


def _means(size: int, bins: int) -> NDArray[np.float32]:
    """[bins, size]: a matrix that takes the means of equal parts of a line of `size` pixels."""
    edges = np.linspace(0, size, bins + 1)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    shares: NDArray[np.float32] = (np.clip(overlap, 0, None) * (bins / size)).astype(np.float32)
    return shares


def _weights(rows: int, columns: int) -> NDArray[np.float32]:
    """[rows, columns]: the DCT coefficients times these have the length of the gradient."""
    down, across = ((2 * np.sin(math.pi * np.arange(n) / (2 * n))) ** 2 for n in (rows, columns))
    length: NDArray[np.float32] = np.sqrt(down[:, None] + across).astype(np.float32)
    return length


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors [n, d] of length 1; those of next to no length become zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.where(length > 1e-3, vectors / np.maximum(length, 1e-3), 0)
    return unit
