"""Mean corruption error and its limits: pure functions of errors per image, seeded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.recall import LEVEL

RESAMPLES = 2000
_SEED = 17
_AT_ONCE = 2**24  # weights of images that are in memory together

Sums = NDArray[np.float64]
"""[R + 1, C]: errors under each corruption, of all images first, then of R resamples of them."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% limits; these are None where some resample has no such figure."""

    value: float
    low: float | None
    high: float | None


def resample(errors: NDArray[np.integer]) -> NDArray[np.float64]:
    """Sums of errors over all images, and over images that are drawn with replacement.

    The bootstrap of Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13. An image
    comes with all of its answers, by all networks: they are not independent.

    Args:
        errors: [K, C, N], at how many strengths of a corruption a network is wrong about an image.

    Returns:
        [R + 1, K, C]: `Sums` of K networks.
    """
    networks, corruptions, images = errors.shape
    counts = errors.reshape(-1, images).T.astype(float)
    rng, found = np.random.default_rng(_SEED), [counts.sum(axis=0, keepdims=True)]
    some = max(1, _AT_ONCE // images)
    for start in range(0, RESAMPLES, some):
        weights = [
            np.bincount(rng.integers(images, size=images), minlength=images)
            for _ in range(min(some, RESAMPLES - start))
        ]
        found.append(np.array(weights, float) @ counts)
    return np.concatenate(found).reshape(-1, networks, corruptions)


def mean_corruption_error(errors: Sums, reference: Sums) -> Estimate | None:
    """mCE: the mean over corruptions c of sum_s E(s, c) / sum_s E_reference(s, c).

    Hendrycks and Dietterich 2019, arXiv 1903.12261, section 4, as a fraction: 1 where a network
    errs as often as the reference. s are the strengths.

    Args:
        errors: of the network.
        reference: of the reference, for the same images.

    Returns:
        None where the reference makes no error under some corruption.
    """
    if not reference[0].all():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.divide(errors, reference).mean(axis=1)
    return _estimate(ratios)


def mean_accuracy(errors: Sums, answers: int) -> Estimate:
    """Accuracy over all corruptions and strengths.

    Args:
        errors: of the network.
        answers: that it gave: images times corruptions times strengths.
    """
    return _estimate(1 - errors.sum(axis=1) / answers)


def _estimate(values: NDArray[np.float64]) -> Estimate:
    """Of the value of all images, then of the resamples, [R + 1]."""
    if not np.isfinite(values).all():
        return Estimate(float(values[0]), None, None)
    low, high = np.quantile(values[1:], ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(float(values[0]), float(low), float(high))
