"""How alike two maps are: pure functions of arrays.

A map without any variance says nothing: it agrees with none, and its figures are NaN here. Records
count such maps and hold no NaN.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, ttest_1samp

TOP = 0.2
"""Share of the positions that `overlap` compares."""

RESAMPLES = 2000
_LEVEL = 0.95
_SEED = 17
_K1, _K2 = 0.01, 0.03  # of Wang et al.

Floats = NDArray[np.float64]


def constant(maps: Floats) -> NDArray[np.bool_]:
    """Which of the maps [N, G, G] have the same value everywhere, bool [N]."""
    same: NDArray[np.bool_] = np.ptp(maps.reshape(len(maps), -1), axis=1) == 0
    return same


def pearson(a: Floats, b: Floats) -> Floats:
    """Pearson's correlation over the positions of each pair of maps.

    Args:
        a: maps float64 [N, G, G].
        b: others, of the same shape.

    Returns:
        float64 [N] in [-1, 1]; NaN where one of the two is constant.
    """
    undefined = constant(a) | constant(b)
    x, y = (_centred(maps) for maps in (a, b))
    scale = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    scale[undefined] = 1.0
    values = np.clip((x * y).sum(axis=1) / scale, -1.0, 1.0)
    return np.where(undefined, np.nan, values)


def _centred(maps: Floats) -> Floats:
    """The maps as rows with mean 0, the largest absolute value 1; constant ones are 0."""
    rows = maps.reshape(len(maps), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    centred: Floats = rows / np.where(largest > 0, largest, 1.0)
    return centred


def window(grid: int) -> int:
    """Side of the window of `ssim` on a map of `grid` x `grid` positions: odd, from 3 to 7.

    Wang et al. take 11 on photos. About half a side leaves several places for it on a map.
    """
    half = grid // 2
    return min(7, max(3, half - 1 + half % 2))


def ssim(a: Floats, b: Floats) -> Floats:
    """Mean structural similarity of each pair of maps.

    Wang, Bovik, Sheikh and Simoncelli, Image Quality Assessment, IEEE Trans. Image Processing 13,
    2004: with C1 = 0.01² and C2 = 0.03², the mean over all places of a window of

        (2 m_a m_b + C1) (2 s_ab + C2) / ((m_a² + m_b² + C1) (s_a² + s_b² + C2))

    of its means m, variances s² and covariance s_ab.

    Maps differ in scale, so each is first scaled to [0, 1]. The window is uniform and lies within
    the map; its side is that of `window`.

    Args:
        a: maps float64 [N, G, G], G >= 3.
        b: others, of the same shape.

    Returns:
        float64 [N] in [-1, 1], 1 for equal maps; NaN where one of the two is constant.
    """
    undefined = constant(a) | constant(b)
    side = window(a.shape[1])
    x, y = (_windows(_scaled(maps), side) for maps in (a, b))
    mean_x, mean_y = x.mean(axis=-1), y.mean(axis=-1)
    both = ((x - mean_x[..., None]) * (y - mean_y[..., None])).mean(axis=-1)
    c1, c2 = _K1**2, _K2**2
    above = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (x.var(axis=-1) + y.var(axis=-1) + c2)
    return np.where(undefined, np.nan, (above / below).mean(axis=(1, 2)))


def _scaled(maps: Floats) -> Floats:
    """The maps in [0, 1]; constant ones are 0."""
    low = maps.min(axis=(1, 2), keepdims=True)
    extent = maps.max(axis=(1, 2), keepdims=True) - low
    scaled: Floats = (maps - low) / np.where(extent > 0, extent, 1.0)
    return scaled


def _windows(maps: Floats, side: int) -> Floats:
    """Every window of maps [N, G, G], [N, G - side + 1, G - side + 1, side²]."""
    seen = np.lib.stride_tricks.sliding_window_view(maps, (side, side), axis=(1, 2))
    return seen.reshape(*seen.shape[:3], side * side)


def top_positions(maps: Floats) -> NDArray[np.bool_]:
    """The `TOP` share of positions with the largest values, bool [N, P]; the first of equals."""
    rows = maps.reshape(len(maps), -1)
    count = max(1, round(TOP * rows.shape[1]))
    order = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    chosen = np.zeros(rows.shape, np.bool_)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


def overlap(a: Floats, b: Floats) -> Floats:
    """Intersection over union of the top positions of each pair of maps [N, G, G].

    Returns:
        float64 [N] in [0, 1], 0.11 to be expected of unrelated maps; NaN where one is constant.
    """
    undefined = constant(a) | constant(b)
    x, y = top_positions(a), top_positions(b)
    values = (x & y).sum(axis=1) / (x | y).sum(axis=1)
    return np.where(undefined, np.nan, values)


def interval(values: Floats) -> tuple[float, float] | None:
    """95% percentile bootstrap interval of the mean of values [N]; None for less than two.

    The seed is fixed, so that equal values have equal intervals.
    """
    if len(values) < 2:
        return None
    found = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=_LEVEL, method="percentile",
        batch=max(1, 2_000_000 // len(values)), rng=np.random.default_rng(_SEED),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def chance_of_fall(before: Floats, after: Floats) -> float:
    """One-sided p-value of Student's paired t-test: did the mean over images fall?

    Args:
        before: a figure of each image, float64 [N].
        after: that of the same images later.

    Returns:
        The p-value in [0, 1]; 1 for fewer than two images, and where nothing changed.
    """
    fall = before - after
    if len(fall) < 2 or not fall.any():
        return 1.0
    if np.ptp(fall) < 1e-12:  # the same fall in every image; the test would divide by 0
        return 0.0 if fall[0] > 0 else 1.0
    p = float(ttest_1samp(fall, 0.0, alternative="greater").pvalue)
    assert not math.isnan(p)
    return p
