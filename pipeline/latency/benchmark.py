"""The stage `benchmark`: latency of every artifact beside the frozen reference."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.artifact import SUMMARY, Artifact
from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.registry import backend
from pipeline.compile.records import CompiledMetrics, compiled_metrics
from pipeline.core.files import sha256, temporary_folder, whole_folder, write_whole
from pipeline.data.records import load_split
from pipeline.latency.fingerprint import require_fingerprint
from pipeline.latency.harness import overhead
from pipeline.latency.params import BenchmarkParams
from pipeline.latency.records import (
    BENCHMARK,
    LATENCIES,
    REFERENCE,
    BenchmarkRecord,
    BenchmarkRow,
    Summary,
    Throughput,
)
from pipeline.latency.reference import DIGEST, reference_images, reference_model
from pipeline.latency.rounds import Rounds, measure, throughput
from pipeline.latency.workers import Target

TEST_IMAGES = 64
"""Fed to an artifact in turn."""


def benchmark(params: BenchmarkParams) -> BenchmarkRecord:
    """Stage `benchmark`: write metrics/benchmark.json, metrics/summary and the raw latencies.

    An artifact that cannot run here gets the status `not_measured`, one whose worker fails
    `failed`, each with its reason and without numbers. One that fails only in batches keeps its
    latency and gets the reason why it has no throughput.

    Args:
        params: which artifacts, and how long to measure.

    Returns:
        What was recorded.

    Raises:
        PipelineError: where an artifact is missing or damaged, the fingerprint is another
            machine's, or the reference fails.
    """
    fingerprint = require_fingerprint()
    settings = params.benchmark
    artifacts = params.backends.artifacts(params.students.enabled)
    metrics = {artifact: compiled_metrics(artifact) for artifact in artifacts}
    with temporary_folder() as scratch:
        targets, rows = _targets(params, scratch)
        measured = measure(targets, settings, params.seed)
        rates: dict[str, Throughput | str] = {}
        if settings.batch:
            working = [target for target in targets if target.name in measured.raw]
            rates = throughput(working, settings, params.seed)
    rows |= {name: _with_rate(row, rates.get(name)) for name, row in measured.rows.items()}
    _write_latencies(measured.raw)
    record = BenchmarkRecord(
        fingerprint=fingerprint,
        reference=rows[REFERENCE],
        reference_digest=DIGEST,
        latencies_digest=sha256(LATENCIES),
        overhead_ns=overhead(),
        conditions=measured.conditions,
        repeated_rounds=len(measured.conditions) - settings.rounds,
        rows={artifact.key: rows[artifact.key] for artifact in artifacts},
    )
    _write_summaries(metrics, record)
    record.write(BENCHMARK)
    return record


def _with_rate(row: BenchmarkRow, rate: Throughput | str | None) -> BenchmarkRow:
    field = "throughput_reason" if isinstance(rate, str) else "throughput"
    return row.model_copy(update={field: rate})


def _targets(
    params: BenchmarkParams, scratch: Path
) -> tuple[list[Target], dict[str, BenchmarkRow]]:
    """The reference and every artifact that can run here, and rows of those that cannot."""
    images = write_test_images(scratch)
    targets = [reference_target(scratch)]
    rows = {}
    for artifact in params.backends.artifacts(params.students.enabled):
        record = ArtifactRecord.read_whole(artifact.folder)
        if reason := backend(artifact.backend).unmeasurable():
            rows[artifact.key] = BenchmarkRow(
                status="not_measured", reason=reason, threads=params.benchmark.threads
            )
        else:
            model = artifact.folder / record.model_file
            targets.append(Target(artifact.key, artifact.backend, model, images))
    return targets, rows


def reference_target(scratch: Path) -> Target:
    """Write the files of the frozen reference into the folder `scratch`."""
    images, model = scratch / "reference.npy", scratch / "reference.onnx"
    np.save(images, reference_images())
    model.write_bytes(reference_model())
    return Target(REFERENCE, "onnxruntime", model, images)


def write_test_images(scratch: Path) -> Path:
    """Write evenly spread test images, uint8 [N, H, W, C], to a file in the folder `scratch`."""
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


def _write_summaries(compiled: dict[Artifact, CompiledMetrics], record: BenchmarkRecord) -> None:
    """Replace metrics/summary, so that it holds no artifact that is no longer asked for."""
    with whole_folder(SUMMARY) as scratch:
        for artifact, metrics in compiled.items():
            times = record.rows[artifact.key].latency_ms
            Summary(
                top1=metrics.top1,
                drop=round(metrics.top1_drop, 5),
                kb=round(metrics.size_bytes / 1000, 1),
                p50_ms=round(times.p50, 4) if times else None,
            ).write(scratch / artifact.summary.name)
