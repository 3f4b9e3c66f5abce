"""The worker of `benchmark` with MLPerf LoadGen in the harness's place.

    python -m benchmarks.loadgen_worker BACKEND MODEL IMAGES.npy THREADS

Model, images, threads and process are the same; each request for a round is one SingleStream
test, whose figures are LoadGen's own. They are read from its summary.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlperf_loadgen
import numpy as np
from numpy.typing import NDArray

from pipeline.measure import worker
from pipeline.measure.latency import Harness, no_collection

FIGURES = (
    r"50\.00 percentile latency \(ns\)\s*: (\d+)",
    r"90\.00 percentile latency \(ns\)\s*: (\d+)",
    r"Early stopping 90(?:\.0)?th percentile estimate: (\d+)",
)
NO_WORK_SECONDS = 0.2


class LoadGen(Harness):
    """The harness, with LoadGen's clock and rules in its rounds."""

    def round(self, min_runs: int, min_seconds: float) -> NDArray[np.int64]:
        """Of one test p50, p90 and the early-stopping estimate of p90, nanoseconds int64 [4].

        The last of them is the p50 of a test whose queries are answered without any work:
        what LoadGen's calls through Python take. The garbage collector rests, as in ours.
        """
        with no_collection():
            tested = self._test(self._run, min_runs, min_seconds)
            (own, *_) = self._test(_no_work, min_runs, min(min_seconds, NO_WORK_SECONDS))
        return np.array([*tested, own], np.int64)

    def _test(
        self, run: Callable[[NDArray[np.uint8]], Any], runs: int, seconds: float
    ) -> list[int]:
        before = _threads()
        loosened = False

        def answer(samples: list[mlperf_loadgen.QuerySample]) -> None:
            nonlocal loosened
            if not loosened:
                loosened = True
                _loosen(_threads() - before)
            for sample in samples:
                run(self._inputs[sample.index])
                response = mlperf_loadgen.QuerySampleResponse(sample.id, 0, 0)
                mlperf_loadgen.QuerySamplesComplete([response])

        settings = mlperf_loadgen.TestSettings()
        settings.scenario = mlperf_loadgen.TestScenario.SingleStream
        settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
        settings.min_query_count = runs
        settings.min_duration_ms = round(seconds * 1000)
        # How many queries LoadGen makes beforehand, at over a microsecond each; if it runs out of
        # them, the test is not valid, and the first calls of a test are slow ones.
        hint = min(Harness(run, self._inputs[0]).once() for _ in range(20)) // 2
        settings.single_stream_expected_latency_ns = max(hint, 1000)
        library = mlperf_loadgen.ConstructQSL(
            len(self._inputs), len(self._inputs), _nothing, _nothing
        )
        system = mlperf_loadgen.ConstructSUT(answer, _nothing_to_flush)
        with tempfile.TemporaryDirectory() as folder:
            logs = mlperf_loadgen.LogSettings()
            logs.log_output.outdir = folder
            logs.log_output.copy_summary_to_stdout = False
            logs.enable_trace = False
            mlperf_loadgen.StartTestWithLogSettings(system, library, settings, logs)
            summary = Path(folder, "mlperf_log_summary.txt").read_text()
        mlperf_loadgen.DestroySUT(system)
        mlperf_loadgen.DestroyQSL(library)
        found = [re.search(figure, summary) for figure in FIGURES]
        if "Result is : VALID" not in summary or None in found:
            raise RuntimeError(f"LoadGen's test is not valid: {summary}")
        return [int(match[1]) for match in found if match]


def _threads() -> set[int]:
    """Of this process, by the system's numbers."""
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def _loosen(threads: set[int]) -> None:
    """LoadGen's own threads, which write its logs, may leave the CPU that inferences are kept to.

    There they would take turns with the inferences, which no time in our harness includes.
    """
    for thread in threads:
        os.sched_setaffinity(thread, range(os.cpu_count() or 1))


def _no_work(_image: NDArray[np.uint8]) -> None:
    """An answer at once."""


def _nothing(samples: list[int]) -> None:
    """All images are in memory already."""


def _nothing_to_flush() -> None:
    """Queries are answered when they come."""


if __name__ == "__main__":
    worker.Harness = LoadGen
    worker.main(*sys.argv[1:])
