"""Measures the latency of one inference, raw pixels to logits, with the lab's own harness.

python bench.py [--threads N] [--rounds N] [--min-runs N] [--min-seconds S] [--batch N]
                [--json FILE]

First the latency, in a process that is pinned to as many CPUs as it has threads. Then images per
second in batches on all cores, in another process; if that fails, the reason is recorded.
"""

from __future__ import annotations

from common import (
    check_files,
    finish,
    golden,
    identity,
    machine,
    one_line,
    open_model,
    write_json,
)

# isort: split

import argparse
import contextlib
import time
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import numpy as np

# evaluated by Python 3.8, too
Attempt = Tuple[Optional[Dict[str, Any]], Optional[str]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the latency of one inference.")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the CPU; 1")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="20 by default")
    parser.add_argument("--min-runs", type=int, default=10, metavar="N", help="per round; 10")
    parser.add_argument(
        "--min-seconds", type=float, default=0.05, metavar="S", help="per round; 0.05"
    )
    parser.add_argument(
        "--batch", type=int, default=32, metavar="N", help="of the throughput; 32, 0: leave it out"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, too")
    arguments = parser.parse_args()
    if min(arguments.threads, arguments.rounds, arguments.min_runs) < 1 or arguments.batch < 0:
        parser.error("--threads, --rounds and --min-runs are at least 1, --batch at least 0")
    check_files()
    result = bench(arguments.threads, arguments.rounds, arguments.min_runs, arguments.min_seconds)
    if arguments.batch:
        rate, reason = _elsewhere(arguments.batch, arguments.min_seconds)
        result.update(throughput=rate, throughput_reason=reason)
    show(result)
    if arguments.json:
        write_json(arguments.json, result)
    return 0


def bench(threads: int, rounds: int, min_runs: int, min_seconds: float) -> dict[str, Any]:
    """Percentiles over all rounds after a warm-up; times in milliseconds."""
    from harness import Harness, overhead, p90_limits, peak_memory, percentiles, pinned

    images = golden()[0]
    here = machine()  # before this process is pinned to some of its cores
    with pinned(threads) as cpus:
        open_model(threads)  # loads the runtime's libraries, too
        start = time.perf_counter_ns()
        run, versions = open_model(threads)
        load_ms = (time.perf_counter_ns() - start) / 1e6
        harness = Harness(run, images)
        first_ms = harness.once() / 1e6
        warm = harness.warm_up()
        times = [harness.round(min_runs, min_seconds) for _ in range(rounds)]
        added = overhead()
        peak = peak_memory()  # before the resampling for the limits of p90 uses memory
    together = np.concatenate(times)
    return {
        "bundle": identity(),
        "machine": here,
        "runtime": versions,
        "threads": threads,
        "cpus": cpus,
        "rounds": rounds,
        "n": len(together),
        "latency_ms": asdict(percentiles(together)),
        "p90_interval_ms": p90_limits(times),
        "p50_by_round_ms": [percentiles(one).p50 for one in times],
        "load_ms": round(load_ms, 6),
        "first_ms": round(first_ms, 6),
        "warm_up": asdict(warm),
        "overhead_ns": added,
        "peak_rss_bytes": peak,
        "throughput": None,
        "throughput_reason": None,
    }


def throughput(batch: int, min_seconds: float) -> dict[str, Any]:
    """Images per second of `batch` images a call, on as many threads as there are cores."""
    from harness import THROUGHPUT_ROUNDS, THROUGHPUT_RUNS, Harness, cores, images_per_second

    threads = cores()
    run, _ = open_model(threads, batch=batch)
    harness = Harness(run, golden()[0], batch)
    harness.warm_up()
    times = [harness.round(THROUGHPUT_RUNS, min_seconds) for _ in range(THROUGHPUT_ROUNDS)]
    rate = images_per_second(times, batch)
    return {"images_per_second": rate, "batch": batch, "threads": threads}


def attempt(batch: int, min_seconds: float, answer: Any) -> None:
    """Send `throughput`, or the reason why there is none, such as too little memory."""
    found: Attempt
    try:
        found = throughput(batch, min_seconds), None
    except Exception as error:  # runtimes raise their own
        found = None, one_line(error)
    answer.send(found)


def _elsewhere(batch: int, min_seconds: float) -> Attempt:
    """The answer of `attempt` in a fresh process, as a runtime may count the cores only once.

    A process and a pipe are all it takes: pools need semaphores, which some containers lack.
    """
    context = get_context("spawn")
    found: Attempt = None, f"the process that measures it died at batch {batch}"
    try:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=attempt, args=(batch, min_seconds, sender))
        child.start()
    except OSError as error:
        return None, f"the process that measures it cannot start: {one_line(error)}"
    sender.close()  # the child has its own: without it, `recv` ends when the child does
    with contextlib.suppress(EOFError):
        found = receiver.recv()
    child.join()
    return found


def show(result: dict[str, Any]) -> None:
    """Print what was measured."""
    from harness import P90_LEVEL

    times, limits = result["latency_ms"], result["p90_interval_ms"]
    print("{student} for {backend}, {precision}; bundle {digest}".format(**result["bundle"]))
    print("{cpu}, kernel {kernel}, python {python}, numpy {numpy}".format(**result["machine"]))
    if "emulator" in result["machine"]:
        print("emulated by {emulator}: these are no device's latencies".format(**result["machine"]))
    runtime = ", ".join(f"{name} {version}" for name, version in result["runtime"].items())
    print(f"{runtime}, {result['threads']} thread(s) {_where(result['cpus'])}")
    print("p50 {p50:.3f} ms, p90 {p90:.3f} ms, p99 {p99:.3f} ms".format(**times))
    between = "without limits, as the rounds are too few"
    if limits:
        between = f"between {limits[0]:.3f} and {limits[1]:.3f} ms at {P90_LEVEL:.0%}"
    print(f"p90 {between}, of {result['n']} inferences")
    share = result["overhead_ns"] / 1e6 / times["p50"]
    print(f"of which the harness itself: {result['overhead_ns']} ns, {share:.2%} of p50")
    warm = result["warm_up"]
    steady = "steady" if warm["steady"] else "and not steady even then"
    print(f"warmed up by {warm['inferences']} inferences, {steady}")
    print(f"load {result['load_ms']:.1f} ms, first inference {result['first_ms']:.3f} ms")
    if result["peak_rss_bytes"]:
        print(f"at most {result['peak_rss_bytes'] / 1e6:.0f} MB of memory")
    if result["throughput"]:
        print(
            "{images_per_second:,.0f} images per second, {batch} a call on {threads} "
            "thread(s)".format(**result["throughput"])
        )
    if result["throughput_reason"]:
        print(f"no throughput: {result['throughput_reason']}")
        print("  what to do: choose a smaller --batch, or 0 to leave it out")


def _where(cpus: list[int] | None) -> str:
    if cpus is None:
        return "on no CPU in particular: this system cannot keep a process to some"
    return f"on CPU {', '.join(map(str, cpus))}"


if __name__ == "__main__":
    finish(main)
