"""The worker of `benchmark` with MLPerf LoadGen in the harness's place.

    python -m benchmarks.loadgen_worker BACKEND MODEL IMAGES.npy THREADS

Model, images, threads and process are the same; each request for a round is one SingleStream
test, whose figures are LoadGen's own. They are read from its summary.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import mlperf_loadgen
import numpy as np
from numpy.typing import NDArray

from pipeline.measure import worker
from pipeline.measure.latency import Harness

FIGURES = (
    r"50\.00 percentile latency \(ns\)\s*: (\d+)",
    r"90\.00 percentile latency \(ns\)\s*: (\d+)",
    r"Early stopping 90(?:\.0)?th percentile estimate: (\d+)",
)


class LoadGen(Harness):
    """The harness, with LoadGen's clock and rules in its rounds."""

    def round(self, min_runs: int, min_seconds: float) -> NDArray[np.int64]:
        """p50, p90 and the early-stopping estimate of p90 of one test, nanoseconds int64 [3]."""
        hint = sorted(self.once() for _ in range(20))[10]
        settings = mlperf_loadgen.TestSettings()
        settings.scenario = mlperf_loadgen.TestScenario.SingleStream
        settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
        settings.min_query_count = min_runs
        settings.min_duration_ms = round(min_seconds * 1000)
        settings.single_stream_expected_latency_ns = hint
        library = mlperf_loadgen.ConstructQSL(
            len(self._inputs), len(self._inputs), _nothing, _nothing
        )
        system = mlperf_loadgen.ConstructSUT(self._answer, _nothing_to_flush)
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
        return np.array([int(match[1]) for match in found if match], np.int64)

    def _answer(self, samples: list[mlperf_loadgen.QuerySample]) -> None:
        for sample in samples:
            self._run(self._inputs[sample.index])
            response = mlperf_loadgen.QuerySampleResponse(sample.id, 0, 0)
            mlperf_loadgen.QuerySamplesComplete([response])


def _nothing(samples: list[int]) -> None:
    """All images are in memory already."""


def _nothing_to_flush() -> None:
    """Queries are answered when they come."""


if __name__ == "__main__":
    worker.Harness = LoadGen
    worker.main(*sys.argv[1:])
