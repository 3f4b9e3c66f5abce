from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

from pipeline.latency.statistics import LogRatio, paired_log_ratio, unpaired_log_ratio


def rounds(rng: np.random.Generator, count: int, noise: float = 0.02) -> np.ndarray:
    """Latencies of 1 ms but for their noise."""
    return np.exp(rng.normal(0, noise, count))


def student_quantile(probability: float, freedom: float) -> float:
    """As the bounds of a log ratio of 0 with a standard error of 1 show it."""
    return LogRatio(0.0, 1.0, freedom).upper(1 - probability)


@pytest.mark.parametrize("p", [0.6, 0.975, 0.9997])
def test_bounds_are_those_of_the_closed_forms_of_student(p: float) -> None:
    assert student_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)))
    a = 2 * p - 1
    assert student_quantile(p, 2) == pytest.approx(a * math.sqrt(2 / (1 - a * a)))
    assert student_quantile(1 - p, 7) == pytest.approx(-student_quantile(p, 7))
    assert LogRatio(0.0, 1.0, 7).lower(1 - p) == -student_quantile(p, 7)
    assert student_quantile(p, math.inf) == pytest.approx(NormalDist().inv_cdf(p), rel=1e-12)
    assert student_quantile(p, 1e300) == pytest.approx(student_quantile(p, math.inf))
    assert student_quantile(p, 1000) == pytest.approx(student_quantile(p, math.inf), rel=0.005)


@pytest.mark.parametrize(
    ("degrees", "table"), [(3, 3.182), (4, 2.776), (9, 2.262), (10, 2.228), (29, 2.045)]
)
def test_bounds_are_those_of_the_tables_of_student(degrees: int, table: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(table, abs=5e-4)
    between = student_quantile(0.975, degrees + 0.5)  # Welch's degrees of freedom are not whole
    assert student_quantile(0.975, degrees + 1) < between < student_quantile(0.975, degrees)


def test_one_round_has_no_degree_of_freedom() -> None:
    with pytest.raises(ValueError, match="two or more"):
        paired_log_ratio([1.0], [2.0])
    with pytest.raises(ValueError, match="two or more"):
        unpaired_log_ratio([1.0, 1.1], [2.0], 0.01)


def test_the_error_of_the_median_is_that_of_counting_all_resamples() -> None:
    values = np.array([0.0, 0.1, 0.5, 0.6])
    medians = [np.median(drawn) for drawn in itertools.product(values, repeat=4)]
    found = paired_log_ratio(np.exp(values), np.ones(4))
    assert found.error == pytest.approx(np.std(medians), rel=0.05)


def test_a_slow_down_is_the_estimate_whatever_both_share() -> None:
    rng = np.random.default_rng(3)
    pace = np.exp(rng.normal(0, 0.5, 12))  # the machine's, round by round
    exact = paired_log_ratio(1.1 * pace, pace)
    assert exact.estimate == pytest.approx(math.log(1.1))
    assert exact.error == pytest.approx(0, abs=1e-12)
    assert exact.freedom == 11


@pytest.mark.parametrize(("count", "level"), [(10, 0.05), (10, 0.01), (30, 0.05)])
def test_bounds_miss_the_truth_about_as_often_as_their_level_says(count: int, level: float) -> None:
    rng = np.random.default_rng(count)
    tries = 300
    found = [paired_log_ratio(rounds(rng, count), np.ones(count)) for _ in range(tries)]
    for missed in (
        np.mean([ratio.lower(level) > 0 for ratio in found]),
        np.mean([ratio.upper(level) < 0 for ratio in found]),
    ):
        assert missed <= level + 3 * math.sqrt(level * (1 - level) / tries)
    assert any(ratio.lower(0.4) > 0 for ratio in found)


def test_a_ruined_round_moves_the_bounds_little() -> None:
    rng = np.random.default_rng(8)
    calm = rounds(rng, 30)
    disturbed = np.where(np.arange(30) % 15 == 3, 5 * calm, calm)
    before, after = (paired_log_ratio(times, np.ones(30)) for times in (calm, disturbed))
    assert abs(before.upper(0.01) - after.upper(0.01)) < 0.01


def test_two_runs_are_never_closer_than_the_deviation_between_runs() -> None:
    rng = np.random.default_rng(4)
    alone = unpaired_log_ratio(rounds(rng, 10), rounds(rng, 10), 0.0)
    apart = unpaired_log_ratio(rounds(np.random.default_rng(4), 10), np.ones(20), 0.03)
    assert alone.error == pytest.approx(0.02 * 1.3 * math.sqrt(2 / 10), rel=0.6)
    assert 9 <= alone.freedom <= 18
    assert apart.error > 0.03 and apart.freedom > 100
    constant = unpaired_log_ratio(np.full(5, 1.2), np.ones(5), 0.03)
    assert (constant.estimate, constant.error) == pytest.approx((math.log(1.2), 0.03))
    assert constant.upper(0.05) == pytest.approx(math.log(1.2) + 1.645 * 0.03, abs=1e-4)


def test_no_number_of_rounds_averages_a_restless_machine_away() -> None:
    rng = np.random.default_rng(5)
    many = [rounds(rng, 2000, noise=0.1) for _ in range(2)]
    ruined = [np.where(np.arange(2000) % 20 == 0, 5 * one, one) for one in many]  # 1 in 20
    for runs in (many, ruined):
        apart = unpaired_log_ratio(*runs, 0.0)
        assert apart.error == pytest.approx(0.25 * 0.1 * math.sqrt(2), rel=0.15)
    assert paired_log_ratio(many[0], np.ones(2000)).error < 0.005  # of one run: they do


def test_equal_measurements_are_judged_equally() -> None:
    times = rounds(np.random.default_rng(6), 10)
    assert paired_log_ratio(times, times[::-1]) == paired_log_ratio(times, times[::-1])
