"""The harness: times single inferences, with NumPy alone.

Bundles carry a copy of this file: it has to run on Python 3.8 with the NumPy of that time.
"""

from __future__ import annotations

import gc
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

WAKE_RUNS = 5
"""Untimed inferences before a round, because others have used the caches; one of a batch."""

WINDOWS = 4
WINDOW_RUNS = 5
WINDOW_SECONDS = 0.05
"""A warm-up goes in windows of at least so many inferences (or one batch) and so many seconds; the
medians of the last four windows are compared."""

STEADY = 0.05
"""Relative difference up to which these medians count as equal."""

WARM_UP_SECONDS = 3.0
"""The longest warm-up."""

CPU_DEVICES = Path("/sys/devices/system/cpu")

OVERHEAD_RUNS = 20000
"""Of some hundred nanoseconds each."""

THROUGHPUT_ROUNDS = 8
THROUGHPUT_RUNS = 3
"""Batches in a round, at least."""

P90_LEVEL = 0.95
"""Confidence level of the limits of p90."""

FEWEST_ROUNDS = 5
"""Rounds that limits of p90 need: those of three would always be the fastest and the slowest."""

RESAMPLES = 4000
_SEED = 17


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds per inference."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class WarmUp:
    """The result of `warm_up`."""

    inferences: int
    steady: bool
    """Whether the medians of the last windows agree."""


class Harness:
    """Times a model from raw pixels to logits, in nanoseconds of a monotonic clock.

    Args:
        run: takes raw pixels uint8 [batch, H, W, C] and returns logits.
        images: raw pixels uint8 [N, H, W, C], used in turn.
        batch: images per call.
    """

    def __init__(
        self,
        run: Callable[[NDArray[np.uint8]], Any],
        images: NDArray[np.uint8],
        batch: int = 1,
    ) -> None:
        self._run = run
        self._wake, self._window = (WAKE_RUNS, WINDOW_RUNS) if batch == 1 else (1, 1)
        # copied once, so that no time goes into slicing, or page faults of a mapped file
        self._inputs: Sequence[NDArray[np.uint8]] = [
            np.take(images, range(i, i + batch), axis=0, mode="wrap")
            for i in range(0, max(len(images) - batch, 0) + 1, batch)
        ]
        self._next = 0

    def once(self) -> int:
        """Nanoseconds of one call on the next image or batch."""
        image = self._inputs[self._next]
        self._next = (self._next + 1) % len(self._inputs)
        start = time.perf_counter_ns()
        self._run(image)
        return time.perf_counter_ns() - start

    def warm_up(self) -> WarmUp:
        """Call until times are steady; see the function `warm_up`."""
        return warm_up(self.once, self._window)

    def round(self, min_runs: int, min_seconds: float) -> NDArray[np.int64]:
        """Nanoseconds int64 [n] of at least `min_runs` calls that take `min_seconds` together."""
        with no_collection():
            for _ in range(self._wake):
                self.once()
            times: list[int] = []
            total, enough = 0, round(min_seconds * 1e9)
            while len(times) < min_runs or total < enough:
                times.append(self.once())
                total += times[-1]
        return np.array(times, dtype=np.int64)


@contextmanager
def no_collection() -> Iterator[None]:
    """Within this, Python's garbage collector is off: it would disturb random inferences."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def warm_up(once: Callable[[], int], window_runs: int = WINDOW_RUNS) -> WarmUp:
    """Run inferences until the medians of the last windows agree, or a time limit is reached.

    Caches, clocks and lazy allocations settle within the first windows.

    Args:
        once: runs one inference and returns its nanoseconds.
        window_runs: inferences in a window, at least.
    """
    medians: list[float] = []
    inferences, total = 0, 0
    while True:
        window: list[int] = []
        end = total + round(WINDOW_SECONDS * 1e9)
        while len(window) < window_runs or total < end:
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
    """Median throughput of several rounds.

    Args:
        nanoseconds: of each call, by round.
        batch: images per call.
    """
    rates = [batch * len(times) / float(np.sum(times)) * 1e9 for times in nanoseconds]
    return round(float(np.median(rates)), 3)


def percentiles(nanoseconds: NDArray[np.int64]) -> Percentiles:
    """p50, p90 and p99 in milliseconds, linear between neighbours, to six digits."""
    p50, p90, p99 = (np.percentile(nanoseconds, (50, 90, 99)) / 1e6).tolist()
    return Percentiles(round(p50, 6), round(p90, 6), round(p99, 6))


def p90_limits(rounds: Sequence[NDArray[np.int64]]) -> tuple[float, float] | None:
    """Confidence limits of p90 at `P90_LEVEL`, by a seeded bootstrap of whole rounds.

    Whole rounds are drawn with replacement because the inferences of one round share the machine's
    state: thousands of them tell little more than one round does. The limits are percentiles of
    the p90s of what was drawn (Davison and Hinkley, Bootstrap Methods and their Application, 1997,
    ch. 3.8 and 5.3), expanded because few rounds would make them too narrow (Hesterberg, arXiv
    1411.5279): by Student's t with R - 1 degrees of freedom, and a variance R / (R - 1) times as
    large. In simulations where rounds differ half as much as inferences, limits of ten rounds hold
    92 times in 100, and those of twenty 93 times.

    Args:
        rounds: nanoseconds int64 of each of R rounds.

    Returns:
        Milliseconds, to six digits; None for fewer than `FEWEST_ROUNDS` rounds.
    """
    count = len(rounds)
    if count < FEWEST_ROUNDS:
        return None
    drawn = np.random.default_rng(_SEED).multinomial(count, [1 / count] * count, RESAMPLES)
    times = np.concatenate(rounds)
    order = np.argsort(times, kind="stable")
    owners = np.repeat(np.arange(count), [len(one) for one in rounds])[order]
    until = np.cumsum(owners[:, None] == np.arange(count), axis=0)  # [N, R]: of each round
    ranks = 0.9 * (drawn @ until[-1] - 1)
    below, above = (
        times[order][_ranked(drawn, until, whole)] for whole in (np.floor(ranks), np.ceil(ranks))
    )
    p90s = below + (ranks - np.floor(ranks)) * (above - below)
    tail = _expanded((1 - P90_LEVEL) / 2, count) * 100
    low, high = (np.percentile(p90s, (tail, 100 - tail)) / 1e6).tolist()
    return round(low, 6), round(high, 6)


def _expanded(tail: float, count: int) -> float:
    """The tail of the bootstrap's percentiles that gives limits with `tail` for `count` rounds.

    Student's quantile is the expansion of Abramowitz and Stegun, 26.7.5, because SciPy is in no
    bundle. It is within 2% from four degrees of freedom.
    """
    z, freedom = NormalDist().inv_cdf(tail), count - 1
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(student * (count / freedom) ** 0.5)


def _ranked(
    drawn: NDArray[np.int64], until: NDArray[np.int64], ranks: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Indices [B] into the sorted times that have the `ranks` [B] in each resample, by bisection.

    `drawn` [B, R] is how often each resample has each round, `until` [N, R] how many of each
    round's times are among the first N sorted ones. Sorting every resample would take seconds.
    """
    low = np.zeros(len(drawn), np.int64)
    high = np.full(len(drawn), len(until) - 1, np.int64)
    while (low < high).any():
        middle = (low + high) // 2
        enough = (drawn * until[middle]).sum(axis=1) > ranks
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return low


def overhead() -> int:
    """Nanoseconds that the harness itself adds: the median for a `run` that does nothing."""
    harness = Harness(lambda _: None, np.zeros((1, 1, 1, 1), np.uint8))
    return int(np.median(harness.round(OVERHEAD_RUNS, min_seconds=0.0)))


def balanced_order(names: Sequence[str], rounds: int, seed: int) -> list[list[str]]:
    """Seeded orders of `names`, one per round: a shuffle, then its reverse, then the next shuffle.

    In each pair of rounds every name stands before every other exactly once, so a machine that
    gets steadily slower or faster favours none.
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
    """Within this, pin this thread, and those that it starts, to as many CPUs: see `choose_cpus`.

    Yields:
        The numbers of the CPUs; None where the system cannot pin (macOS, Windows).
    """
    usable = _usable()
    if usable is None:
        yield None
        return
    chosen = choose_cpus(usable, threads)
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, usable)


def choose_cpus(usable: Sequence[int], threads: int, devices: Path = CPU_DEVICES) -> list[int]:
    """Choose at most `threads` of the `usable` CPUs.

    One CPU of each core comes first, because those that share a core slow each other down; then
    the fastest kind of core; then the last CPU, because interrupts tend to go to the first ones.

    Args:
        usable: numbers of CPUs.
        threads: so many at most.
        devices: Linux's folder that describes them.

    Returns:
        Their numbers in ascending order.
    """
    core = {cpu: system_text(devices / f"cpu{cpu}/topology/thread_siblings_list") for cpu in usable}

    def rank(cpu: int) -> tuple[int, int, int]:
        siblings = [other for other in usable if core[cpu] and core[other] == core[cpu]]
        later = sum(other > cpu for other in siblings)
        return later, -_capacity(devices / f"cpu{cpu}"), -cpu

    return sorted(sorted(usable, key=rank)[:threads])


def _usable() -> list[int] | None:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else None


def _capacity(device: Path) -> int:
    """The relative speed of a core; 0 where the system does not report it."""
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        text = system_text(device / name)
        if text.isdigit():
            return int(text)
    return 0


def system_text(file: Path) -> str:
    """The stripped text of a file of /proc or /sys, or nothing where this system has none."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def peak_memory() -> int | None:
    """The peak of this process's resident memory in bytes; None where it is not reported.

    `ru_maxrss` is of no use: Linux passes the parent's peak on through fork and exec.
    """
    lines = system_text(Path("/proc/self/status")).splitlines()
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else None
