"""What a search decides, as pure functions: who trains on, and whether the target is met."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import norm

LEVEL = 0.95
"""Of the one-sided lower bound that has to be above the target."""


def promoted(own: float, others: Sequence[float], keep: float) -> bool:
    """Whether a candidate trains for longer: asynchronous successive halving (arXiv 1810.05934).

    Args:
        own: its accuracy after a rung.
        others: of all other candidates that have finished this rung so far.
        keep: of so many candidates one goes on, the better ones; the first one always does.
    """
    places = math.ceil((len(others) + 1) / keep)
    return sum(other > own for other in others) < places


@dataclass(frozen=True)
class Bound:
    """An accuracy over seeds."""

    mean: float
    lower: float
    """One-sided lower bound at `LEVEL`."""
    seeds: int


def lower_bound(values: Sequence[float], images: int) -> Bound:
    """The mean accuracy of a recipe, and what it is at least.

    Two errors add up: of the mean over seeds, and of the images, which all seeds share. For one
    seed the first is not known, and only the second counts.

    Args:
        values: accuracies in [0, 1], one per seed.
        images: that each was measured on.
    """
    mean = statistics.mean(values)
    of_seeds = statistics.variance(values) / len(values) if len(values) > 1 else 0.0
    error = math.sqrt(mean * (1 - mean) / images + of_seeds)
    return Bound(mean, mean - float(norm.ppf(LEVEL)) * error, len(values))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of those (cost, accuracy) that no other beats in one and equals in the other."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1]:
            kept.append(i)
    return kept
