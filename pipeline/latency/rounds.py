"""Interleaved rounds: in each, every target is measured once, in an order drawn for the round.

Each target has its own process, so that memory and thread pools do not mix. Only one computes at a
time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError
from pipeline.core.progress import track
from pipeline.latency import harness
from pipeline.latency.conditions import Watch, select, unspoiled
from pipeline.latency.params import Benchmark
from pipeline.latency.records import (
    REFERENCE,
    BenchmarkRow,
    Conditions,
    Latency,
    Throughput,
    WarmUp,
)
from pipeline.latency.statistics import paired_log_ratio
from pipeline.latency.workers import Target, Worker, WorkerFailedError

RATIO_LEVEL = 0.95

Rounds = list[NDArray[np.int64]]
Answers = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """The result of `measure`."""

    rows: dict[str, BenchmarkRow]
    """By name of the target."""
    raw: dict[str, Rounds]
    """Nanoseconds int64 [n] of each kept round, by name of those that did not fail."""
    conditions: tuple[Conditions, ...]
    """Of all rounds, kept or not."""


def measure(targets: Sequence[Target], settings: Benchmark, seed: int) -> Measured:
    """Latencies of all targets, one of which is the reference.

    Spoiled rounds are measured again, whole and in the same order, at most `extra_rounds` times.

    Args:
        targets: with distinct names.
        settings: rounds, threads and how long to measure.
        seed: of the orders.

    Raises:
        PipelineError: where the reference fails.
    """
    orders = harness.balanced_order([target.name for target in targets], settings.rounds, seed)
    size = {"min_runs": settings.min_runs, "min_seconds": settings.min_seconds}
    visits: list[Answers] = []
    seen: list[Conditions] = []
    with ExitStack() as stack:
        fleet = _Fleet(stack, targets, settings.threads)
        watch = Watch(fleet.cpus)
        which = turns(seen, settings.rounds, settings.extra_rounds)
        for turn in track(which, "benchmark", settings.rounds, "rounds"):
            watch.start()
            visits.append(fleet.visit(orders[turn], size, watch.sample))
            seen.append(watch.stop())
            if REFERENCE in fleet.failures:
                break
    if REFERENCE in fleet.failures:
        raise PipelineError(
            f"the reference model fails: {fleet.failures[REFERENCE]}",
            fix="look at `python -m pipeline doctor`",
        )
    conditions = select(seen, settings.rounds)
    kept = [visit for visit, one in zip(visits, conditions, strict=True) if one.kept]
    raw = {
        name: [np.array(visit[name]["nanoseconds"], np.int64) for visit in kept]
        for name in fleet.working
    }
    rows = {
        name: BenchmarkRow(status="failed", reason=reason, threads=settings.threads)
        for name, reason in fleet.failures.items()
    }
    for name, rounds in raw.items():
        peak = visits[-1][name]["peak_rss_bytes"]
        rows[name] = _row(rounds, raw[REFERENCE], fleet.opened[name], peak, settings.threads)
    return Measured(rows, raw, conditions)


def turns(seen: Sequence[Conditions], rounds: int, extra: int) -> Iterator[int]:
    """The number of the order that each round takes, until `rounds` rounds are not spoiled.

    After every order was used once, those without an unspoiled round are used again, so that what
    is kept stays balanced.

    Args:
        seen: the caller adds each round's conditions before it asks for the next number.
        rounds: so many orders.
        extra: so many more rounds at most.
    """
    taken: list[int] = []
    while len(taken) < rounds + extra and unspoiled(seen) < rounds:
        turn = len(taken)
        if turn >= rounds:
            marked = zip(taken, select(seen, rounds), strict=True)
            done = {earlier for earlier, one in marked if not one.spoiled}
            missing = [earlier for earlier in range(rounds) if earlier not in done]
            turn = min(missing, key=taken.count)
        taken.append(turn)
        yield turn


def throughput(
    targets: Sequence[Target], settings: Benchmark, seed: int
) -> dict[str, Throughput | str]:
    """Throughput in batches on all cores that this process may use, or why there is none.

    Args:
        targets: with distinct names.
        settings: the batch, and how long to measure.
        seed: of the orders.
    """
    threads = harness.cores()
    names = [target.name for target in targets]
    orders = harness.balanced_order(names, harness.THROUGHPUT_ROUNDS, seed)
    size = {"min_runs": harness.THROUGHPUT_RUNS, "min_seconds": settings.min_seconds}
    with ExitStack() as stack:
        fleet = _Fleet(stack, targets, threads, batch=settings.batch)
        visits = [
            fleet.visit(order, size) for order in track(orders, "throughput", len(orders), "rounds")
        ]
    answers: dict[str, Throughput | str] = dict(fleet.failures)
    for name in fleet.working:
        rounds = [np.array(visit[name]["nanoseconds"], np.int64) for visit in visits]
        rate = harness.images_per_second(rounds, settings.batch)
        answers[name] = Throughput(images_per_second=rate, batch=settings.batch, threads=threads)
    return answers


def ratio(rounds: Rounds, reference: Rounds) -> tuple[float, tuple[float, float]]:
    """Median over the rounds of p50 / p50 of the reference, and its 95% limits.

    Args:
        rounds: nanoseconds of each round.
        reference: of the reference in the same rounds.
    """
    own, others = ([float(np.median(times)) for times in side] for side in (rounds, reference))
    found, tail = paired_log_ratio(own, others), (1 - RATIO_LEVEL) / 2
    logs = (found.estimate, found.lower(tail), found.upper(tail))
    estimate, low, high = (round(float(np.exp(log)), 6) for log in logs)
    return estimate, (low, high)


def _row(
    rounds: Rounds, reference: Rounds, opened: dict[str, Any], peak: int | None, threads: int
) -> BenchmarkRow:
    together = np.concatenate(rounds)
    estimate, limits = ratio(rounds, reference)
    return BenchmarkRow(
        status="measured",
        latency_ms=Latency(**asdict(harness.percentiles(together))),
        p90_interval_ms=harness.p90_limits(rounds),
        ratio_to_reference=estimate,
        ratio_interval=limits,
        first_ms=round(opened["first_ms"], 6),
        load_ms=round(opened["load_ms"], 6),
        warm_up=WarmUp(**opened["warm_up"]),
        peak_rss_bytes=peak,
        threads=threads,
        cpus=opened["cpus"],
        n=len(together),
        rounds_ms=tuple(round(float(np.median(times)) / 1e6, 6) for times in rounds),
    )


class _Fleet:
    """A worker for each target; those that fail are not asked again."""

    def __init__(
        self, stack: ExitStack, targets: Sequence[Target], threads: int, **opening: int
    ) -> None:
        self.opened: Answers = {}
        self.failures: dict[str, str] = {}
        self._workers: dict[str, Worker] = {}
        for target in track(targets, "opening", len(targets), "models"):
            # one after the other, because loading is timed
            self._workers[target.name] = stack.enter_context(Worker(target, threads))
            self.opened |= self.visit([target.name], opening)

    @property
    def working(self) -> list[str]:
        return [name for name in self._workers if name not in self.failures]

    @property
    def cpus(self) -> set[int] | None:
        """The CPUs on which inferences run; None where they are not pinned."""
        pinned = [answer["cpus"] for answer in self.opened.values()]
        return None if not pinned or None in pinned else set().union(*pinned)

    def visit(
        self, order: Sequence[str], request: dict[str, Any], after: Callable[[], None] | None = None
    ) -> Answers:
        """The answers to one request of all that have not failed, in this order."""
        answers = {}
        for name in order:
            if name in self.failures:
                continue
            try:
                answers[name] = self._workers[name].ask(request)
            except WorkerFailedError as error:
                self.failures[name] = str(error)
            if after:
                after()
        return answers
