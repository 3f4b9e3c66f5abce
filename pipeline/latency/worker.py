"""A process that measures one artifact on request.

    python -m pipeline.latency.worker BACKEND MODEL IMAGES.npy THREADS

Requests on stdin and answers on stdout are JSON, one object per line; the process ends when stdin
does. `{}` or `{"batch"}` opens the model and warms it up, `{"min_runs", "min_seconds"}` times one
round. The process is pinned to as many CPUs as it has threads.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backends.base.registry import backend
from pipeline.latency.harness import Harness, peak_memory, pinned


def main(name: str, model: str, images: str, threads: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it after an interrupt
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints must not mix with the answers
    harness: Harness | None = None
    with pinned(int(threads)) as cpus:  # before a runtime starts its threads
        for line in sys.stdin:
            request = json.loads(line)
            answer: dict[str, Any]
            try:
                if harness is None:
                    load = partial(backend(name).load, Path(model), int(threads))
                    batch = request.get("batch", 1)
                    load(batch)  # also loads the runtime's libraries
                    start = time.perf_counter_ns()
                    run = load(batch)
                    load_ms = (time.perf_counter_ns() - start) / 1e6
                    harness = Harness(run, np.load(images), **request)
                    answer = {"load_ms": load_ms, "first_ms": harness.once() / 1e6, "cpus": cpus}
                    answer["warm_up"] = asdict(harness.warm_up())
                else:
                    times = harness.round(**request)
                    answer = {"nanoseconds": times.tolist(), "peak_rss_bytes": peak_memory()}
            except Exception as error:
                answer = {"error": " ".join(str(error).split()) or type(error).__name__}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
