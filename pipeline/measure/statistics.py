"""Is a difference more than chance? Pure functions of numbers, without a place to hide.

Exact where a closed form is at hand; the bootstrap is seeded, so that equal records are
judged equally.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 4000
_SEED = 17
_NEARLY_NORMAL = 1000
"""With so many degrees of freedom Student's quantiles differ by less than 0.5%."""
_POWER_POINTS = 101
_RESTLESS = 0.25
"""Where rounds differ, so do runs, by reasons that no round shows. Without it a slow-down of
5% passed now and then on a busy host, with this share never in 60 times (`benchmarks.gate`)."""
_ONE_SIGMA = [100 * NormalDist().cdf(sigma) for sigma in (-1, 1)]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LogRatio:
    """An estimated log ratio of two latencies, its standard error and degrees of freedom.

    `exp(estimate) - 1` is the relative slow-down of the candidate.
    """

    estimate: float
    error: float
    freedom: float

    def lower(self, level: float) -> float:
        """One-sided bound: the true log ratio lies below it with probability `level`."""
        return self.estimate - student_quantile(1 - level, self.freedom) * self.error

    def upper(self, level: float) -> float:
        """One-sided bound: the true log ratio lies above it with probability `level`."""
        return self.estimate + student_quantile(1 - level, self.freedom) * self.error


def paired_log_ratio(candidate: ArrayLike, baseline: ArrayLike) -> LogRatio:
    """Of latencies [R] from the same R >= 2 rounds: the median over rounds of log(c / b).

    Rounds are drawn with replacement, each with both of its latencies: what slows a round
    down slows both. Bounds are Student's with R - 1 degrees of freedom around the median,
    with the bootstrap's standard error (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, ch. 6 and 12). Percentiles of the bootstrap would never leave the range
    of the R values and are too narrow for ten of them (Hesterberg, arXiv 1411.5279). The
    median, as a loaded machine ruins single rounds.
    """
    ratios = np.log(np.asarray(candidate, float)) - np.log(np.asarray(baseline, float))
    return LogRatio(float(np.median(ratios)), _median_error(ratios), len(ratios) - 1)


def unpaired_log_ratio(candidate: ArrayLike, baseline: ArrayLike, between: float) -> LogRatio:
    """Of ratios to one reference from two runs, [R] and [S]: the difference of log medians.

    Rounds of one run share what never changes within it: where memory lies, the clock, the
    neighbours. No number of rounds averages that away, so `between`, the standard deviation
    of such a difference between two runs whose rounds agree, is added in quadrature; so is the
    share `_RESTLESS` of what the rounds of each run differ by. Degrees of freedom are Welch's
    and Satterthwaite's (Biometrika 34, 1947), `between` being known: infinitely many.
    """
    logs = [np.log(np.asarray(values, float)) for values in (candidate, baseline)]
    variances = [
        _median_error(values) ** 2 + (_RESTLESS * _deviation(values)) ** 2 for values in logs
    ]
    total = sum(variances) + between**2
    spread = sum(
        variance**2 / (len(values) - 1) for variance, values in zip(variances, logs, strict=True)
    )
    return LogRatio(
        estimate=float(np.median(logs[0]) - np.median(logs[1])),
        error=math.sqrt(total),
        freedom=total**2 / spread if spread else math.inf,
    )


def _deviation(values: Floats) -> float:
    """Standard deviation of a normal distribution with the 16th and 84th percentile of `values`.

    A few ruined rounds do not move it.
    """
    low, high = np.percentile(values, _ONE_SIGMA)
    return float(high - low) / 2


def _median_error(values: Floats) -> float:
    """Bootstrap standard error of the median of `values` [R]."""
    draws = np.random.default_rng(_SEED).integers(len(values), size=(RESAMPLES, len(values)))
    return float(np.median(values[draws], axis=1).std())


@lru_cache(maxsize=256)
def student_quantile(probability: float, freedom: float) -> float:
    """Student's t quantile for a probability in (0, 1), by halving.

    The distribution function of whole degrees of freedom is a finite sum (Abramowitz and
    Stegun, 26.7.3 and 26.7.4). Others are rounded down, which only widens an interval.
    """
    if freedom < 1:
        raise ValueError("Student's distribution needs a degree of freedom")
    if probability < 0.5:
        return -student_quantile(1 - probability, freedom)
    if freedom > _NEARLY_NORMAL:
        return NormalDist().inv_cdf(probability)
    degrees = int(freedom)
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(degrees)
    for _ in range(60):
        middle = (low + high) / 2
        if (1 + _central(middle, degrees)) / 2 < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _central(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) tan(angle)) of Student's T."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    if degrees == 1:
        return 2 * angle / math.pi
    steps = np.arange(1 + odd, degrees - 2, 2)
    powers = np.cumprod(np.concatenate(([1.0], steps / (steps + 1) * cosine**2)))
    series = sine * float(powers.sum())
    return 2 / math.pi * (angle + cosine * series) if odd else series


def mcnemar(lost: int, won: int) -> float:
    """Two-sided p of McNemar's exact test: do `lost` and `won` differ by more than chance?

    Of two classifiers' answers to the same images only those matter that one alone gets
    right; if both are equally good, `lost` is binomial among them with probability 1/2
    (McNemar, Psychometrika 12, 1947). p = min(1, 2 P(X <= min(lost, won))). Not the mid-p
    version, which finds a little more but does not keep its level everywhere (Fagerland,
    Lydersen and Laake, BMC Med. Res. Methodol. 13:91, 2013).
    """
    flips = lost + won
    tail = binomial(flips, 0.5)[: min(lost, won) + 1]
    return min(1.0, 2 * float(tail.sum()))


def mcnemar_power(images: int, flips: int, loss: float, level: float) -> float:
    """Probability that `mcnemar` at `level` finds a true loss of top-1, for so many flips.

    The share of flipped images is taken from `flips` among `images`, at least `loss`; of an
    image that flips, the probability of being lost is (share + loss) / (2 share). The sum
    over how many do flip is exact up to its grid of 101 points within 6 standard deviations.
    """
    share = max(flips / images, loss)
    if share == 0:
        return 0.0
    lost = min(1.0, (share + loss) / (2 * share))
    spread = 6 * math.sqrt(images * share * (1 - share)) + 1
    first, last = max(0, round(images * share - spread)), round(images * share + spread)
    grid = np.unique(np.linspace(first, min(images, last), _POWER_POINTS).astype(int))
    weights = binomial(images, share)[grid]
    found = [_found(int(count), lost, level) for count in grid]
    return float(np.dot(weights, found) / weights.sum())


def _found(flips: int, lost: float, level: float) -> float:
    """P(the test at `level` finds a loss | so many flips, each lost with this probability)."""
    tails = np.cumsum(binomial(flips, 0.5)[::-1])[::-1]  # P(X >= k)
    enough = np.flatnonzero(2 * tails <= level)
    return float(binomial(flips, lost)[enough[0] :].sum()) if len(enough) else 0.0


def binomial(n: int, p: float) -> NDArray[np.float64]:
    """Probabilities [n + 1] of 0 to `n` successes."""
    k = np.arange(n + 1)
    if p in (0.0, 1.0):
        return np.where(k == n * p, 1.0, 0.0)
    logs = _log_factorials(n)
    result: NDArray[np.float64] = np.exp(
        logs[n] - logs - logs[::-1] + k * math.log(p) + (n - k) * math.log1p(-p)
    )
    return result


@lru_cache(maxsize=256)
def _log_factorials(n: int) -> NDArray[np.float64]:
    """log k! for k from 0 to `n`."""
    logs: NDArray[np.float64] = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    return logs


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values adjusted for being several: reject where one is at most the level.

    Keeps the probability of any false rejection below the level, however the tests depend
    on each other (Holm, Scand. J. Statist. 6, 1979).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return tuple(adjusted)
