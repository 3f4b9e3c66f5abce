from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator
from itertools import count, permutations
from pathlib import Path
from statistics import NormalDist

import numpy as np
import onnx
import onnxruntime
import pytest

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.registry import backend
from pipeline.cli.params import Params
from pipeline.core.errors import PipelineError
from pipeline.latency import benchmark as bench
from pipeline.latency import harness as latency
from pipeline.latency import reference, workers
from pipeline.latency.conditions import Watch
from pipeline.latency.fingerprint import update_fingerprint
from pipeline.latency.harness import (
    FEWEST_ROUNDS,
    STEADY,
    WAKE_RUNS,
    WARM_UP_SECONDS,
    WINDOW_RUNS,
    WINDOW_SECONDS,
    WINDOWS,
    Harness,
    balanced_order,
    choose_cpus,
    cores,
    images_per_second,
    overhead,
    p90_limits,
    peak_memory,
    percentiles,
    pinned,
    warm_up,
)
from pipeline.latency.records import BENCHMARK, REFERENCE, BenchmarkRecord
from pipeline.latency.rounds import measure, ratio
from pipeline.latency.workers import Target, Worker, WorkerFailedError

IMAGES = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2, 1)


def test_every_inference_gets_one_raw_image_and_they_take_turns() -> None:
    seen = []
    harness = Harness(lambda image: seen.append(image.copy()), IMAGES)
    times = harness.round(min_runs=4, min_seconds=1e-9)
    assert len(times) == 4 and len(seen) == 4 + WAKE_RUNS
    for i, image in enumerate(seen):
        np.testing.assert_array_equal(image, IMAGES[i % 3][None])


def test_a_batch_is_of_images_in_turn_and_goes_round_where_they_are_too_few() -> None:
    for batch, inputs in ((2, [[0, 1]]), (3, [[0, 1, 2]]), (5, [[0, 1, 2, 0, 1]])):
        seen: list[np.ndarray] = []
        harness = Harness(seen.append, IMAGES, batch)
        for i in range(2):
            harness.once()
            np.testing.assert_array_equal(seen[i], IMAGES[inputs[i % len(inputs)]])


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


MILLISECOND = 1_000_000


def taking(times: Iterator[float]) -> tuple[Callable[[], int], list[int]]:
    """An inference that takes `times`, milliseconds, in turn; and what it took so far."""
    taken: list[int] = []

    def once() -> int:
        taken.append(round(next(times) * MILLISECOND))
        return taken[-1]

    return once, taken


def test_a_model_of_constant_time_is_warm_after_the_fewest_windows() -> None:
    for milliseconds in (1.0, 40.0):
        once, taken = taking(milliseconds for _ in count())
        warm = warm_up(once)
        window = max(WINDOW_RUNS, round(WINDOW_SECONDS * 1000 / milliseconds))
        assert (warm.inferences, warm.steady) == (WINDOWS * window, True)
        assert len(taken) == warm.inferences


def test_a_warm_up_ends_when_a_decay_is_over_and_not_before() -> None:
    for runs in (5, 20, 100):  # in which what is too much falls to a third
        once, taken = taking(1 + 9 * math.exp(-k / runs) for k in count())
        warm = warm_up(once)
        assert warm.steady and taken[-1] <= (1 + STEADY) * MILLISECOND
        assert 3 * runs < warm.inferences < 12 * runs + 2 * WINDOWS * WINDOW_SECONDS * 1000


def test_disturbed_inferences_do_not_keep_a_model_cold() -> None:
    rng = np.random.default_rng(0)
    once, _ = taking(10.0 if rng.random() < 0.2 else rng.normal(1, 0.05) for _ in count())
    assert warm_up(once).steady


@pytest.mark.parametrize("milliseconds", [1.0, 900.0])
def test_a_machine_that_comes_to_no_rest_is_told_and_not_waited_for(milliseconds: float) -> None:
    rng = np.random.default_rng(1)

    def restless() -> Iterator[float]:
        while True:  # a pace that lasts for a window, and then another
            pace = milliseconds * rng.uniform(1, 3)
            end, spent, runs = WINDOW_SECONDS * 1000, 0.0, 0
            while spent < end or runs < WINDOW_RUNS:
                yield pace
                spent, runs = spent + pace, runs + 1

    once, taken = taking(restless())
    warm = warm_up(once)
    limit = WARM_UP_SECONDS * 1e9
    fewest = WINDOWS * WINDOW_RUNS
    assert not warm.steady and warm.inferences == len(taken)
    assert len(taken) == fewest or sum(taken) - limit <= max(WINDOW_SECONDS * 1e9, max(taken)) * 2


def test_batches_are_few_as_each_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]
    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: now[0])

    def run(_: np.ndarray) -> None:
        now[0] += 2_000 * MILLISECOND

    harness = Harness(run, IMAGES, batch=3)
    assert harness.warm_up() == latency.WarmUp(WINDOWS, steady=True)
    assert len(harness.round(min_runs=3, min_seconds=0.1)) == 3
    assert now[0] == (WINDOWS + 1 + 3) * 2_000 * MILLISECOND


def test_throughput_is_the_rate_of_the_median_round() -> None:
    rounds = [np.full(4, 2_000_000), np.full(3, 4_000_000), np.full(9, 1_000_000)]
    assert images_per_second(rounds, batch=32) == 32 / 0.002


def test_threads_are_pinned_and_set_free_again() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cpus:
        assert cpus and len(cpus) == 1 and os.sched_getaffinity(0) == set(cpus) <= before
        assert cores() == 1
    with pinned(10_000) as cpus:
        assert cpus == sorted(before)
    assert os.sched_getaffinity(0) == before and cores() == len(before)


def devices(root: Path, siblings: str, *frequencies: int) -> Path:
    """A /sys/devices/system/cpu: `0-1 0-1 2`, say, for a core of two CPUs and one of one."""
    for cpu, (shared, frequency) in enumerate(zip(siblings.split(), frequencies, strict=True)):
        for name, text in (
            ("topology/thread_siblings_list", shared),
            ("cpufreq/cpuinfo_max_freq", str(frequency)),
        ):
            file = root / f"cpu{cpu}" / name
            file.parent.mkdir(parents=True)
            file.write_text(f"{text}\n")
    return root


def test_threads_share_a_core_only_where_there_is_no_other(tmp_path: Path) -> None:
    halves = devices(tmp_path / "halves", "0-1 0-1 2-3 2-3", 3, 3, 3, 3)
    assert choose_cpus([0, 1, 2, 3], 1, halves) == [3]
    assert choose_cpus([0, 1, 2, 3], 2, halves) == [1, 3]
    assert choose_cpus([0, 1, 2, 3], 3, halves) == [1, 2, 3]
    assert choose_cpus([0, 2, 3], 2, halves) == [0, 3]
    apart = devices(tmp_path / "apart", "0,2 1,3 0,2 1,3", 3, 3, 3, 3)
    assert choose_cpus([0, 1, 2, 3], 2, apart) == [2, 3]


def test_the_fastest_cores_come_first_and_the_last_of_these(tmp_path: Path) -> None:
    kinds = devices(tmp_path, "0-1 0-1 2 3", 5, 5, 4, 4)
    assert choose_cpus([0, 1, 2, 3], 1, kinds) == [1]
    assert choose_cpus([0, 1, 2, 3], 2, kinds) == [1, 3]
    silent = tmp_path / "none"
    assert choose_cpus([0, 1, 2, 3], 2, silent) == [2, 3]
    assert choose_cpus([0, 1], 9, silent) == [0, 1]


def test_where_a_system_pins_nothing_that_is_told(monkeypatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    with pinned(1) as cpus:
        assert cpus is None and cores() == os.cpu_count()


def test_peak_memory_remembers_what_was_freed() -> None:
    before = peak_memory() or 0
    ballast = np.ones(before // 8)
    del ballast
    assert peak_memory() > before > 1e6


def rounds_of(rng: np.random.Generator, between: float, count: int = 10) -> list[np.ndarray]:
    """Times of some milliseconds: 8% noise within a round, `between` from round to round."""
    paces = rng.normal(0, between, count)
    return [np.int64(MILLISECOND * np.exp(p + rng.normal(0, 0.08, 300))) for p in paces]


def test_limits_of_p90_span_rounds_that_differ_and_are_tight_where_they_agree() -> None:
    same = [np.arange(1, 101) * MILLISECOND] * 10
    assert p90_limits(same) == (percentiles(np.concatenate(same)).p90,) * 2
    paces = np.linspace(1, 2, 10)
    differ = [np.int64(same[0] * pace) for pace in paces]
    low, high = p90_limits(differ) or (0, 0)
    p90 = percentiles(np.concatenate(differ)).p90
    assert 90 < low < 0.9 * p90 and 1.1 * p90 < high < 180.1


def test_limits_of_p90_are_those_of_sorting_every_resample() -> None:
    rng = np.random.default_rng(2)
    rounds = [rng.integers(1, 50, size) * MILLISECOND for size in (7, 20, 11, 30, 9, 14)]
    draws = np.random.default_rng(3).integers(6, size=(4000, 6))
    p90s = [np.percentile(np.concatenate([rounds[i] for i in drawn]), 90) for drawn in draws]
    # Student's quantile for 5 degrees of freedom, 2.571, times sqrt(6 / 5) is a normal tail of
    tail = 100 * NormalDist().cdf(-2.571 * math.sqrt(6 / 5))
    expected = np.percentile(p90s, (tail, 100 - tail)) / 1e6
    assert p90_limits(rounds) == pytest.approx(tuple(expected), abs=1.0)
    assert p90_limits(rounds) == p90_limits(rounds)  # seeded


def test_limits_of_p90_hold_where_a_round_has_its_own_pace() -> None:
    between, tries, rng = 0.04, 300, np.random.default_rng(4)
    truth = math.exp(NormalDist(0, math.hypot(between, 0.08)).inv_cdf(0.9))
    held, independent = 0, 0
    for _ in range(tries):
        rounds = rounds_of(rng, between)
        low, high = p90_limits(rounds) or (0, 0)
        held += low <= truth <= high
        pooled = np.sort(np.concatenate(rounds)) / MILLISECOND
        ranks = 0.9 * len(pooled) + np.array([-1.96, 1.96]) * math.sqrt(0.09 * len(pooled))
        low, high = pooled[ranks.round().astype(int)]
        independent += low <= truth <= high
    assert held >= 0.89 * tries and independent < 0.5 * tries


def test_too_few_rounds_have_no_limits() -> None:
    rounds = rounds_of(np.random.default_rng(0), 0.02, FEWEST_ROUNDS)
    assert p90_limits(rounds) is not None
    assert p90_limits(rounds[1:]) is None and p90_limits([]) is None


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
    estimate, (low, high) = ratio(rounds(20, 60, 900), rounds(10, 30, 10))
    assert estimate == 2.0 and low < 2.0 < high


def test_limits_of_a_ratio_are_as_narrow_as_rounds_agree() -> None:
    pace = np.random.default_rng(0).uniform(10, 30, 10)  # of the machine, which both share

    def logs(noise: float, seed: int = 1) -> np.ndarray:
        """Of the limits, over the true ratio."""
        own = 2 * pace * np.exp(np.random.default_rng(seed).normal(0, noise, 10))
        sides = ([np.array([round(1e6 * p)]) for p in side] for side in (own, pace))
        estimate, (low, high) = ratio(*sides)
        assert low <= estimate <= high
        return np.log(np.array([low, high]) / 2)

    np.testing.assert_allclose(logs(0.0), 0, atol=1e-6)
    np.testing.assert_allclose(logs(0.1), 10 * logs(0.01), atol=1e-4)
    held = [low < 0 < high for low, high in (logs(0.05, seed) for seed in range(100))]
    assert 90 <= sum(held) < 100
    np.testing.assert_array_equal(logs(0.05), logs(0.05))  # the bootstrap is seeded


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
    assert record.reference.ratio_interval == (1.0, 1.0)

    assert record.overhead_ns and record.overhead_ns < 1e6 * record.reference.latency_ms.p50

    row = record.rows["mnv4_small_050/onnxruntime/fp32"]
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
    model = Artifact("mnv4_small_050", "onnxruntime", "fp32").folder / "model.onnx"
    model.write_bytes(model.read_bytes()[:100])
    record = bench.benchmark(workspace)
    row = record.rows["mnv4_small_050/onnxruntime/fp32"]
    assert row.status == "failed" and row.reason and "model.onnx" in row.reason
    assert row.latency_ms is None and row.ratio_to_reference is None and row.n == 0
    assert record.reference.status == "measured"
    assert list(np.load(bench.LATENCIES)) == ["reference/ns", "reference/round"]


def test_spoiled_rounds_are_repeated_whole_and_stay_paired(
    workspace: Params, tmp_path: Path, monkeypatch
) -> None:
    spoiled = [0.9, 0.0, 0.8, 0.7, 0.0]
    stop = Watch.stop
    taken = iter(spoiled)
    monkeypatch.setattr(
        Watch,
        "stop",
        lambda self: stop(self).model_copy(
            update={"seconds": 10.0, "others": next(taken), "stolen": None, "mhz": None}
        ),
    )
    targets = [bench.reference_target(tmp_path)]
    model = Artifact("mnv4_small_050", "onnxruntime", "fp32").folder / "model.onnx"
    targets.append(Target("a", "onnxruntime", model, bench.write_test_images(tmp_path)))
    settings = workspace.benchmark.model_copy(update={"rounds": 3, "extra_rounds": 2})
    measured = measure(targets, settings, seed=1)
    assert [one.others for one in measured.conditions] == spoiled
    # two rounds are clean, and the least spoiled makes up for the third
    assert [one.kept for one in measured.conditions] == [False, True, False, True, True]
    assert "70%" in str(measured.conditions[3].spoiled)
    for name in (REFERENCE, "a"):
        assert len(measured.rows[name].rounds_ms) == len(measured.raw[name]) == 3


def test_a_batch_that_fails_costs_no_latency(workspace: Params) -> None:
    update_fingerprint()
    folder = Artifact("mnv4_small_050", "onnxruntime", "fp32").folder
    model = onnx.load(folder / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, folder / "model.onnx")
    record = bench.benchmark(workspace)
    row = record.rows["mnv4_small_050/onnxruntime/fp32"]
    assert row.status == "measured" and row.latency_ms
    assert row.throughput is None and row.throughput_reason
    assert record.reference.throughput


def test_without_a_batch_there_is_no_throughput(workspace: Params) -> None:
    update_fingerprint()
    settings = workspace.benchmark.model_copy(update={"batch": 0})
    record = bench.benchmark(workspace.model_copy(update={"benchmark": settings}))
    assert record.reference.throughput is None and record.reference.throughput_reason is None


@pytest.mark.usefixtures("workspace")
def test_a_worker_that_dies_says_how(tmp_path: Path) -> None:
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((1, 8, 8, 3), np.uint8))
    model = Artifact("mnv4_small_050", "onnxruntime", "fp32").folder / "model.onnx"
    with Worker(Target("a", "onnxruntime", model, images), threads=1) as worker:
        assert worker.ask({})["load_ms"] > 0
        worker._process.kill()
        with pytest.raises(WorkerFailedError, match="killed by signal 9"):
            worker.ask({"min_runs": 1, "min_seconds": 0.001})


def test_a_worker_that_is_silent_is_ended(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(workers, "ANSWER_SECONDS", 0.01)
    target = Target("a", "onnxruntime", tmp_path / "none.onnx", tmp_path / "none.npy")
    with (
        Worker(target, threads=1) as worker,
        pytest.raises(WorkerFailedError, match="no answer within"),
    ):
        worker.ask({})


def test_without_a_compiled_artifact_there_is_no_benchmark(workspace: Params) -> None:
    update_fingerprint()
    (Artifact("mnv4_small_050", "onnxruntime", "fp32").folder / "artifact.json").unlink()
    with pytest.raises(PipelineError, match="dvc repro"):
        bench.benchmark(workspace)
    assert not BENCHMARK.exists()
