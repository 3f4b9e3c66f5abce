"""The harness: how long one inference takes, and nothing but NumPy is needed to know it.

Bundles carry a copy of this file: it has to run on Python 3.8 with the NumPy of that time.
"""

from __future__ import annotations

import gc
import math
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

WAKE_RUNS = 5
"""Untimed inferences before a round: others have used the caches meanwhile."""

WINDOWS = 4
WINDOW_RUNS = 5
WINDOW_SECONDS = 0.05
"""A warm-up goes in windows of at least so many inferences and seconds; the last four count."""

STEADY = 0.05
"""Medians of windows that differ by no more are equal: half as much as p90 lies above p50."""

WARM_UP_SECONDS = 3.0
"""A machine that is not steady by then will not be."""

OVERHEAD_RUNS = 20000
"""Of some hundred nanoseconds each."""

P90_LEVEL = 0.95
"""Of the limits between which p90 lies."""


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds per inference."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class WarmUp:
    """How many inferences it took, and whether their times had become steady by then."""

    inferences: int
    steady: bool


class Harness:
    """Times `run` from raw pixels to logits on `images` in turn, `batch` of them in a call.

    `run` takes uint8 [batch, H, W, C] and gives logits; `images` is uint8 [N, H, W, C]. Times
    are integers, nanoseconds of a monotonic clock around one call of `run`.
    """

    def __init__(
        self,
        run: Callable[[NDArray[np.uint8]], Any],
        images: NDArray[np.uint8],
        batch: int = 1,
    ) -> None:
        self._run = run
        # cut and copied once, so that no time goes into slicing or page faults of a map
        self._inputs: Sequence[NDArray[np.uint8]] = [
            np.take(images, range(i, i + batch), axis=0, mode="wrap")
            for i in range(0, max(len(images) - batch, 0) + 1, batch)
        ]
        self._next = 0

    def once(self) -> int:
        """Nanoseconds of one call on the next image, or the next batch of them."""
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


def warm_up(once: Callable[[], int]) -> WarmUp:
    """Call `once`, which gives its nanoseconds, until the medians of the last windows agree.

    Caches, clocks and lazy allocations settle within the first windows. Medians, as single
    inferences are disturbed for ever; a limit, as some machines never come to rest.
    """
    medians: list[float] = []
    inferences, total = 0, 0
    while True:
        window: list[int] = []
        end = total + round(WINDOW_SECONDS * 1e9)
        while len(window) < WINDOW_RUNS or total < end:
            window.append(once())
            total += window[-1]
        inferences += len(window)
        medians.append(float(np.median(window)))
        last = medians[-WINDOWS:]
        if len(last) == WINDOWS:
            steady = max(last) <= (1 + STEADY) * min(last)
            if steady or total >= WARM_UP_SECONDS * 1e9:
                return WarmUp(inferences, steady)


def images_per_second(nanoseconds: Sequence[NDArray[np.int64]], batch: int) -> float:
    """Median over rounds of the images in a round by its time; of calls with `batch` images."""
    rates = [batch * len(times) / float(np.sum(times)) * 1e9 for times in nanoseconds]
    return round(float(np.median(rates)), 3)


def percentiles(nanoseconds: NDArray[np.int64]) -> Percentiles:
    """p50, p90 and p99 in milliseconds, linear between neighbours, to six digits."""
    p50, p90, p99 = (np.percentile(nanoseconds, (50, 90, 99)) / 1e6).tolist()
    return Percentiles(round(p50, 6), round(p90, 6), round(p99, 6))


def p90_limits(nanoseconds: NDArray[np.int64]) -> tuple[float, float] | None:
    """Limits of p90 at `P90_LEVEL` in milliseconds, to six digits; None for too few times.

    They hold for inferences that are independent of each other.
    """
    limits = quantile_interval(nanoseconds, 0.9, P90_LEVEL)
    return limits and (round(limits[0] / 1e6, 6), round(limits[1] / 1e6, 6))


def quantile_interval(values: ArrayLike, share: float, level: float) -> tuple[float, float] | None:
    """Limits of the quantile at `share` of what independent `values` [N] are drawn from.

    Two of the values themselves, whatever the distribution: how many lie below the quantile is
    binomial, so ranks follow that leave out at most (1 - level) / 2 on either side (David and
    Nagaraja, Order Statistics, 2003, ch. 7.1). None where there are too few values for that,
    which for p90 and 95% is below 36.
    """
    ordered = np.sort(np.asarray(values, float))
    tail = (1 - level) / 2
    below = np.cumsum(binomial(len(ordered), share))  # P(at most k of them lie below)
    low = int(np.count_nonzero(below <= tail)) - 1
    high = int(np.searchsorted(below, 1 - tail))
    if low < 0 or high >= len(ordered):
        return None
    return float(ordered[low]), float(ordered[high])


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


def cores() -> int:
    """How many CPUs this process may use."""
    usable = _usable()
    return (os.cpu_count() or 1) if usable is None else len(usable)


@contextmanager
def pinned(threads: int) -> Iterator[list[int] | None]:
    """Keep this thread, and those that it starts, to `threads` of the CPUs that it may use.

    Yields their numbers; None, and nothing is pinned, where the system has no call for it
    (macOS, Windows). The fastest kind of core, where there are several, and of these the
    last, as interrupts tend to go to the first.
    """
    usable = _usable()
    if usable is None:
        yield None
        return
    chosen = sorted(sorted(usable, key=lambda cpu: (_capacity(cpu), cpu))[-threads:])
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, usable)


def _usable() -> list[int] | None:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else None


def _capacity(cpu: int) -> int:
    """What a core achieves beside the others of this machine; 0 where the system is silent."""
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        try:
            return int(Path(f"/sys/devices/system/cpu/cpu{cpu}/{name}").read_text())
        except (OSError, ValueError):
            continue
    return 0


def peak_memory() -> int | None:
    """Most memory that this process ever had resident, in bytes; None if the system is silent.

    Not `ru_maxrss`: Linux hands the parent's peak down through fork and exec.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else None
