"""The figures of agreement against closed forms and independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, ttest_rel

from pipeline.attribution.agreement import (
    TOP,
    chance_of_fall,
    constant,
    interval,
    overlap,
    pearson,
    ssim,
    top_positions,
    window,
)

RNG = np.random.default_rng(5)
MAPS = RNG.normal(size=(6, 8, 8)).cumsum(axis=1).cumsum(axis=2)
OTHERS = MAPS + RNG.normal(size=MAPS.shape)
SCIKIT_IMAGE = -0.01676781759563307
"""Of scikit-image 0.26.0, both maps scaled to [0, 1]."""


def test_pearson_is_scipys() -> None:
    expected = [pearsonr(a.ravel(), b.ravel()).statistic for a, b in zip(MAPS, OTHERS, strict=True)]
    assert pearson(MAPS, OTHERS) == pytest.approx(expected)


def test_a_map_agrees_with_itself_and_any_positive_scale_of_it() -> None:
    for scaled in (MAPS, 1e-30 * MAPS + 1e-31, 7e20 * MAPS):
        assert pearson(MAPS, scaled) == pytest.approx(1)
        assert ssim(MAPS, scaled) == pytest.approx(1)
        assert overlap(MAPS, scaled) == pytest.approx(1)
    assert pearson(MAPS, -MAPS) == pytest.approx(-1)


def test_a_constant_map_is_undefined_and_leaves_the_others_alone() -> None:
    broken = MAPS.copy()
    broken[2] = 3.7
    assert constant(broken).tolist() == [False, False, True, False, False, False]
    for figure in (pearson, ssim, overlap):
        for a, b in ((broken, OTHERS), (OTHERS, broken)):
            values = figure(a, b)
            assert np.isnan(values).tolist() == constant(broken).tolist()
            kept = ~constant(broken)
            assert values[kept] == pytest.approx(figure(a[kept], b[kept]))


def test_maps_with_disjoint_tops_do_not_overlap_and_half_shared_ones_by_a_third() -> None:
    a, b, c = np.zeros((3, 1, 10, 10))
    a[0, 0], a[0, 1] = 1, 1
    b[0, 5], b[0, 6] = 1, 1
    c[0, 1], c[0, 2] = 1, 1
    assert overlap(a, b).tolist() == [0] and overlap(a, c)[0] == pytest.approx(1 / 3)


def test_the_top_is_a_fifth_of_the_positions_also_among_equals() -> None:
    tied = np.zeros((1, 10, 10))
    tied[0, 3, 3] = 1
    chosen = top_positions(tied)[0]
    assert chosen.sum() == TOP * 100 and chosen[33] and chosen[:19].all()


def test_unrelated_maps_overlap_by_a_ninth() -> None:
    a, b = RNG.random((2, 4000, 10, 10))
    assert overlap(a, b).mean() == pytest.approx(0.112, abs=0.003)


def slow_ssim(a: np.ndarray, b: np.ndarray, side: int) -> float:
    """The formula of the paper, window by window, with NumPy's own covariance."""
    x, y = ((one - one.min()) / np.ptp(one) for one in (a, b))
    found = []
    for row in range(len(x) - side + 1):
        for column in range(len(x) - side + 1):
            area = np.s_[row : row + side, column : column + side]
            (sxx, sxy), (_, syy) = np.cov(x[area].ravel(), y[area].ravel(), bias=True)
            mx, my = x[area].mean(), y[area].mean()
            top = (2 * mx * my + 1e-4) * (2 * sxy + 9e-4)
            found.append(top / ((mx**2 + my**2 + 1e-4) * (sxx + syy + 9e-4)))
    return float(np.mean(found))


@pytest.mark.parametrize("grid", [4, 8, 15])
def test_ssim_is_that_of_its_paper(grid: int) -> None:
    a, b = RNG.normal(size=(2, 3, grid, grid))
    expected = [slow_ssim(x, y, window(grid)) for x, y in zip(a, b, strict=True)]
    assert ssim(a, b) == pytest.approx(expected)


def test_ssim_is_scikit_images() -> None:
    """`structural_similarity(a, b, win_size=3, data_range=1, use_sample_covariance=False)`."""
    i, j = np.indices((8, 8))
    a, b = np.sin(i + 0.5 * j), np.cos(0.3 * i - 0.7 * j)
    assert ssim(a[None], b[None])[0] == pytest.approx(SCIKIT_IMAGE, abs=1e-9)


def test_the_window_is_odd_and_fits_the_map() -> None:
    sides = {grid: window(grid) for grid in range(4, 33)}
    assert all(side % 2 == 1 and 3 <= side <= min(7, grid) for grid, side in sides.items())
    assert (sides[4], sides[8], sides[14]) == (3, 3, 7)


def test_the_interval_holds_the_mean_and_is_as_wide_as_theory_says() -> None:
    values = RNG.normal(3, 2, 400)
    low, high = interval(values) or (0, 0)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)
    assert interval(values) == (low, high)


def test_one_value_has_no_interval() -> None:
    assert interval(np.array([0.5])) is None
    assert interval(np.array([0.5, 0.5])) == (0.5, 0.5)


def test_the_chance_of_a_fall_is_that_of_the_paired_t_test() -> None:
    before, after = RNG.normal(size=(2, 50))
    expected = ttest_rel(before, after, alternative="greater").pvalue
    assert chance_of_fall(before, after) == pytest.approx(expected)
    assert chance_of_fall(before, before) == 1
    assert chance_of_fall(before, before - 0.125) < 1e-9
    assert chance_of_fall(before, before + 0.125) == 1
    assert chance_of_fall(before[:1], after[:1]) == 1
