from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

from pipeline.accuracy.paired import holm, mcnemar, mcnemar_power
from pipeline.latency.statistics import (
    paired_log_ratio,
    unpaired_log_ratio,
)


def rounds(rng: np.random.Generator, count: int, noise: float = 0.02) -> np.ndarray:
    """Latencies of 1 ms but for their noise."""
    return np.exp(rng.normal(0, noise, count))


@pytest.mark.parametrize("p", [0.6, 0.975, 0.9997])
def test_student_quantiles_are_those_of_the_closed_forms(p: float) -> None:
    assert student_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)))
    a = 2 * p - 1
    assert student_quantile(p, 2) == pytest.approx(a * math.sqrt(2 / (1 - a * a)))
    assert student_quantile(1 - p, 7) == pytest.approx(-student_quantile(p, 7))
    assert student_quantile(p, math.inf) == NormalDist().inv_cdf(p)
    assert student_quantile(p, 1000) == pytest.approx(student_quantile(p, 1001), rel=0.005)


@pytest.mark.parametrize(
    ("degrees", "table"), [(3, 3.182), (4, 2.776), (9, 2.262), (10, 2.228), (29, 2.045)]
)
def test_student_quantiles_are_those_of_the_tables(degrees: int, table: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(table, abs=5e-4)
    assert student_quantile(0.975, degrees + 0.9) == student_quantile(0.975, degrees)


def test_student_needs_a_degree_of_freedom() -> None:
    with pytest.raises(ValueError, match="degree of freedom"):
        student_quantile(0.9, 0)


@pytest.mark.parametrize("flips", range(9))
def test_mcnemar_is_what_counting_all_equally_likely_flips_gives(flips: int) -> None:
    losses = [sum(lost) for lost in itertools.product((0, 1), repeat=flips)]
    for lost in range(flips + 1):
        distance = abs(lost - flips / 2)
        as_far = sum(abs(other - flips / 2) >= distance for other in losses)
        assert mcnemar(lost, flips - lost) == pytest.approx(as_far / len(losses))


def test_mcnemar_keeps_its_level() -> None:
    for flips in (5, 20, 101):
        chance = [math.comb(flips, lost) / 2**flips for lost in range(flips + 1)]
        for level in (0.05, 0.01, 0.0003):
            alarms = sum(p for lost, p in enumerate(chance) if mcnemar(lost, flips - lost) <= level)
            assert alarms <= level


def test_many_flips_are_close_to_the_normal_distribution() -> None:
    z = (5150 - 4850 - 1) / math.sqrt(10_000)
    assert mcnemar(5150, 4850) == pytest.approx(2 * NormalDist().cdf(-z), rel=0.01)


def test_the_power_is_the_share_of_losses_that_the_test_finds() -> None:
    images, share, loss, level = 2000, 0.06, 0.02, 0.01
    rng = np.random.default_rng(5)
    chances = [(share + loss) / 2, (share - loss) / 2, 1 - share]
    drawn = rng.multinomial(images, chances, size=3000)
    found = {(a, b): mcnemar(a, b) <= level for a, b in {(a, b) for a, b, _ in drawn.tolist()}}
    simulated = np.mean([found[a, b] for a, b, _ in drawn.tolist()])
    power = mcnemar_power(images, round(share * images), loss, level)
    assert 0.5 < power < 0.99
    assert power == pytest.approx(simulated, abs=4 * math.sqrt(0.25 / 3000))


def test_power_grows_with_the_loss_and_the_images_and_shrinks_with_the_flips() -> None:
    power = mcnemar_power(10_000, 300, 0.005, 0.01)
    assert mcnemar_power(10_000, 300, 0.01, 0.01) > power > mcnemar_power(10_000, 300, 0.002, 0.01)
    assert mcnemar_power(40_000, 1200, 0.005, 0.01) > power > mcnemar_power(2_500, 75, 0.005, 0.01)
    assert mcnemar_power(10_000, 150, 0.005, 0.01) > power > mcnemar_power(10_000, 600, 0.005, 0.01)
    assert mcnemar_power(10_000, 300, 0.005, 0.05) > power
    assert mcnemar_power(10_000, 300, 0.0, 0.01) <= 0.01
    assert mcnemar_power(10_000, 0, 0.0, 0.01) == 0.0
    assert mcnemar_power(10_000, 0, 0.005, 0.01) == pytest.approx(1)  # whatever flips is lost


def test_holm_multiplies_the_smallest_by_all_and_never_decreases() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.7, 0.6]) == (1.0, 1.0)
    assert holm([0.03]) == (0.03,) and holm([]) == ()


def test_holm_keeps_the_level_over_all_tests() -> None:
    rng = np.random.default_rng(2)
    alarms = [min(holm(rng.random(20).tolist())) <= 0.05 for _ in range(2000)]
    assert np.mean(alarms) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


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
