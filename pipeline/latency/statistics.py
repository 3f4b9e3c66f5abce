"""Is a difference more than chance? Pure functions of numbers, without a place to hide.

Exact where a closed form is at hand; the bootstrap is seeded, so that equal records are
judged equally.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from scipy.stats import t as student

RESAMPLES = 4000
_SEED = 17
_RESTLESS = 0.25
"""Where rounds differ, so do runs, by reasons that no round shows. Without it a slow-down of
5% passed now and then on a busy host, with this share never in 60 times (`benchmarks.gate`)."""
_ONE_SIGMA = [100 * norm.cdf(sigma) for sigma in (-1, 1)]

Floats = NDArray[np.float64]


def _quantile(probability: float, freedom: float) -> float:
    """Student's t; with infinitely many degrees of freedom the normal distribution's."""
    quantile = norm.ppf(probability) if math.isinf(freedom) else student.ppf(probability, freedom)
    return float(quantile)


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
        return self.estimate - _quantile(1 - level, self.freedom) * self.error

    def upper(self, level: float) -> float:
        """One-sided bound: the true log ratio lies above it with probability `level`."""
        return self.estimate + _quantile(1 - level, self.freedom) * self.error


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
