"""The harness: how long one inference takes, and nothing but NumPy is needed to know it.

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
"""Untimed inferences before a round: others have used the caches meanwhile. One batch will do."""

WINDOWS = 4
WINDOW_RUNS = 5
WINDOW_SECONDS = 0.05
"""A warm-up goes in windows of at least so many inferences, or one batch, and seconds; the last
four count."""

STEADY = 0.05
"""Medians of windows that differ by no more are equal: half as much as p90 lies above p50."""

WARM_UP_SECONDS = 3.0
"""A machine that is not steady by then will not be."""

CPU_DEVICES = Path("/sys/devices/system/cpu")

OVERHEAD_RUNS = 20000
"""Of some hundred nanoseconds each."""

THROUGHPUT_ROUNDS = 8
THROUGHPUT_RUNS = 3
"""Batches in a round, at least."""

P90_LEVEL = 0.95
"""Of the limits between which p90 lies."""

FEWEST_ROUNDS = 5
"""For limits of p90: of three rounds the limits would always be the fastest and the slowest."""

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
        self._wake, self._window = (WAKE_RUNS, WINDOW_RUNS) if batch == 1 else (1, 1)
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

    def warm_up(self) -> WarmUp:
        """Call until times are steady; batches take long, so that a window may hold just one."""
        return warm_up(self.once, self._window)

    def round(self, min_runs: int, min_seconds: float) -> NDArray[np.int64]:
        """Times int64 [n] of at least `min_runs` inferences and `min_seconds` together."""
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
    """Python's garbage collector rests: it would strike at random inferences."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def warm_up(once: Callable[[], int], window_runs: int = WINDOW_RUNS) -> WarmUp:
    """Call `once`, which gives its nanoseconds, until the medians of the last windows agree.

    Caches, clocks and lazy allocations settle within the first windows. Medians, as single
    inferences are disturbed for ever; a limit, as some machines never come to rest.
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
    """Median over rounds of the images in a round by its time; of calls with `batch` images."""
    rates = [batch * len(times) / float(np.sum(times)) * 1e9 for times in nanoseconds]
    return round(float(np.median(rates)), 3)


def percentiles(nanoseconds: NDArray[np.int64]) -> Percentiles:
    """p50, p90 and p99 in milliseconds, linear between neighbours, to six digits."""
    p50, p90, p99 = (np.percentile(nanoseconds, (50, 90, 99)) / 1e6).tolist()
    return Percentiles(round(p50, 6), round(p90, 6), round(p99, 6))


def p90_limits(rounds: Sequence[NDArray[np.int64]]) -> tuple[float, float] | None:
    """Limits of p90 at `P90_LEVEL` in milliseconds, to six digits; of nanoseconds by round.

    Rounds are drawn with replacement, whole: inferences of one round share the machine's state,
    so that thousands of them tell little more than one round does. p90 is that of all times
    that were drawn; the limits are percentiles of the seeded bootstrap (Davison and Hinkley,
    Bootstrap Methods and their Application, 1997, ch. 3.8 and 5.3), expanded as few rounds
    would make them too narrow (Hesterberg, arXiv 1411.5279): R rounds count as
    Student's R - 1 degrees of freedom, and their variance R / (R - 1) times. Where rounds
    differ half as much as inferences, limits of ten rounds then hold 92 times in 100, of twenty
    93 times (simulated). None below `FEWEST_ROUNDS`.
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
    """The smaller tail of a bootstrap's percentiles that leaves `tail` out for `count` draws.

    Student's quantile is the expansion of Abramowitz and Stegun, 26.7.5, within 2% from four
    degrees of freedom; `statistics.student_quantile`, which is exact, is in no bundle.
    """
    z, freedom = NormalDist().inv_cdf(tail), count - 1
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(student * (count / freedom) ** 0.5)


def _ranked(
    drawn: NDArray[np.int64], until: NDArray[np.int64], ranks: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Indices [B] of the sorted times that have `ranks` [B], from 0, by halving.

    `drawn` [B, R] tells how often each resample has each round, `until` [N, R] how many of each
    round's times are among the first. Sorting every resample instead takes seconds.
    """
    low = np.zeros(len(drawn), np.int64)
    high = np.full(len(drawn), len(until) - 1, np.int64)
    while (low < high).any():
        middle = (low + high) // 2
        enough = (drawn * until[middle]).sum(axis=1) > ranks
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return low


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
    (macOS, Windows). See `choose_cpus`.
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
    """At most `threads` of the `usable` CPUs, in order, by what `devices` tells of them.

    One CPU of each core first, as those that share a core slow each other down; of the fastest
    kind of core, where there are several; and of these the last, as interrupts tend to go to
    the first.
    """
    core = {cpu: _text(devices / f"cpu{cpu}/topology/thread_siblings_list") for cpu in usable}

    def rank(cpu: int) -> tuple[int, int, int]:
        siblings = [other for other in usable if core[cpu] and core[other] == core[cpu]]
        later = sum(other > cpu for other in siblings)
        return later, -_capacity(devices / f"cpu{cpu}"), -cpu

    return sorted(sorted(usable, key=rank)[:threads])


def _usable() -> list[int] | None:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else None


def _capacity(device: Path) -> int:
    """What a core achieves beside the others of this machine; 0 where the system is silent."""
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        text = _text(device / name)
        if text.isdigit():
            return int(text)
    return 0


def _text(file: Path) -> str:
    """Nothing where this system has no such file."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


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
