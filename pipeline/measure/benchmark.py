"""Latency of every artifact, in interleaved rounds beside the frozen reference."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.registry import backend
from pipeline.contracts import (
    BENCHMARK,
    LATENCIES,
    REFERENCE,
    Artifact,
    BenchmarkRecord,
    BenchmarkRow,
    Throughput,
    artifact_folder,
    load_split,
)
from pipeline.files import write_whole
from pipeline.measure.fingerprint import require_fingerprint
from pipeline.measure.latency import overhead
from pipeline.measure.reference import DIGEST, reference_images, reference_model
from pipeline.measure.rounds import Rounds, measure, throughput
from pipeline.measure.workers import Target
from pipeline.params import Params

TEST_IMAGES = 64


def benchmark(params: Params) -> BenchmarkRecord:
    """Stage `benchmark`: metrics/benchmark.json and the raw latencies.

    Artifacts that cannot run here get the status `not_measured`, those whose worker fails
    `failed`, each with its reason; neither has numbers. One that takes no batches keeps its
    latency and says why it has no throughput. Raises `PipelineError` where an artifact is
    missing, the fingerprint is another machine's, or the reference fails.
    """
    fingerprint = require_fingerprint()
    settings = params.benchmark
    with tempfile.TemporaryDirectory() as folder:
        targets, rows = _targets(params, Path(folder))
        measured = measure(targets, settings, params.seed)
        rates: dict[str, Throughput | str] = {}
        if settings.batch:
            working = [target for target in targets if target.name in measured.raw]
            rates = throughput(working, settings, params.seed)
    rows |= {name: _with_rate(row, rates.get(name)) for name, row in measured.rows.items()}
    record = BenchmarkRecord(
        fingerprint=fingerprint,
        reference=rows[REFERENCE],
        reference_digest=DIGEST,
        overhead_ns=overhead(),
        conditions=measured.conditions,
        repeated_rounds=len(measured.conditions) - settings.rounds,
        rows={key: rows[key] for key in _keys(params)},
    )
    _write_latencies(measured.raw)
    record.write(BENCHMARK)
    return record


def _with_rate(row: BenchmarkRow, rate: Throughput | str | None) -> BenchmarkRow:
    field = "throughput_reason" if isinstance(rate, str) else "throughput"
    return row.model_copy(update={field: rate})


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
