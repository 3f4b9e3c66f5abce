"""Latency of one inference, raw pixels to logits, with the harness that the lab measured with.

python bench.py [--threads N] [--rounds N] [--min-runs N] [--min-seconds S] [--json FILE]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from common import check_files, finish, golden, identity, machine, open_model, write_json
from latency import Harness, percentiles


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the latency of one inference.")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the CPU; 1")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="10 by default")
    parser.add_argument("--min-runs", type=int, default=20, metavar="N", help="per round; 20")
    parser.add_argument(
        "--min-seconds", type=float, default=0.1, metavar="S", help="per round; 0.1"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, too")
    arguments = parser.parse_args()
    if min(arguments.threads, arguments.rounds, arguments.min_runs) < 1:
        parser.error("--threads, --rounds and --min-runs are at least 1")
    check_files()
    result = bench(arguments.threads, arguments.rounds, arguments.min_runs, arguments.min_seconds)
    if arguments.json:
        write_json(arguments.json, result)
    print("{student} for {backend}, {precision}; bundle {digest}".format(**result["bundle"]))
    print("{cpu}, kernel {kernel}, python {python}, numpy {numpy}".format(**result["machine"]))
    runtime = ", ".join(f"{name} {version}" for name, version in result["runtime"].items())
    print(f"{runtime}, {result['threads']} thread(s), {result['n']} inferences")
    print("p50 {p50:.3f} ms, p90 {p90:.3f} ms, p99 {p99:.3f} ms".format(**result["latency_ms"]))
    print(f"load {result['load_ms']:.1f} ms, first inference {result['first_ms']:.3f} ms")
    return 0


def bench(threads: int, rounds: int, min_runs: int, min_seconds: float) -> dict[str, Any]:
    """Percentiles over all rounds, after one that does not count; times in milliseconds."""
    images = golden()[0]
    open_model(threads)  # loads the runtime's libraries, too
    start = time.perf_counter_ns()
    run, versions = open_model(threads)
    load_ms = (time.perf_counter_ns() - start) / 1e6
    harness = Harness(run, images)
    first_ms = harness.once() / 1e6
    harness.round(min_runs, min_seconds)
    times = [harness.round(min_runs, min_seconds) for _ in range(rounds)]
    together = np.concatenate(times)
    return {
        "bundle": identity(),
        "machine": machine(),
        "runtime": versions,
        "threads": threads,
        "rounds": rounds,
        "n": len(together),
        "latency_ms": asdict(percentiles(together)),
        "p50_by_round_ms": [percentiles(one).p50 for one in times],
        "load_ms": round(load_ms, 6),
        "first_ms": round(first_ms, 6),
    }


if __name__ == "__main__":
    finish(main)
