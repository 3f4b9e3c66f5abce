"""The worker of `benchmark`, which can make a runtime slower by a known share.

    python -m benchmarks.slow_worker BACKEND[+SHARE] MODEL IMAGES.npy THREADS

With `onnxruntime+0.1` every inference is followed by a busy wait of a tenth of the time that
it has just taken: the same work on the same caches, and a slow-down that varies with the
machine as the inference itself does. Without a share it is the worker, unchanged.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.registry import backend
from pipeline.export.evaluate import Runner
from pipeline.latency import worker


def slowed(run: Runner, share: float) -> Runner:
    """`run`, longer by `share` of what each call takes by itself."""

    def slow(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        start = time.perf_counter_ns()
        logits = run(images)
        end = time.perf_counter_ns()
        until = end + round(share * (end - start))
        while time.perf_counter_ns() < until:
            pass
        return logits

    return slow


class Slowed:
    """What the worker asks of a backend."""

    def __init__(self, name: str, share: float) -> None:
        self._backend, self._share = backend(name), share

    def load(self, model: Path, threads: int) -> Runner:
        return slowed(self._backend.load(model, threads), self._share)


def main(name: str, model: str, images: str, threads: str) -> None:
    name, _, share = name.partition("+")
    if share:
        worker.backend = lambda name: Slowed(name, float(share))
    worker.main(name, model, images, threads)


if __name__ == "__main__":
    main(*sys.argv[1:])
