"""Paired comparison of two classifiers' answers to the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from scipy.stats import binom, binomtest, norm

_POWER_POINTS = 101

Counts = NDArray[np.integer[Any]]


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


def fewest_lost(level: float) -> int:
    """The fewest lost images that `mcnemar` at `level` calls a loss, where none is won."""
    return max(1, math.ceil(1 - math.log2(level)))  # 2 / 2^n is at most the level


def too_few(split: str, images: int, level: float, loss: float, name: str) -> str | None:
    """Why a split is too small to decide whether top-1 fell by more than `loss`.

    Args:
        split: its name.
        images: in it.
        level: of McNemar's test.
        loss: the limit, a fraction.
        name: of the limit, in params.yaml.

    Returns:
        A sentence; None for a split in which a loss of that size can be significant.
    """
    fewest = fewest_lost(level)
    if fewest <= loss * images:
        return None
    found = f"a loss of fewer than {fewest} of them" if fewest <= images else "any loss"
    enough = f"; it takes {math.ceil(fewest / loss):,} images" if loss else ""
    return (
        f"{split} has {images:,} images, too few to decide {name} ({loss:g}): {found} cannot be "
        f"told from chance{enough}"
    )


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


def most_lost(lost: Counts, won: Counts, images: Counts, loss: float) -> tuple[int | None, float]:
    """The class whose recall fell most significantly, and the chance of any class like it.

    Where both classifiers are equally good, an image that flips is lost with probability 1/2. The
    chance is the sum over all classes of the probability of a loss that is as significant, given
    how many of their images flip: Bonferroni's bound for discrete tests (Westfall and Wolfinger,
    The American Statistician 51, 1997). A class with so few flips that no loss would be as
    significant adds nothing, so that a thousand small classes cost little power.

    Args:
        lost: images of each class that only the first classifier gets right, [C].
        won: images of each class that only the second one gets right, [C].
        images: of each class, [C].
        loss: of recall, a fraction; classes that lost less are not chosen.

    Returns:
        The index of the class, and a one-sided p-value in [0, 1] that holds for all classes
        together; None and 1 where no class lost so much.
    """
    flips = lost + won
    tails = binom.sf(lost - 1, flips, 0.5)
    found = np.flatnonzero((lost > won) & (lost - won >= loss * images))
    if not len(found):
        return None, 1.0
    worst = int(found[np.argmin(tails[found])])
    chance = 0.0
    for count, classes in zip(*np.unique(flips, return_counts=True), strict=True):
        possible = binom.sf(np.arange(-1, count), count, 0.5)
        chance += classes * possible[possible <= tails[worst]].max(initial=0.0)
    return worst, min(1.0, float(chance))


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


def sign_flips(differences: NDArray[np.integer[Any]]) -> float:
    """Two-sided p-value of the exact sign-flip test: is the sum of the differences chance?

    Where two classifiers are equally good, each difference is as likely to be negative (Fisher, The
    Design of Experiments, 1935, section 21). The distribution of the sum over all 2^N signs is
    computed by convolution, one binomial for each size of a difference. For differences of 1 it
    is `mcnemar`.

    Args:
        differences: [N], whole numbers, of images, each of which may be asked about many times.

    Returns:
        The p-value in [0, 1]; 1 where all differences are 0.
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    total, chances = 0, np.ones(1)  # of the sums -total to total
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        own = np.zeros(2 * size * count + 1)
        own[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances, total = fftconvolve(chances, own), total + size * count
    if total == 0:
        return 1.0
    extreme = np.abs(np.arange(-total, total + 1)) >= abs(int(differences.sum()))
    return float(np.clip(chances[extreme].sum(), 0, 1))


def paired_limits(lost: int, won: int, images: int, level: float = 0.95) -> tuple[float, float]:
    """Limits of the change of top-1 between two classifiers that saw the same images.

    Wald's interval for paired proportions with half an image added to each of the four cells of
    the table (Agresti and Min, Statist. Med. 24, 2005).

    Args:
        lost: images that only the first classifier gets right.
        won: images that only the second one gets right.
        images: all of them.
        level: the probability that the interval holds the true change.

    Returns:
        Lower and upper limit of (won - lost) / images, fractions in [-1, 1].
    """
    b, c, n = lost + 0.5, won + 0.5, images + 2
    change = (c - b) / n
    spread = math.sqrt(b + c - (c - b) ** 2 / n) / n
    half = float(norm.ppf((1 + level) / 2)) * spread
    return max(-1.0, change - half), min(1.0, change + half)
