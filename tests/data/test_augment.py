"""The parts of a view, each decided by the draws that it is given."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.core.patches import import_torchvision
from pipeline.data.augment import (
    WHOLE,
    crop_boxes,
    cutmix,
    cutmix_boxes,
    erase,
    erase_boxes,
    flip_and_shift,
    kept,
    mixup,
    resized_crop,
)

import_torchvision()
from torchvision.transforms.v2 import functional as F  # noqa: E402


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def noise(n: int, height: int = 12, width: int = 9, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    shape = (n, height, width, channels)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def uniform(n: int, count: int) -> np.ndarray:
    return np.random.default_rng(3).random((n, count), dtype=np.float32)


def corners(count: int) -> np.ndarray:
    """The smallest and the largest draw, in every combination."""
    last = np.nextafter(np.float32(1), np.float32(0))
    return np.stack(np.meshgrid(*[[np.float32(0), last]] * count), -1).reshape(-1, count)


def area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def fits(boxes: np.ndarray, height: int, width: int) -> bool:
    top, left, bottom, right = boxes.T
    in_rows, in_columns = (top >= 0) & (bottom <= height), (left >= 0) & (right <= width)
    return bool((in_rows & in_columns & (top <= bottom) & (left <= right)).all())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_shift_moves_by_whole_pixels_and_repeats_the_border(channels: int) -> None:
    draws = [(flip, y, x) for flip in (False, True) for y in range(-3, 4) for x in range(-3, 4)]
    images = noise(len(draws), channels=channels)
    before = images.clone()
    flips = torch.tensor([flip for flip, _, _ in draws])
    moved = flip_and_shift(images, flips, torch.tensor([place for _, *place in draws]))
    assert torch.equal(images, before)
    for image, source, (flip, y, x) in zip(moved, images.numpy(), draws, strict=True):
        source = source[:, ::-1] if flip else source
        padded = np.pad(source, ((3, 3), (3, 3), (0, 0)), mode="edge")
        # After a mirroring, to read further right is to read further left in the source.
        x = -x if flip else x
        assert np.array_equal(image, padded[3 + y : 15 + y, 3 + x : 12 + x])


def test_a_crop_is_torchvision_s_bilinear_one_to_a_grey_level() -> None:
    images = noise(200, 33, 20)
    boxes = crop_boxes(uniform(200, 4), 0.1, 33, 20)
    for image, cropped, box in zip(
        images, resized_crop(images, torch.from_numpy(boxes)), boxes.tolist(), strict=True
    ):
        top, left, bottom, right = box
        expected = F.resized_crop(
            image.permute(2, 0, 1), top, left, bottom - top, right - left, [33, 20], antialias=False
        ).permute(1, 2, 0)
        assert (cropped.int() - expected.int()).abs().max() <= 1


def test_a_crop_has_the_size_that_is_asked_for() -> None:
    images = noise(50, 33, 20)
    boxes = crop_boxes(uniform(50, 4), 0.5, 33, 20)
    found = resized_crop(images, torch.from_numpy(boxes), (25, 16))
    for image, cropped, (top, left, bottom, right) in zip(
        images, found, boxes.tolist(), strict=True
    ):
        expected = F.resized_crop(
            image.permute(2, 0, 1), top, left, bottom - top, right - left, [25, 16], antialias=False
        ).permute(1, 2, 0)
        assert (cropped.int() - expected.int()).abs().max() <= 1


def test_a_crop_of_all_is_the_image_and_of_one_pixel_its_colour() -> None:
    images = noise(5)
    assert torch.equal(resized_crop(images, torch.tensor([[0, 0, 12, 9]] * 5)), images)
    pixel = resized_crop(images, torch.tensor([[11, 8, 12, 9]] * 5))
    assert torch.equal(pixel, images[:, 11:, 8:].expand_as(images))


def test_a_crop_leaves_a_constant_image() -> None:
    images = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 12, 9, 3)
    boxes = torch.from_numpy(crop_boxes(uniform(256, 4), 0.05, 12, 9))
    assert torch.equal(resized_crop(images, boxes), images)


def test_a_crop_keeps_a_uniform_share_of_the_area() -> None:
    boxes = crop_boxes(uniform(20_000, 4), 0.2, 500, 400)
    share = np.sort(area(boxes) / (500 * 400))
    assert fits(boxes, 500, 400)
    # Kolmogorov and Smirnov: 1.95 / √n is exceeded once in a thousand.
    steps = np.linspace(0.2, 1, len(share))
    assert np.abs(share - steps).max() < 0.8 * 1.95 / math.sqrt(len(share)) + 0.004
    aspect = ((boxes[:, 3] - boxes[:, 1]) / 400) / ((boxes[:, 2] - boxes[:, 0]) / 500)
    assert 0.74 < aspect.min() < 0.76 and 1.32 < aspect.max() < 1.345
    assert abs(np.log(aspect).mean()) < 0.01


@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (1, 1), (7, 300)])
def test_the_most_extreme_draws_stay_inside_the_image(height: int, width: int) -> None:
    crops = crop_boxes(corners(4), 0.08, height, width)
    assert fits(crops, height, width) and area(crops).min() >= 1
    assert crops[:, :2].min() == 0 and np.array_equal(crops[:, 2:].max(0), [height, width])
    erased = erase_boxes(corners(5), 0.5, height, width)
    assert fits(erased, height, width)
    assert np.array_equal(erased[:, 2:].max(0), [height, width])
    cut = cutmix_boxes(corners(1)[:, 0].repeat(4), np.tile(corners(2), (2, 1)), height, width)
    assert fits(cut, height, width)


def test_erasing_takes_2_to_25_percent_of_the_chosen_share_of_samples() -> None:
    draws = uniform(20_000, 5)
    boxes = erase_boxes(draws, 0.3, 400, 400)
    assert fits(boxes, 400, 400)
    chosen = area(boxes) > 0
    assert np.array_equal(chosen, draws[:, 0] < 0.3)
    share = area(boxes)[chosen] / 400**2
    # A side is rounded by half a pixel at most, of 31 pixels at least.
    assert 0.02 * (1 - 1 / 31) ** 2 < share.min() < 0.021
    assert 0.249 < share.max() < 0.25 * (1 + 1 / 31) ** 2
    assert abs(share.mean() - 0.135) < 0.004
    aspect = (boxes[:, 3] - boxes[:, 1])[chosen] / (boxes[:, 2] - boxes[:, 0])[chosen]
    assert 0.28 < aspect.min() < 0.32 and 1 / 0.32 < aspect.max() < 1 / 0.28


def test_erasing_fills_the_box_with_one_colour() -> None:
    images = noise(2)
    colours = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8)
    erased = erase(images, torch.tensor([[2, 3, 7, 9], [0, 0, 0, 0]]), colours)
    assert torch.equal(erased[0, 2:7, 3:9], colours[0].expand(5, 6, 3))
    expected = images.clone()
    expected[0, 2:7, 3:9] = colours[0]
    assert torch.equal(erased, expected)


def test_mixup_is_the_rounded_convex_combination() -> None:
    images, partners = noise(64), noise(128)[64:]
    weights = torch.arange(64) * (WHOLE // 63)
    weights[-1] = WHOLE
    mixed = mixup(images, partners, weights)
    share = (weights.double() / WHOLE)[:, None, None, None]
    exact = share * images.double() + (1 - share) * partners.double()
    assert (mixed.double() - exact).abs().max() <= 0.5
    assert torch.equal(mixed[0], partners[0]) and torch.equal(mixed[-1], images[-1])


def test_cutmix_takes_the_box_from_the_partner() -> None:
    images, partners = noise(2), noise(4)[2:]
    mixed = cutmix(images, partners, torch.tensor([[2, 3, 7, 9], [5, 5, 5, 9]]))
    expected = images.clone()
    expected[0, 2:7, 3:9] = partners[0, 2:7, 3:9]
    assert torch.equal(mixed, expected)


def test_the_share_that_cutmix_keeps_is_counted_in_pixels() -> None:
    draws = uniform(2000, 3)
    boxes = cutmix_boxes(draws[:, 0], draws[:, 1:], 28, 20)
    ones = torch.ones(2000, 28, 20, 1, dtype=torch.uint8)
    own = cutmix(ones, torch.zeros_like(ones), torch.from_numpy(boxes)).flatten(1).sum(1)
    assert np.array_equal(kept(boxes, 28, 20), 1 - (560 - own.numpy()) / 560)


def test_a_cutmix_box_in_the_middle_has_the_asked_share() -> None:
    share = np.linspace(0, 1, 101, dtype=np.float32)
    boxes = cutmix_boxes(share, np.full((101, 2), 0.5, np.float32), 1000, 1000)
    np.testing.assert_allclose(kept(boxes, 1000, 1000), share, atol=0.002)


def test_a_cutmix_box_is_clipped_at_the_border() -> None:
    """Half of each side is outside around a corner: a quarter of the box is left."""
    boxes = cutmix_boxes(np.array([0.36], np.float32), np.zeros((1, 2), np.float32), 100, 100)
    assert boxes.tolist() == [[0, 0, 40, 40]]
    assert kept(boxes, 100, 100).tolist() == [0.84]
