"""One artifact in a process of its own, measured on request.

    python -m pipeline.measure.worker BACKEND MODEL IMAGES.npy THREADS

Requests and answers are JSON, one object a line, on stdin and stdout; the process ends
when stdin does. `{}` opens the model, `{"min_runs", "min_seconds"}` times one round.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backends.registry import backend
from pipeline.measure.latency import Harness


def main(name: str, model: str, images: str, threads: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides how an interrupt ends
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints must not end up between the answers
    harness: Harness | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            if harness is None:
                runtime = backend(name)
                runtime.load(Path(model), int(threads))  # loads the runtime's libraries, too
                start = time.perf_counter_ns()
                run = runtime.load(Path(model), int(threads))
                load_ms = (time.perf_counter_ns() - start) / 1e6
                harness = Harness(run, np.load(images))
                answer = {"load_ms": load_ms, "first_ms": harness.once() / 1e6}
            else:
                times = harness.round(**request)
                answer = {"nanoseconds": times.tolist(), "peak_rss_bytes": _peak_rss()}
        except Exception as error:
            answer = {"error": " ".join(str(error).split()) or type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)


def _peak_rss() -> int:
    """Most memory that this process ever had resident, in bytes.

    Not `ru_maxrss`: Linux hands the parent's peak down through fork and exec.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not tell a process's peak memory")


if __name__ == "__main__":
    main(*sys.argv[1:])
