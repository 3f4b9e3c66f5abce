"""Latency of every artifact, in interleaved rounds beside the frozen reference."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.registry import backend
from pipeline.contracts import (
    BENCHMARK,
    Artifact,
    BenchmarkRecord,
    BenchmarkRow,
    Latency,
    artifact_folder,
    load_split,
)
from pipeline.errors import PipelineError
from pipeline.files import write_whole
from pipeline.measure import worker
from pipeline.measure.fingerprint import require_fingerprint
from pipeline.measure.latency import balanced_order, overhead, percentiles
from pipeline.measure.reference import DIGEST, reference_images, reference_model
from pipeline.measure.statistics import quantile_interval
from pipeline.params import Benchmark, Params
from pipeline.progress import track

LATENCIES = Path("models/benchmark/latencies.npz")
"""Per artifact and `reference`: `KEY/ns`, int64 [n], and `KEY/round`, int32 [n]."""

REFERENCE = "reference"
TEST_IMAGES = 64
P90_LEVEL = 0.95
ANSWER_SECONDS = 300
"""A worker that is silent for so long has failed."""

Rounds = list[NDArray[np.int64]]


@dataclass(frozen=True)
class Target:
    """A compiled file and the images, uint8 [N, H, W, C] in an .npy file, to feed it."""

    name: str
    backend: str
    model: Path
    images: Path


class WorkerFailedError(Exception):
    """Why an artifact could not be measured."""


def benchmark(params: Params) -> BenchmarkRecord:
    """Stage `benchmark`: metrics/benchmark.json and the raw latencies.

    Artifacts that cannot run here get the status `not_measured`, those whose worker fails
    `failed`, each with its reason; neither has numbers. Raises `PipelineError` where an
    artifact is missing, the fingerprint is another machine's, or the reference fails.
    """
    fingerprint = require_fingerprint()
    settings = params.benchmark
    with tempfile.TemporaryDirectory() as folder:
        targets, rows = _targets(params, Path(folder))
        measured, raw = measure(targets, settings, params.seed)
    reference = measured.pop(REFERENCE)
    rows |= measured
    record = BenchmarkRecord(
        fingerprint=fingerprint,
        reference=reference,
        reference_digest=DIGEST,
        overhead_ns=overhead(),
        rows={key: rows[key] for key in _keys(params)},
    )
    _write_latencies(raw)
    record.write(BENCHMARK)
    return record


def measure(
    targets: list[Target], settings: Benchmark, seed: int
) -> tuple[dict[str, BenchmarkRow], dict[str, Rounds]]:
    """Measure all targets, one of which is the reference: rows and raw times by name.

    Each lives in a process of its own, so that memory and thread pools don't mix; only
    one computes at a time. Every round visits all of them in an order of its own.
    """
    opened: dict[str, dict[str, float]] = {}
    raw: dict[str, Rounds] = {}
    peaks: dict[str, int] = {}
    failures: dict[str, str] = {}
    size = {"min_runs": settings.min_runs, "min_seconds": settings.min_seconds}
    with ExitStack() as stack:
        workers = {t.name: stack.enter_context(Worker(t, settings.threads)) for t in targets}
        orders = balanced_order(list(workers), settings.rounds, seed)
        visits = [(-1, name) for name in workers]  # opening and warm-up
        visits += [(i, name) for i, order in enumerate(orders) for name in order]
        for number, name in track(visits, "benchmark", len(visits), "visits"):
            if name in failures:
                continue
            try:
                if number < 0:
                    opened[name] = workers[name].ask({})
                    workers[name].ask(size)
                else:
                    answer = workers[name].ask(size)
                    raw.setdefault(name, []).append(np.array(answer["nanoseconds"], np.int64))
                    peaks[name] = answer["peak_rss_bytes"]
            except WorkerFailedError as error:
                failures[name] = str(error)
                raw.pop(name, None)
    if REFERENCE in failures:
        raise PipelineError(
            f"the reference model fails: {failures[REFERENCE]}",
            fix="look at `python -m pipeline doctor`",
        )
    rows = {
        name: BenchmarkRow(status="failed", reason=reason, threads=settings.threads)
        for name, reason in failures.items()
    }
    for name, rounds in raw.items():
        rows[name] = BenchmarkRow(
            status="measured",
            latency_ms=Latency(**asdict(percentiles(np.concatenate(rounds)))),
            p90_interval_ms=_p90_interval(np.concatenate(rounds)),
            ratio_to_reference=ratio(rounds, raw[REFERENCE]),
            first_ms=round(opened[name]["first_ms"], 6),
            load_ms=round(opened[name]["load_ms"], 6),
            peak_rss_bytes=peaks[name],
            threads=settings.threads,
            n=sum(map(len, rounds)),
            rounds_ms=tuple(round(float(np.median(times)) / 1e6, 6) for times in rounds),
        )
    return rows, raw


def ratio(rounds: Rounds, reference: Rounds) -> float:
    """Median over the rounds of p50 / p50 of the reference in the same round."""
    pairs = zip(rounds, reference, strict=True)
    return round(float(np.median([np.median(a) / np.median(b) for a, b in pairs])), 6)


def _p90_interval(nanoseconds: NDArray[np.int64]) -> tuple[float, float] | None:
    """In milliseconds, to six digits."""
    limits = quantile_interval(nanoseconds / 1e6, 0.9, P90_LEVEL)
    return limits and (round(limits[0], 6), round(limits[1], 6))


class Worker:
    """A `pipeline.measure.worker` process for one target; a context manager."""

    def __init__(self, target: Target, threads: int) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        root = Path(__file__).parents[2]
        paths = [str(root), os.environ.get("PYTHONPATH", "")]
        words = [target.backend, str(target.model), str(target.images), str(threads)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", worker.__name__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._process.kill()  # it holds nothing that is worth a farewell
        self._process.communicate()
        self._stderr.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request, one answer; `WorkerFailedError` for an error, silence or death."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(ANSWER_SECONDS, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            silent = not timer.is_alive()
            timer.cancel()
        if not line:
            raise WorkerFailedError(self._death(silent))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailedError(answer["error"])
        return answer

    def _death(self, silent: bool) -> str:
        if silent:
            return f"no answer within {ANSWER_SECONDS} s"
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"the process died ({how}): {last}"


def _keys(params: Params) -> dict[str, tuple[str, str, str]]:
    """Row keys `S/B/P` with their parts, in the order of params.yaml."""
    return {
        f"{student}/{name}/{precision}": (student, name, precision)
        for student in params.students.enabled
        for name, precision in params.backends.pairs()
    }


def _targets(params: Params, scratch: Path) -> tuple[list[Target], dict[str, BenchmarkRow]]:
    """The reference and every artifact that can run here, and rows for those that can't."""
    images = write_test_images(scratch)
    targets = [reference_target(scratch)]
    rows = {}
    for key, (student, name, precision) in _keys(params).items():
        folder = artifact_folder(student, name, precision)
        model = folder / Artifact.read(folder / "artifact.json").model_file
        if reason := backend(name).unmeasurable():
            rows[key] = BenchmarkRow(
                status="not_measured", reason=reason, threads=params.benchmark.threads
            )
        else:
            targets.append(Target(key, name, model, images))
    return targets, rows


def reference_target(scratch: Path) -> Target:
    """The frozen reference, its files written to `scratch`."""
    images, model = scratch / "reference.npy", scratch / "reference.onnx"
    np.save(images, reference_images())
    model.write_bytes(reference_model())
    return Target(REFERENCE, "onnxruntime", model, images)


def write_test_images(scratch: Path) -> Path:
    """An .npy file in `scratch`: images from all over the test split, uint8 [N, H, W, C]."""
    images, _ = load_split("test")
    spread = np.linspace(0, len(images) - 1, min(TEST_IMAGES, len(images))).astype(int)
    file = scratch / "test.npy"
    np.save(file, images[spread])
    return file


def _write_latencies(raw: dict[str, Rounds]) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for name, rounds in raw.items():
        arrays[f"{name}/ns"] = np.concatenate(rounds)
        numbers = np.arange(len(rounds), dtype=np.int32)
        arrays[f"{name}/round"] = np.repeat(numbers, [len(times) for times in rounds])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_whole(LATENCIES, buffer.getvalue())
