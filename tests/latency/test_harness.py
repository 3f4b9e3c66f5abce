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
import pytest

from pipeline.latency import harness as latency
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
