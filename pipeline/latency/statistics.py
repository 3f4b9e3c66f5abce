"""Is a difference of latencies more than chance? Pure functions of numbers.

The bootstrap is seeded, so that equal records are judged equally.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, norm
from scipy.stats import t as student

RESAMPLES = 4000
_SEED = 17
_BETWEEN_RUNS = 0.25
"""Where rounds differ, so do whole runs, by this share of it. Without it a slow-down of 5% passed
now and then on a busy host, with it never in 60 times (`benchmarks.gate`)."""
_ONE_SIGMA = [100 * norm.cdf(sigma) for sigma in (-1, 1)]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LogRatio:
    """An estimated log ratio of two latencies.

    `exp(estimate) - 1` is the relative slow-down of the candidate.
    """

    estimate: float
    error: float
    """Its standard error."""
    freedom: float
    """Degrees of freedom of the error; infinite where it is known."""

    def lower(self, level: float) -> float:
        """One-sided bound by Student's t: the truth lies below it with probability `level`."""
        return self.estimate - float(student.ppf(1 - level, self.freedom)) * self.error

    def upper(self, level: float) -> float:
        """One-sided bound by Student's t: the truth lies above it with probability `level`."""
        return self.estimate + float(student.ppf(1 - level, self.freedom)) * self.error


def paired_log_ratio(candidate: ArrayLike, baseline: ArrayLike) -> LogRatio:
    """The median over rounds of log(candidate / baseline), both measured in the same rounds.

    Rounds are drawn with replacement, each with both of its latencies, because what slows a round
    down slows both. Bounds are Student's with R - 1 degrees of freedom around the median, with the
    bootstrap's standard error (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 6
    and 12). Percentiles of the bootstrap would never leave the range of the R values and are too
    narrow for ten of them (Hesterberg, arXiv 1411.5279). The median is used because a loaded
    machine ruins single rounds.

    Args:
        candidate: a latency per round, [R], R >= 2, in any unit.
        baseline: of the same rounds, [R], in the same unit.

    Raises:
        ValueError: for a single round.
    """
    ratios = np.log(np.asarray(candidate, float)) - np.log(np.asarray(baseline, float))
    return LogRatio(float(np.median(ratios)), _median_error(ratios), len(ratios) - 1)


def unpaired_log_ratio(candidate: ArrayLike, baseline: ArrayLike, between: float) -> LogRatio:
    """The difference of log medians of two runs that were measured apart.

    Rounds of one run share what never changes within it: where memory lies, the clock, the
    neighbours. No number of rounds averages that away, so `between` is added in quadrature, and so
    is a quarter of the standard deviation of each run's rounds. Degrees of freedom are Welch's and
    Satterthwaite's (Biometrika 34, 1947), with infinitely many for `between`.

    Args:
        candidate: ratios to the reference, one per round of its run, [R], R >= 2.
        baseline: of the other run, [S], S >= 2.
        between: standard deviation of a log ratio between two runs whose rounds agree.

    Raises:
        ValueError: for a single round.
    """
    logs = [np.log(np.asarray(values, float)) for values in (candidate, baseline)]
    variances = [
        _median_error(values) ** 2 + (_BETWEEN_RUNS * _deviation(values)) ** 2 for values in logs
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
    """Half the distance of the 16th and 84th percentile, which a few ruined rounds do not move."""
    low, high = np.percentile(values, _ONE_SIGMA)
    return float(high - low) / 2


def _median_error(values: Floats) -> float:
    """Bootstrap standard error of the median of `values` [R]."""
    rng = np.random.default_rng(_SEED)
    found = bootstrap((values,), np.median, n_resamples=RESAMPLES, method="percentile", rng=rng)
    return float(found.bootstrap_distribution.std())
