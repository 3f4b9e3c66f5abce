"""The worker of the stage `benchmark`, whose rounds can be timed by other clocks.

    python -m benchmarks.loadgen_worker BACKEND MODEL IMAGES.npy THREADS

A request for a round may name a `clock`: LoadGen's, with SingleStream tests whose figures are read
from its summary, or the runtime's, which only OpenVINO has. All clocks share process, model, images
and threads: two processes that do the same differ by some percent for as long as they live, as
their memory is laid out differently.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlperf_loadgen
import numpy as np
from numpy.typing import NDArray

from pipeline.latency import worker
from pipeline.latency.harness import Harness, WarmUp, no_collection

FIGURES = (
    r"50\.00 percentile latency \(ns\)\s*: (\d+)",
    r"90\.00 percentile latency \(ns\)\s*: (\d+)",
    r"Early stopping 90(?:\.0)?th percentile estimate: (\d+)",
)
SHORT_TEST_SECONDS = 0.3
"""Of a test for a median or for warming up."""
REQUESTS: list[Any] = []
"""OpenVINO's inference requests, which report their own latency."""


class Clocks(Harness):
    """The harness, or another clock in its place."""

    def warm_up(self) -> WarmUp:
        """Warm up the harness and LoadGen, whose first test is several percent slower."""
        done = super().warm_up()
        self._test(self._run, 1, SHORT_TEST_SECONDS)
        return done

    def round(
        self, min_runs: int, min_seconds: float, clock: str | None = None
    ) -> NDArray[np.int64]:
        """Times of one round in nanoseconds, int64.

        Returns:
            By our clock: the times [n]. By LoadGen's: p50, p90, its early-stopping estimate of
            p90, and the time of its calls, the median of one more test minus the median of ours
            around the same inferences. By the runtime's: the median of ours minus the runtime's
            around the same inferences, which is Python's share.
        """
        if clock is None:
            return super().round(min_runs, min_seconds)
        clocks = {"LoadGen": self._loadgen, "runtime": self._runtime}
        with no_collection():
            return np.array(clocks[clock](min_runs, min_seconds), np.int64)

    def _loadgen(self, runs: int, seconds: float) -> list[float]:
        inside: list[int] = []

        def timed(image: NDArray[np.uint8]) -> None:
            start = time.perf_counter_ns()
            self._run(image)
            inside.append(time.perf_counter_ns() - start)

        tested = self._test(self._run, runs, seconds)
        (around, *_) = self._test(timed, runs, min(seconds, SHORT_TEST_SECONDS))
        return [*tested, around - float(np.median(inside))]

    def _runtime(self, runs: int, _seconds: float) -> list[float]:
        request = REQUESTS[-1]
        times = [(self.once(), request.latency * 1e6) for _ in range(runs)]
        ours, inside = np.median(times, axis=0)
        return [ours - inside]

    def _test(
        self, run: Callable[[NDArray[np.uint8]], Any], runs: int, seconds: float
    ) -> list[int]:
        before = _threads()
        loosened = False
        # made once: every call counts, as LoadGen's clock includes it
        inputs, complete = self._inputs, mlperf_loadgen.QuerySamplesComplete
        response = mlperf_loadgen.QuerySampleResponse(0, 0, 0)
        responses = [response]

        def answer(samples: list[mlperf_loadgen.QuerySample]) -> None:
            nonlocal loosened
            if not loosened:
                loosened = True
                _loosen(_threads() - before)
            (sample,) = samples  # SingleStream
            run(inputs[sample.index])
            response.id = sample.id
            complete(responses)

        settings = mlperf_loadgen.TestSettings()
        settings.scenario = mlperf_loadgen.TestScenario.SingleStream
        settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
        settings.min_query_count = runs
        settings.min_duration_ms = round(seconds * 1000)
        # It decides how many queries LoadGen prepares, at over a microsecond each. If they run
        # out, the test is invalid; the first calls of a test are slow ones.
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
    """Ids of this process's threads."""
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def _loosen(threads: set[int]) -> None:
    """Let LoadGen's own threads, which write its logs, leave the CPU that inferences run on.

    There they would compete with the inferences, which nothing does in our harness.
    """
    for thread in threads:
        os.sched_setaffinity(thread, range(os.cpu_count() or 1))


def _keep_requests() -> None:
    import openvino

    create = openvino.CompiledModel.create_infer_request

    def kept(compiled: openvino.CompiledModel) -> openvino.InferRequest:
        REQUESTS.append(create(compiled))
        return REQUESTS[-1]

    openvino.CompiledModel.create_infer_request = kept


def _nothing(samples: list[int]) -> None:
    """For LoadGen's callbacks: all images are in memory."""


def _nothing_to_flush() -> None:
    """For LoadGen's callback: every query is answered at once."""


if __name__ == "__main__":
    if sys.argv[1] == "openvino":
        _keep_requests()
    with patch.object(worker, "Harness", Clocks):
        worker.main(*sys.argv[1:])
