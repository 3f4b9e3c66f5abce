"""A process that keeps one core busy in bursts of random length until its parent ends.

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
"""Of a burst and of the pause after it, in seconds; both are log-uniform between these."""


@contextmanager
def busy_neighbour(seed: int) -> Iterator[None]:
    """Within this, another process computes, on average half of the time."""
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
    while os.getppid() == parent:  # a parent that is killed does not end its children
        burst, rest = np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST), size=2))
        until = time.perf_counter() + burst
        while time.perf_counter() < until:
            pass
        time.sleep(rest)


if __name__ == "__main__":
    main(*sys.argv[1:])
