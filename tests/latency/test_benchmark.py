"""The stage `benchmark`: records, raw latencies and summaries."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from pipeline.backends.base.artifact import SUMMARY, Artifact
from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.registry import backend
from pipeline.cli.params import Params
from pipeline.compile.records import CompiledMetrics
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.latency import benchmark as bench
from pipeline.latency import reference
from pipeline.latency.fingerprint import update_fingerprint
from pipeline.latency.harness import WINDOW_RUNS, WINDOWS, percentiles
from pipeline.latency.records import BENCHMARK, BenchmarkRecord, Summary
from tests.compile.conftest import shown_by_dvc
from tests.conftest import STUDENT

MEASURED = Artifact(STUDENT, "onnxruntime", "fp32")


@pytest.fixture
def workspace(workspace: Params) -> Params:
    """With the fingerprint of this machine."""
    update_fingerprint()
    return workspace


def test_benchmark_measures_what_can_run_here_and_says_why_the_rest_cannot(
    workspace: Params,
) -> None:
    ballast = np.ones(60_000_000)  # half a gigabyte that must not count as the workers'
    record = bench.benchmark(workspace)
    del ballast
    assert record == BenchmarkRecord.read(BENCHMARK)
    assert record.reference_digest == reference.DIGEST
    assert record.reference.ratio_to_reference == 1.0
    assert record.reference.ratio_interval == (1.0, 1.0)

    assert record.overhead_ns and record.overhead_ns < 1e6 * record.reference.latency_ms.p50

    row = record.rows[MEASURED.key]
    assert row.status == "measured" and row.reason is None
    assert row.latency_ms and 0 < row.latency_ms.p50 <= row.latency_ms.p90 <= row.latency_ms.p99
    assert row.p90_interval_ms is None  # three rounds are too few
    assert row.first_ms and row.load_ms and row.ratio_to_reference
    assert row.peak_rss_bytes and 10e6 < row.peak_rss_bytes < 400e6
    low, high = row.ratio_interval or (0, 0)
    assert 0 < low <= row.ratio_to_reference <= high
    assert row.warm_up and row.warm_up.inferences >= WINDOWS * WINDOW_RUNS
    assert row.cpus and len(row.cpus) == row.threads == 1
    for one in (row, record.reference):
        assert one.throughput and one.throughput.images_per_second > 0
        assert one.throughput_reason is None
        assert one.throughput.threads == record.fingerprint.cores

    kept = [one for one in record.conditions if one.kept]
    assert len(kept) == len(row.rounds_ms) == workspace.benchmark.rounds
    assert record.repeated_rounds == len(record.conditions) - len(kept)
    assert all(one.others is not None and 0 <= one.others <= 1 for one in kept)

    raw = np.load(bench.LATENCIES)
    times = raw[f"{MEASURED}/ns"]
    rounds = raw[f"{MEASURED}/round"]
    assert len(times) == len(rounds) == row.n
    assert (np.bincount(rounds) >= workspace.benchmark.min_runs).all() and rounds.max() == 2
    assert percentiles(times).p50 == row.latency_ms.p50
    assert len(record.reference.rounds_ms) == 3
    for number, p50 in enumerate(row.rounds_ms):
        assert p50 == pytest.approx(np.median(times[rounds == number]) / 1e6, abs=1e-6)

    other = record.rows[f"{STUDENT}/tensorrt/fp16"]
    if reason := backend("tensorrt").unmeasurable():
        assert (other.status, other.reason) == ("not_measured", reason)
        assert other.latency_ms is None and other.n == 0


def compiled_as(content: bytes) -> None:
    """Let the measured artifact have been compiled into this model."""
    model = MEASURED.folder / "model.onnx"
    model.write_bytes(content)
    changed = {"digests": {model.name: sha256(model)}}
    for kind, file in (
        (ArtifactRecord, MEASURED.folder / "artifact.json"),
        (CompiledMetrics, MEASURED.metrics),
    ):
        kind.read(file).model_copy(update=changed).write(file)


def test_an_artifact_that_fails_is_recorded_as_failed_and_hides_no_other(
    workspace: Params,
) -> None:
    compiled_as((MEASURED.folder / "model.onnx").read_bytes()[:100])
    record = bench.benchmark(workspace)
    row = record.rows[MEASURED.key]
    assert row.status == "failed" and row.reason and "model.onnx" in row.reason
    assert row.latency_ms is None and row.ratio_to_reference is None and row.n == 0
    assert record.reference.status == "measured"
    assert list(np.load(bench.LATENCIES)) == ["reference/ns", "reference/round"]


def test_a_batch_that_fails_costs_no_latency(workspace: Params) -> None:
    folder = MEASURED.folder
    model = onnx.load(folder / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    compiled_as(model.SerializeToString())
    record = bench.benchmark(workspace)
    row = record.rows[MEASURED.key]
    assert row.status == "measured" and row.latency_ms
    assert row.throughput is None and row.throughput_reason
    assert record.reference.throughput


def test_without_a_batch_there_is_no_throughput(workspace: Params) -> None:
    settings = workspace.benchmark.model_copy(update={"batch": 0})
    record = bench.benchmark(workspace.model_copy(update={"benchmark": settings}))
    assert record.reference.throughput is None and record.reference.throughput_reason is None


def test_without_a_compiled_artifact_there_is_no_benchmark(workspace: Params) -> None:
    (MEASURED.folder / "artifact.json").unlink()
    with pytest.raises(PipelineError, match="dvc repro"):
        bench.benchmark(workspace)
    assert not BENCHMARK.exists()


def test_summaries_hold_the_main_figures_and_are_what_dvc_shows(workspace: Params) -> None:
    metrics = CompiledMetrics.read(MEASURED.metrics)
    update = {"top1": 0.9, "top1_drop": 0.1 + 1e-9, "size_bytes": 12345}
    metrics.model_copy(update=update).write(MEASURED.metrics)
    gone = Artifact("another_student", "onnxruntime", "fp32")
    Summary(top1=0.5, drop=0.0, kb=1.0).write(gone.summary)
    record = bench.benchmark(workspace)
    assert {file.name for file in SUMMARY.iterdir()} == {
        artifact.summary.name for artifact in workspace.backends.artifacts((STUDENT,))
    }
    p50 = round(record.rows[MEASURED.key].latency_ms.p50, 4)
    assert Summary.read(MEASURED.summary) == Summary(top1=0.9, drop=0.1, kb=12.3, p50_ms=p50)
    shown = {"top1": 0.9, "drop": 0.1, "kb": 12.3, "p50_ms": p50}
    assert shown_by_dvc(MEASURED.summary) == shown
    if backend("tensorrt").unmeasurable():  # no latency and no column of zeros in its place
        assert "p50_ms" not in shown_by_dvc(Artifact(STUDENT, "tensorrt", "fp16").summary)


def test_a_benchmark_that_fails_leaves_the_summaries_of_the_last_one(workspace: Params) -> None:
    Summary(top1=0.5, drop=0.0, kb=1.0).write(MEASURED.summary)
    (MEASURED.folder / "artifact.json").unlink()
    with pytest.raises(PipelineError):
        bench.benchmark(workspace)
    assert Summary.read(MEASURED.summary).top1 == 0.5


def test_the_record_is_one_line_per_row_and_round_and_dvc_shows_none_of_it(
    workspace: Params,
) -> None:
    record = bench.benchmark(workspace)
    text = BENCHMARK.read_text()
    assert BenchmarkRecord.read(BENCHMARK) == record and record.to_json() == text
    lines = text.splitlines()
    for key in record.rows:
        (line,) = (line for line in lines if line.startswith(f'"{key}":'))
        assert line.count("{") == line.count("}")
    assert sum(line.startswith('{"seconds":') for line in lines) == len(record.conditions)
    braces = 2 + 2  # of the record, and the ends of its rows and conditions
    fields, entries = len(BenchmarkRecord.model_fields), len(record.rows) + len(record.conditions)
    assert len(lines) == braces + fields + entries + 1  # its digest
    assert shown_by_dvc(BENCHMARK) == {}
