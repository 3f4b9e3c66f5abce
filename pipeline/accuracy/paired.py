"""Paired comparison of two classifiers' answers to the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import binom, binomtest

_POWER_POINTS = 101


def mcnemar(lost: int, won: int) -> float:
    """Two-sided p-value of McNemar's exact test: do `lost` and `won` differ beyond chance?

    Only images that one classifier alone gets right matter. If both are equally good, `lost` is
    binomial among them with probability 1/2 (McNemar, Psychometrika 12, 1947). The mid-p version
    finds a little more but does not keep its level everywhere (Fagerland, Lydersen and Laake, BMC
    Med. Res. Methodol. 13:91, 2013).

    Args:
        lost: images that only the first classifier gets right.
        won: images that only the second one gets right.

    Returns:
        The p-value in [0, 1]; 1 without any such image.
    """
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def mcnemar_power(images: int, flips: int, loss: float, level: float) -> float:
    """Probability that `mcnemar` at `level` finds a true loss of top-1.

    The share of flipped images is taken from `flips` among `images`, at least `loss`. An image
    that flips is lost with probability (share + loss) / (2 share). The sum over how many do flip
    is exact up to a grid of 101 points within 6 standard deviations.

    Args:
        images: in the split.
        flips: images that only one of two classifiers gets right.
        loss: the true loss of top-1, a fraction.
        level: of the test.

    Returns:
        The power in [0, 1].
    """
    share = max(flips / images, loss)
    if share == 0:
        return 0.0
    lost = min(1.0, (share + loss) / (2 * share))
    spread = 6 * math.sqrt(images * share * (1 - share)) + 1
    first, last = max(0, round(images * share - spread)), round(images * share + spread)
    grid = np.unique(np.linspace(first, min(images, last), _POWER_POINTS).astype(int))
    weights = binom.pmf(grid, images, share)
    found = [_found(int(count), lost, level) for count in grid]
    return float(np.dot(weights, found) / weights.sum())


def _found(flips: int, lost: float, level: float) -> float:
    """Probability of a loss that is significant at `level`, where each flip is `lost` so likely."""
    tails = binom.sf(np.arange(-1, flips), flips, 0.5)  # of at least 0, 1, ... losses by chance
    enough = np.flatnonzero(2 * tails <= level)
    return float(binom.sf(enough[0] - 1, flips, lost)) if len(enough) else 0.0


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values adjusted for several tests: reject where an adjusted one is at most the level.

    The probability of any false rejection stays below the level, however the tests depend on each
    other (Holm, Scand. J. Statist. 6, 1979).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return tuple(adjusted)
