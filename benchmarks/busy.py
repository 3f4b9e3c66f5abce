"""A neighbour that burns one core in bursts of random length, as long as its parent lives.

python -m benchmarks.busy SEED
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

SHORTEST, LONGEST = 0.02, 2.0
"""Seconds of a burst, and of the rest after it: log-uniform between these."""


@contextmanager
def busy_neighbour(seed: int) -> Iterator[None]:
    """Half of the time, on average, another process computes."""
    neighbour = subprocess.Popen([sys.executable, "-m", "benchmarks.busy", str(seed)])
    try:
        yield
        if neighbour.poll() is not None:
            raise RuntimeError("the neighbour ended before the measurement did")
    finally:
        neighbour.kill()
        neighbour.wait()


def main(seed: str) -> None:
    rng = np.random.default_rng(int(seed))
    parent = os.getppid()
    while os.getppid() == parent:  # a parent that was killed ends nobody
        burst, rest = np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST), size=2))
        until = time.perf_counter() + burst
        while time.perf_counter() < until:
            pass
        time.sleep(rest)


if __name__ == "__main__":
    main(*sys.argv[1:])
