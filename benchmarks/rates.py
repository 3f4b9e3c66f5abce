"""Rates of events with limits for their probability."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

LEVEL = 0.95


def rate(count: int, n: int) -> dict[str, Any]:
    """The rate of `count` events in `n` independent trials, with limits at `LEVEL`."""
    low, high = clopper_pearson(count, n, LEVEL)
    return {"count": count, "n": n, "rate": count / n, "low": low, "high": high}


def clopper_pearson(count: int, n: int, level: float) -> tuple[float, float]:
    """The exact two-sided interval of a probability (Biometrika 26, 1934).

    Its ends are those probabilities for which as many successes or more, and as many or
    fewer, still have a chance of (1 - level) / 2; each end alone thus holds with
    (1 + level) / 2. Of no success in n trials the upper one is 1 - ((1 - level) / 2)^(1 / n).
    """
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else 1 - _at_most(n - count, n, tail)
    high = 1.0 if count == n else _at_most(count, n, tail)
    return low, high


def _at_most(count: int, n: int, tail: float) -> float:
    """The probability p for which P(X <= count) = `tail`, X binomial of n and p; by halving."""
    k = np.arange(count + 1)
    logs = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k])
    low, high = 0.0, 1.0
    for _ in range(50):
        p = (low + high) / 2
        if np.exp(logs + k * math.log(p) + (n - k) * math.log1p(-p)).sum() > tail:
            low = p
        else:
            high = p
    return (low + high) / 2
