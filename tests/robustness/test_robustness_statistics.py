"""The mean corruption error by hand, and its intervals against SciPy's bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from pipeline.robustness.statistics import mean_accuracy, mean_corruption_error, resample


def test_the_mean_corruption_error_is_the_mean_of_ratios_of_summed_errors() -> None:
    own = np.array([[3, 0, 1, 0], [1, 1, 1, 1]])
    reference = np.array([[1, 0, 1, 0], [2, 2, 2, 2]])
    sums = resample(np.stack([own, reference]))
    found = mean_corruption_error(sums[:, 0], sums[:, 1])
    assert found is not None
    assert found.value == pytest.approx((4 / 2 + 4 / 8) / 2)
    assert mean_accuracy(sums[:, 0], 2 * 3 * 4).value == pytest.approx(1 - 8 / 24)


def test_a_network_is_as_bad_as_itself() -> None:
    sums = resample(np.random.default_rng(0).integers(0, 4, (1, 8, 300)))
    found = mean_corruption_error(sums[:, 0], sums[:, 0])
    assert found is not None and (found.value, found.low, found.high) == (1, 1, 1)


def test_the_limits_are_those_of_scipys_bootstrap() -> None:
    rng = np.random.default_rng(1)
    hard = rng.beta(0.5, 1, 400)
    errors = rng.binomial(3, hard, (2, 4, 400))
    sums = resample(errors)

    def ratio(own: np.ndarray, its: np.ndarray, axis: int = -1) -> np.ndarray:
        return (own.sum(axis) / its.sum(axis)).mean(0)

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return ratio(errors[0][:, index], errors[1][:, index], axis)

    theirs = bootstrap(
        (np.arange(400),), statistic, method="percentile", n_resamples=4000, rng=rng,
        vectorized=True, axis=-1,
    ).confidence_interval  # fmt: skip
    found = mean_corruption_error(sums[:, 0], sums[:, 1])
    assert found is not None and found.low is not None and found.high is not None
    width = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.1 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.1 * width)


def test_a_reference_without_errors_gives_no_ratio_and_one_with_few_no_limits() -> None:
    own = np.ones((1, 8), int)
    none, few = np.zeros((1, 8), int), np.eye(1, 8, dtype=int)
    sums = resample(np.stack([own, none, few]))
    assert mean_corruption_error(sums[:, 0], sums[:, 1]) is None
    found = mean_corruption_error(sums[:, 0], sums[:, 2])
    assert found is not None and (found.value, found.low, found.high) == (8, None, None)
