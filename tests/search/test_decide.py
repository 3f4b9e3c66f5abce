"""Who trains on, and when a target is met: against closed forms and plain definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.search.decide import front, lower_bound, promoted

VALUES = st.lists(st.floats(0, 1), max_size=20)


def test_the_first_candidate_always_trains_on() -> None:
    assert promoted(0.0, [], keep=3)


@given(own=st.floats(0, 1), others=VALUES, keep=st.floats(1.1, 10))
def test_one_of_so_many_trains_on_and_the_best_always(
    own: float, others: list[float], keep: float
) -> None:
    every = sorted([own, *others], reverse=True)
    assert promoted(own, others, keep) == (own >= every[math.ceil(len(every) / keep) - 1])
    assert promoted(max(every), others, keep)


def test_the_bound_of_one_seed_is_that_of_its_images() -> None:
    bound = lower_bound([0.9], 4800)
    assert bound.mean == 0.9
    assert bound.lower == pytest.approx(0.9 - 1.6449 * math.sqrt(0.9 * 0.1 / 4800), abs=1e-5)


def test_seeds_that_differ_make_the_bound_wider() -> None:
    alike, unlike = lower_bound([0.9, 0.9, 0.9], 4800), lower_bound([0.88, 0.9, 0.92], 4800)
    assert alike.mean == pytest.approx(unlike.mean)
    assert alike.lower == pytest.approx(lower_bound([0.9], 4800).lower)
    assert unlike.lower < alike.lower


def test_the_bound_lies_below_the_truth_as_often_as_it_says() -> None:
    """Simulated: seeds around a true accuracy, each on the same images."""
    random, truth, images, inside = np.random.default_rng(0), 0.9, 2000, 0
    for _ in range(2000):
        hard = random.random(images)  # an image is right where this is below the seed's skill
        seeds = [np.mean(hard < skill) for skill in random.normal(truth, 0.004, 5)]
        inside += lower_bound(seeds, images).lower <= truth
    assert 0.93 < inside / 2000 < 0.98


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=15))
def test_the_front_holds_those_that_no_other_beats(points: list[tuple[float, float]]) -> None:
    kept = [points[i] for i in front(points)]
    assert len(set(kept)) == len(kept)
    for cost, value in points:
        beaten = any((c <= cost and v >= value) and (c, v) != (cost, value) for c, v in points)
        assert ((cost, value) in kept) == (not beaten)
