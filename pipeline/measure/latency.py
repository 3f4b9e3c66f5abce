"""The harness: how long one inference takes, and nothing but NumPy is needed to know it.

Bundles carry a copy of this file: it has to run on Python 3.8 with the NumPy of that time.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

WAKE_RUNS = 5
"""Untimed inferences before a round: others have used the caches meanwhile."""

OVERHEAD_RUNS = 20000
"""Of some hundred nanoseconds each."""


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds per inference."""

    p50: float
    p90: float
    p99: float


class Harness:
    """Times `run` at batch 1, from raw pixels to logits, on `images` in turn.

    `run` takes uint8 [1, H, W, C] and gives logits; `images` is uint8 [N, H, W, C]. Times
    are integers, nanoseconds of a monotonic clock around one call of `run`.
    """

    def __init__(self, run: Callable[[NDArray[np.uint8]], Any], images: NDArray[np.uint8]) -> None:
        self._run = run
        # cut and copied once, so that no time goes into slicing or page faults of a map
        self._inputs: Sequence[NDArray[np.uint8]] = [
            np.array(images[i : i + 1]) for i in range(len(images))
        ]
        self._next = 0

    def once(self) -> int:
        """Nanoseconds of one inference on the next image."""
        image = self._inputs[self._next]
        self._next = (self._next + 1) % len(self._inputs)
        start = time.perf_counter_ns()
        self._run(image)
        return time.perf_counter_ns() - start

    def round(self, min_runs: int, min_seconds: float) -> NDArray[np.int64]:
        """Times int64 [n] of at least `min_runs` inferences and `min_seconds` together.

        Python's garbage collector rests meanwhile, as it would otherwise strike at random.
        """
        collecting = gc.isenabled()
        gc.disable()
        try:
            for _ in range(WAKE_RUNS):
                self.once()
            times: list[int] = []
            total, enough = 0, round(min_seconds * 1e9)
            while len(times) < min_runs or total < enough:
                times.append(self.once())
                total += times[-1]
        finally:
            if collecting:
                gc.enable()
        return np.array(times, dtype=np.int64)


def percentiles(nanoseconds: NDArray[np.int64]) -> Percentiles:
    """p50, p90 and p99 in milliseconds, linear between neighbours, to six digits."""
    p50, p90, p99 = (np.percentile(nanoseconds, (50, 90, 99)) / 1e6).tolist()
    return Percentiles(round(p50, 6), round(p90, 6), round(p99, 6))


def overhead() -> int:
    """Nanoseconds that the harness itself adds to a time: the median of a `run` without work."""
    harness = Harness(lambda _: None, np.zeros((1, 1, 1, 1), np.uint8))
    return int(np.median(harness.round(OVERHEAD_RUNS, min_seconds=0.0)))


def balanced_order(names: Sequence[str], rounds: int, seed: int) -> list[list[str]]:
    """Seeded orders, one per round: a shuffle, then its reverse, then the next shuffle.

    Within each pair of rounds every name stands before every other exactly once, so a
    machine that slows down or speeds up steadily favours none.
    """
    rng = np.random.default_rng(seed)
    orders: list[list[str]] = []
    while len(orders) < rounds:
        shuffled = [names[i] for i in rng.permutation(len(names))]
        orders += [shuffled, shuffled[::-1]]
    return orders[:rounds]
