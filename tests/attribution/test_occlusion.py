"""Occlusion maps and removal curves of models whose answers are known in closed form."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.attribution.occlusion import (
    Sample,
    area,
    look,
    removal,
    removal_areas,
    score,
)
from pipeline.attribution.places import patches, spread, strips
from pipeline.core.errors import PipelineError
from pipeline.export.evaluate import Runner

RNG = np.random.default_rng(3)


def sample(count: int, size: int, channels: int, grid: int = 4, patch: float = 0.25) -> Sample:
    images = RNG.integers(0, 256, (2 * count, size, size, channels)).astype(np.uint8)
    places = np.sort(RNG.permutation(2 * count)[:count])
    fill = RNG.integers(0, 256, images.shape[1:]).astype(np.uint8)
    labels = np.zeros(count, np.int64)
    return Sample(images, places, labels, fill, strips(size, grid, patch))


def linear(weights: NDArray[np.float64]) -> Runner:
    """Logits [N, C]: the sum of the pixels, weighted by [C, H, W, channels]."""
    flat = weights.reshape(len(weights), -1)

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float64] = pixels.reshape(len(pixels), -1).astype(float) @ flat.T
        return logits.astype(np.float32)

    return run


@pytest.mark.parametrize(("size", "channels"), [(12, 1), (17, 3)])
def test_the_map_of_a_linear_model_is_its_weights_times_what_was_hidden(
    size: int, channels: int
) -> None:
    """Hiding a patch takes w · (x - fill) of its pixels from a logit, and so from the mean."""
    its, classes = sample(5, size, channels), 4
    weights = RNG.normal(size=(classes, size, size, channels)) / 100
    looked = look(linear(weights), its, None, "linear")
    hidden = patches(its.strips)
    for i, place in enumerate(its.places):
        image = its.images[place].astype(float)
        answer = int((weights * image).sum(axis=(1, 2, 3)).argmax())
        assert looked.answers[i] == answer
        above = weights[answer] - weights.mean(axis=0)
        change = (above * (image - its.fill)).sum(axis=-1)
        expected = [change[patch].sum() for patch in hidden]
        assert looked.maps[i].ravel() == pytest.approx(expected, abs=1e-3)


def test_all_maps_are_about_the_class_that_is_asked_for() -> None:
    its = sample(4, 12, 1)
    weights = RNG.normal(size=(3, 12, 12, 1)) / 100
    run = linear(weights)
    targets = np.array([2, 0, 1, 2])
    opposite = look(linear(-weights), its, targets, "")
    assert look(run, its, targets, "").maps == pytest.approx(-opposite.maps, abs=1e-3)


def test_two_classes_have_opposite_maps() -> None:
    its = sample(3, 12, 1)
    run = linear(RNG.normal(size=(2, 12, 12, 1)) / 100)
    first, second = (look(run, its, np.full(3, c), "").maps for c in (0, 1))
    assert first == pytest.approx(-second)


def test_an_offset_of_all_logits_changes_no_score() -> None:
    logits = RNG.normal(size=(6, 5)).astype(np.float32)
    assert score(logits + np.float32(4), 2) == pytest.approx(score(logits, 2), abs=1e-5)


def test_a_model_that_sees_nothing_has_a_map_of_zeros() -> None:
    """Also where the order of float32 sums makes its logits differ in the last bits."""
    its = sample(3, 12, 3)

    def blind(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        noise = pixels.reshape(len(pixels), -1)[:, :3] / np.float32(255)
        return (np.float32([7.0, -2.0, 1.0]) + 1e-6 * noise).astype(np.float32)

    assert not look(blind, its, None, "").maps.any()


def test_an_image_that_is_the_fill_has_a_map_of_zeros() -> None:
    its = sample(2, 12, 1)
    its.images[its.places[0]] = its.fill
    looked = look(linear(RNG.normal(size=(3, 12, 12, 1))), its, None, "")
    assert not looked.maps[0].any() and looked.maps[1].any()


def test_memory_is_that_of_one_image_however_many_there_are() -> None:
    """64 views of a photo of 224 pixels, and their logits."""
    its = sample(3, 224, 3, grid=8)
    many = Sample(its.images, np.zeros(12, np.int64), np.zeros(12, np.int64), its.fill, its.strips)

    def bright(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert pixels.shape[1:] == (224, 224, 3) and len(pixels) <= 10
        return pixels[:, ::32, ::32, :].mean(axis=(1, 2)).astype(np.float32)

    peaks = []
    for part in (its, many):
        tracemalloc.start()
        look(bright, part, None, "")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 60e6


@pytest.mark.parametrize(("size", "grid", "share"), [(28, 8, 0.25), (224, 14, 0.1), (9, 4, 0.25)])
def test_every_pixel_belongs_to_a_patch_and_the_positions_are_even(
    size: int, grid: int, share: float
) -> None:
    along = strips(size, grid, share)
    assert along.shape == (grid, size) and along.any(axis=0).all()
    sides = along.sum(axis=1)
    assert len(set(sides)) == 1 and abs(sides[0] - share * size) <= 1
    starts = along.argmax(axis=1)
    steps = {int(b - a) for a, b in pairwise(starts)}
    assert starts[0] == 0 and along[-1, -1] and max(steps) - min(steps) <= 1 and min(steps) >= 1


@pytest.mark.parametrize(
    ("size", "grid", "share"), [(28, 8, 1.0), (28, 8, 0.9), (8, 8, 0.25), (3, 4, 0.5)]
)
def test_a_patch_without_room_for_the_grid_is_an_error(size: int, grid: int, share: float) -> None:
    with pytest.raises(PipelineError, match=r"fewer than the \d of attribution.grid"):
        strips(size, grid, share)


def test_spreading_takes_the_mean_of_all_patches_at_a_pixel() -> None:
    along = strips(20, 4, 0.4)
    values = RNG.normal(size=(4, 4))
    inside = patches(along)
    expected = np.einsum("p,phw->hw", values.ravel(), inside) / inside.sum(axis=0)
    assert spread(values, along) == pytest.approx(expected)
    assert spread(np.ones((4, 4)), along) == pytest.approx(np.ones((20, 20)))


def counting() -> Runner:
    """Two classes; the first has the probability of the share of white pixels."""

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        share = (pixels == 255).mean(axis=(1, 2, 3)).clip(1e-9, 1 - 1e-9)
        odds = np.log(share / (1 - share))
        return np.stack([odds, np.zeros_like(odds)], axis=1).astype(np.float32)

    return run


def white(count: int, size: int) -> Sample:
    """White images; black is what hides."""
    images = np.full((count, size, size, 1), 255, np.uint8)
    numbers = np.arange(count)
    fill = np.zeros((size, size, 1), np.uint8)
    return Sample(images, numbers, numbers, fill, strips(size, 4, 0.25))


@pytest.mark.parametrize("steps", [4, 10, 16])
def test_a_model_that_counts_revealed_pixels_has_areas_of_a_half(steps: int) -> None:
    its = white(3, 20)
    maps = {"any": RNG.normal(size=(3, 4, 4)), "other": RNG.normal(size=(3, 4, 4))}
    found = removal_areas(counting(), its, np.zeros(3, np.int64), maps, steps, "")
    for areas in found.values():
        assert areas.insertion == pytest.approx(0.5, abs=1e-3)
        assert areas.deletion == pytest.approx(0.5, abs=1e-3)


def test_a_map_that_tells_deletes_sooner_and_inserts_sooner_than_its_opposite() -> None:
    """The model sees the upper left quarter alone, whose pixels come first."""
    its = white(2, 20)

    def corner(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return counting()(pixels[:, :10, :10])

    right = np.zeros((2, 4, 4))
    right[:, :2, :2] = 1
    maps = {"right": right, "wrong": -right}
    found = removal_areas(corner, its, np.zeros(2, np.int64), maps, 20, "")
    assert found["right"].deletion == pytest.approx(1 / 8, abs=0.01)
    assert found["right"].insertion == pytest.approx(7 / 8, abs=0.01)
    assert found["wrong"].deletion == pytest.approx(7 / 8, abs=0.01)
    assert found["wrong"].insertion == pytest.approx(1 / 8, abs=0.01)


def test_deletion_and_insertion_hide_what_the_other_leaves() -> None:
    order = RNG.permutation(30)
    deleted, inserted = removal(order, 5)
    assert deleted.sum(axis=1).tolist() == [6, 12, 18, 24]
    assert (deleted ^ inserted).all()
    assert set(np.flatnonzero(deleted[0])) == set(order[:6])


def test_the_area_of_a_line_is_exact() -> None:
    assert area(np.linspace(0.2, 0.8, 7)) == pytest.approx(0.5)
    assert area(np.array([[1, 1, 1], [1, 0, 1]], float)).tolist() == [1, 0.5]
