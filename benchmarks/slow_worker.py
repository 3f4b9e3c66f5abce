"""The worker of the stage `benchmark`, with a slow-down of a known share.

    python -m benchmarks.slow_worker BACKEND[+SHARE] MODEL IMAGES.npy THREADS

With `onnxruntime+0.1` every inference is followed by a busy wait of a tenth of the time that it
took: the work and the caches stay the same, and the slow-down varies with the machine as the
inference does. Without a share the worker is unchanged.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.registry import backend
from pipeline.export.evaluate import Runner
from pipeline.latency import worker


def slowed(run: Runner, share: float) -> Runner:
    """A runner whose calls take the fraction `share` longer than those of `run`."""

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
    """The part of a backend that the worker uses."""

    def __init__(self, name: str, share: float) -> None:
        self._backend, self._share = backend(name), share

    def load(self, model: Path, threads: int, batch: int) -> Runner:
        return slowed(self._backend.load(model, threads, batch), self._share)


def main(name: str, model: str, images: str, threads: str) -> None:
    name, _, share = name.partition("+")
    found = partial(Slowed, share=float(share)) if share else backend
    with patch.object(worker, "backend", found):
        worker.main(name, model, images, threads)


if __name__ == "__main__":
    main(*sys.argv[1:])
