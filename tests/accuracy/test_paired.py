from __future__ import annotations

import itertools
import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.accuracy.paired import (
    fewest_lost,
    holm,
    mcnemar,
    mcnemar_power,
    most_lost,
    paired_limits,
    sign_flips,
    too_few,
)


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


@pytest.mark.parametrize("level", [0.3, 0.05, 0.01, 3e-4, 1e-12, 1e-20])
@pytest.mark.parametrize("images", [1, 7, 40, 100])
def test_the_power_is_the_sum_over_all_that_can_flip(images: int, level: float) -> None:
    """With few images the grid holds every number of flips, and the sum can be taken exactly."""
    flips, loss = max(1, images // 3), 0.1
    share = max(flips / images, loss)
    lost = (share + loss) / (2 * share)

    def chance(n: int, k: int, p: float) -> float:
        return math.comb(n, k) * p**k * (1 - p) ** (n - k)

    def tail(n: int, k: int) -> Fraction:
        return Fraction(sum(math.comb(n, i) for i in range(k, n + 1)), 2**n)

    expected = sum(
        chance(images, n, share) * chance(n, k, lost)
        for n in range(images + 1)
        for k in range(n + 1)
        if 2 * tail(n, k) <= level
    )
    assert mcnemar_power(images, flips, loss, level) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_power_at_the_ends() -> None:
    assert mcnemar_power(100, 0, 0.0, 0.01) == 0.0  # nothing flips
    assert mcnemar_power(2000, 2000, 1.0, 0.01) == pytest.approx(1)  # every image is lost
    # as it is at a level whose bound lies far in the tail, where a test still can find it
    assert mcnemar_power(2000, 2000, 1.0, 1e-300) == pytest.approx(1)
    assert mcnemar_power(3, 3, 1.0, 0.2) == 0.0  # three losses have p = 1/4
    assert mcnemar_power(3, 3, 1.0, 0.25) == pytest.approx(1)


def test_without_flips_there_is_no_difference() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(20, 0) == mcnemar(0, 20) == pytest.approx(2 * 2.0**-20)
    assert 0 <= mcnemar(5000, 0) < 1e-300


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


def test_a_split_that_cannot_show_the_loss_is_told_with_the_images_that_it_takes() -> None:
    assert fewest_lost(0.05) == 6 and mcnemar(6, 0) <= 0.05 < mcnemar(5, 0)
    for level in (1.0, 0.5, 0.05, 0.01, 2 / 2**9):
        fewest = fewest_lost(level)
        assert mcnemar(fewest, 0) <= level and (fewest == 1 or mcnemar(fewest - 1, 0) > level)
    assert too_few("val", 4000, 0.05, 0.0015, "x") is None
    told = too_few("val", 3999, 0.05, 0.0015, "quantize.max_drop")
    assert told == (
        "val has 3,999 images, too few to decide quantize.max_drop (0.0015): a loss of fewer than "
        "6 of them cannot be told from chance; it takes 4,000 images"
    )
    assert "any loss cannot be told" in str(too_few("test", 5, 0.05, 0.01, "x"))
    assert "it takes" not in str(too_few("test", 10**9, 0.05, 0.0, "x"))


def test_the_chance_of_one_class_is_the_binomial_tail() -> None:
    lost, won, images = np.array([9]), np.array([1]), np.array([50])
    tail = sum(math.comb(10, k) for k in (9, 10)) / 2**10
    assert most_lost(lost, won, images, 0.1) == (0, pytest.approx(tail))
    assert most_lost(won, lost, images, 0.1) == (None, 1.0)
    assert most_lost(lost, won, images, 0.2) == (None, 1.0)  # 8 of 50 are less


def test_classes_with_few_flips_add_nothing_to_the_chance() -> None:
    lost, won = np.array([12, 1, 0, 3]), np.array([0, 1, 0, 0])
    images = np.full(4, 20)
    assert most_lost(lost, won, images, 0.1) == (0, pytest.approx(2.0**-12))
    lost[3] = 12
    assert most_lost(lost, won, images, 0.1) == (0, pytest.approx(2 * 2.0**-12))


@pytest.mark.parametrize(("classes", "images"), [(10, 1000), (1000, 10), (1000, 50)])
def test_equal_classifiers_raise_no_more_alarms_than_the_level(classes: int, images: int) -> None:
    """A/A: answers flip either way alike; with so small a level, next to none of 300 alarms."""
    random, level, alarms = np.random.default_rng(0), 0.05, 0
    for _ in range(300):
        flips = random.binomial(images, 0.06, classes)
        lost = random.binomial(flips, 0.5)
        _, chance = most_lost(lost, flips - lost, np.full(classes, images), 0.0)
        alarms += chance <= level
    assert binomtest(alarms, 300, level, alternative="greater").pvalue > 0.01


def test_a_collapse_of_one_class_in_a_thousand_is_found() -> None:
    random, found = np.random.default_rng(1), 0
    for _ in range(50):
        flips = random.binomial(50, 0.06, 1000)
        lost = random.binomial(flips, 0.5)
        flips[7] = lost[7] = 25  # half of its recall
        worst, chance = most_lost(lost, flips - lost, np.full(1000, 50), 0.1)
        found += worst == 7 and chance <= 0.01 / 54
    assert found == 50


def test_the_sign_flip_test_of_differences_of_one_is_mcnemars() -> None:
    for lost, won in ((0, 0), (7, 3), (12, 12), (0, 9), (1, 40)):
        differences = np.array([-1] * lost + [1] * won + [0] * 5)
        assert sign_flips(differences) == pytest.approx(mcnemar(lost, won))


@pytest.mark.parametrize("seed", range(4))
def test_the_sign_flip_test_counts_all_signs(seed: int) -> None:
    differences = np.random.default_rng(seed).integers(-9, 12, 11)
    signs = np.array(list(itertools.product((-1, 1), repeat=11)))
    extreme = np.abs(signs @ differences) >= abs(differences.sum())
    assert sign_flips(differences) == pytest.approx(extreme.mean())


def test_the_sign_flip_test_keeps_its_level_where_nothing_changed() -> None:
    rng = np.random.default_rng(0)
    found = [
        sign_flips(rng.binomial(24, share) - rng.binomial(24, share))
        for share in rng.beta(2, 1, (400, 200))
    ]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.025)


def test_paired_limits_are_those_of_a_worked_example_and_of_the_bootstrap() -> None:
    """Agresti and Min (2005) add 1/2 to each cell: (c - b)/(n + 2) with its Wald interval."""
    low, high = paired_limits(lost=10, won=20, images=100)
    b, c, n = 10.5, 20.5, 102
    middle, spread = (c - b) / n, ((b + c - (c - b) ** 2 / n) ** 0.5) / n
    assert (low, high) == pytest.approx((middle - 1.959964 * spread, middle + 1.959964 * spread))
    flips = np.repeat([-1, 1, 0], [300, 400, 9300])
    random = np.random.default_rng(0)
    changes = [random.choice(flips, 10_000).mean() for _ in range(800)]
    assert paired_limits(300, 400, 10_000) == pytest.approx(
        np.quantile(changes, [0.025, 0.975]), abs=5e-4
    )


def test_paired_limits_know_that_few_images_say_little() -> None:
    low, high = paired_limits(0, 0, 20)
    assert low < 0 < high and paired_limits(0, 1, 1)[1] <= 1
