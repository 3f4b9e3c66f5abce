from __future__ import annotations

import gc
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pipeline.backends.registry import backend
from pipeline.contracts import BENCHMARK, BenchmarkRecord, artifact_folder
from pipeline.errors import PipelineError
from pipeline.measure import benchmark as bench
from pipeline.measure import reference
from pipeline.measure.fingerprint import update_fingerprint
from pipeline.measure.latency import WAKE_RUNS, Harness, balanced_order, overhead, percentiles
from pipeline.params import Params

IMAGES = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2, 1)


def test_every_inference_gets_one_raw_image_and_they_take_turns() -> None:
    seen = []
    harness = Harness(lambda image: seen.append(image.copy()), IMAGES)
    times = harness.round(min_runs=4, min_seconds=1e-9)
    assert len(times) == 4 and len(seen) == 4 + WAKE_RUNS
    for i, image in enumerate(seen):
        np.testing.assert_array_equal(image, IMAGES[i % 3][None])


def test_a_round_lasts_for_both_the_runs_and_the_seconds() -> None:
    harness = Harness(lambda _: time.sleep(0.001), IMAGES)
    assert len(harness.round(min_runs=7, min_seconds=1e-9)) == 7
    times = harness.round(min_runs=1, min_seconds=0.02)
    assert times.sum() >= 20_000_000
    assert times[:-1].sum() < 20_000_000


def test_latencies_are_those_of_the_call() -> None:
    times = Harness(lambda _: time.sleep(0.004), IMAGES).round(min_runs=5, min_seconds=1e-9)
    assert (times >= 4_000_000).all()


def test_garbage_collection_is_back_after_a_round_that_fails() -> None:
    def fail(_: object) -> None:
        assert not gc.isenabled()
        raise ValueError

    with pytest.raises(ValueError):
        Harness(fail, IMAGES).round(min_runs=1, min_seconds=1e-9)
    assert gc.isenabled()


def test_percentiles_are_milliseconds() -> None:
    found = percentiles(np.arange(0, 101, dtype=np.int64) * 1_000_000)
    assert (found.p50, found.p90, found.p99) == (50.0, 90.0, 99.0)


def test_what_the_harness_adds_is_more_than_nothing_and_less_than_a_call_takes() -> None:
    times = Harness(lambda _: time.sleep(0.001), IMAGES).round(min_runs=5, min_seconds=1e-9)
    assert 0 < overhead() < times.min()


def test_orders_are_seeded_complete_and_balanced() -> None:
    names = ["a", "b", "c", "d"]
    orders = balanced_order(names, rounds=6, seed=3)
    assert orders == balanced_order(names, rounds=6, seed=3)
    assert orders != balanced_order(names, rounds=6, seed=4)
    assert all(sorted(order) == names for order in orders)
    for first, second in permutations(names, 2):
        assert sum(order.index(first) < order.index(second) for order in orders) == 3
    assert len(balanced_order(names, rounds=5, seed=3)) == 5


def test_a_disturbed_round_does_not_move_the_ratio() -> None:
    def rounds(*milliseconds: int) -> list[np.ndarray]:
        return [np.full(5, value, dtype=np.int64) for value in milliseconds]

    # the machine is three times slower in the second round, and hiccups in the third
    assert bench.ratio(rounds(20, 60, 900), rounds(10, 30, 10)) == 2.0


def test_the_reference_is_frozen_and_runs() -> None:
    model = reference.reference_model()
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = reference.reference_images()
    (logits,) = session.run(None, {"image": images})
    assert logits.shape == (len(images), 10)
    assert np.isfinite(logits).all() and logits.std() > 0


def test_a_reference_that_came_out_differently_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(reference, "DIGEST", "0" * 64)
    with pytest.raises(PipelineError, match="reference"):
        reference.reference_model()


def test_benchmark_measures_what_can_run_here_and_says_why_the_rest_cannot(
    workspace: Params,
) -> None:
    update_fingerprint()
    ballast = np.ones(60_000_000)  # half a gigabyte that must not count as the workers'
    record = bench.benchmark(workspace)
    del ballast
    assert record == BenchmarkRecord.read(BENCHMARK)
    assert record.reference_digest == reference.DIGEST
    assert record.reference.ratio_to_reference == 1.0

    assert record.overhead_ns and record.overhead_ns < 1e6 * record.reference.latency_ms.p50

    row = record.rows["mnv4_small_050/onnxruntime/fp32"]
    assert row.status == "measured" and row.reason is None
    assert row.latency_ms and 0 < row.latency_ms.p50 <= row.latency_ms.p90 <= row.latency_ms.p99
    low, high = row.p90_interval_ms or (0, 0)
    assert 0 < low <= row.latency_ms.p90 <= high
    assert row.first_ms and row.load_ms and row.ratio_to_reference
    assert row.peak_rss_bytes and 10e6 < row.peak_rss_bytes < 400e6

    raw = np.load(bench.LATENCIES)
    times = raw["mnv4_small_050/onnxruntime/fp32/ns"]
    rounds = raw["mnv4_small_050/onnxruntime/fp32/round"]
    assert len(times) == len(rounds) == row.n
    assert (np.bincount(rounds) >= workspace.benchmark.min_runs).all() and rounds.max() == 2
    assert percentiles(times).p50 == row.latency_ms.p50
    assert len(record.reference.rounds_ms) == 3
    for number, p50 in enumerate(row.rounds_ms):
        assert p50 == pytest.approx(np.median(times[rounds == number]) / 1e6, abs=1e-6)

    other = record.rows["mnv4_small_050/tensorrt/fp16"]
    if reason := backend("tensorrt").unmeasurable():
        assert (other.status, other.reason) == ("not_measured", reason)
        assert other.latency_ms is None and other.n == 0


def test_an_artifact_that_fails_is_recorded_as_failed_and_hides_no_other(
    workspace: Params,
) -> None:
    update_fingerprint()
    model = artifact_folder("mnv4_small_050", "onnxruntime", "fp32") / "model.onnx"
    model.write_bytes(model.read_bytes()[:100])
    record = bench.benchmark(workspace)
    row = record.rows["mnv4_small_050/onnxruntime/fp32"]
    assert row.status == "failed" and row.reason and "model.onnx" in row.reason
    assert row.latency_ms is None and row.ratio_to_reference is None and row.n == 0
    assert record.reference.status == "measured"
    assert list(np.load(bench.LATENCIES)) == ["reference/ns", "reference/round"]


@pytest.mark.usefixtures("workspace")
def test_a_worker_that_dies_says_how(tmp_path: Path) -> None:
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((1, 8, 8, 3), np.uint8))
    model = artifact_folder("mnv4_small_050", "onnxruntime", "fp32") / "model.onnx"
    with bench.Worker(bench.Target("a", "onnxruntime", model, images), threads=1) as worker:
        assert worker.ask({})["load_ms"] > 0
        worker._process.kill()
        with pytest.raises(bench.WorkerFailedError, match="killed by signal 9"):
            worker.ask({"min_runs": 1, "min_seconds": 0.001})


def test_a_worker_that_is_silent_is_ended(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bench, "ANSWER_SECONDS", 0.01)
    target = bench.Target("a", "onnxruntime", tmp_path / "none.onnx", tmp_path / "none.npy")
    with (
        bench.Worker(target, threads=1) as worker,
        pytest.raises(bench.WorkerFailedError, match="no answer within"),
    ):
        worker.ask({})


def test_without_a_compiled_artifact_there_is_no_benchmark(workspace: Params) -> None:
    update_fingerprint()
    (artifact_folder("mnv4_small_050", "onnxruntime", "fp32") / "artifact.json").unlink()
    with pytest.raises(PipelineError, match="dvc repro"):
        bench.benchmark(workspace)
    assert not BENCHMARK.exists()
