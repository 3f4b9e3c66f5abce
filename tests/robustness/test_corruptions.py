"""Corruptions against closed forms, and independent computations in colorsys, SciPy and NumPy."""

from __future__ import annotations

import colorsys
import io
import itertools
import math

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kstest

from pipeline.robustness import corruptions
from pipeline.robustness.corruptions import CORRUPTIONS, Table, corrupt, plasma

STRENGTHS = range(1, 6)
SHAPES = ((6, 28, 28, 1), (4, 32, 32, 3), (3, 64, 64, 3), (2, 224, 224, 3))

each = pytest.mark.parametrize("name", CORRUPTIONS)


def drawn(*shape: int) -> np.ndarray:
    """Smooth images with some noise, as photos have it."""
    rng = np.random.default_rng(0)
    n, height, width, channels = shape
    waves = np.sin(np.linspace(0, 5, height))[:, None] * np.cos(np.linspace(0, 4, width))
    images = 128 + 80 * waves[None, :, :, None] * rng.uniform(0.5, 1, (n, 1, 1, channels))
    return (images + rng.normal(0, 6, shape)).clip(0, 255).astype(np.uint8)


def changed(name: str, images: np.ndarray, strength: int, seed: int = 1) -> np.ndarray:
    return corrupt(name, images, strength, seed=seed, numbers=np.arange(len(images)))


def constant(value: int, side: int = 32, channels: int = 1) -> np.ndarray:
    return np.full((1, side, side, channels), value, np.uint8)


@each
@pytest.mark.parametrize("shape", SHAPES)
def test_all_sizes_and_channels_come_back_changed_and_of_their_shape(
    name: str, shape: tuple[int, ...]
) -> None:
    images = drawn(*shape)
    before = images.copy()
    for strength in (1, 5):
        found = changed(name, images, strength)
        assert found.dtype == np.uint8 and found.shape == shape
        assert all((one != image).any() for one, image in zip(found, images, strict=True))
    assert np.array_equal(images, before)


@each
def test_a_stronger_corruption_is_farther_from_the_image(name: str) -> None:
    for shape in SHAPES:
        images = drawn(40 if shape[1] < 100 else 4, *shape[1:])
        errors = [
            np.square(changed(name, images, strength).astype(float) - images).mean()
            for strength in STRENGTHS
        ]
        if name != "shift":  # the direction is random, and a wave may come back
            assert all(b > a for a, b in itertools.pairwise(errors)), (shape, errors)


@each
def test_an_image_is_changed_alike_in_any_batch_and_by_its_seed_alone(name: str) -> None:
    images = drawn(8, 28, 28, 1)
    whole = changed(name, images, 3)
    parts = [
        corrupt(name, images[some], 3, seed=1, numbers=some)
        for some in (np.array([5, 2]), np.array([0, 1, 3, 4, 6, 7]))
    ]
    assert np.array_equal(whole[[5, 2]], parts[0])
    assert np.array_equal(whole[[0, 1, 3, 4, 6, 7]], parts[1])
    random = name in ("noise", "fog", "shift")
    assert np.array_equal(whole, changed(name, images, 3, seed=2)) != random


def test_tables_hold_the_published_values_at_their_sizes_and_lie_between_elsewhere() -> None:
    table = Table((1, 1, 1, 1, 1), (4, 4, 4, 4, 4))
    assert (table.at(1, 32), table.at(1, 224)) == pytest.approx((1, 4))
    assert (table.at(1, 28), table.at(1, 512)) == pytest.approx((1, 4))
    assert table.at(1, round((32 * 224) ** 0.5)) == pytest.approx(2, rel=0.01)
    length = Table((1, 1, 1, 1, 1), (4, 4, 4, 4, 4), length=True)
    assert (length.at(1, 16), length.at(1, 448)) == pytest.approx((0.5, 8))


def test_noise_is_normal_with_the_standard_deviation_of_the_table() -> None:
    found = changed("noise", np.repeat(constant(128), 64, axis=0), 3).astype(float) - 128
    scale = 255 * 0.08
    assert found.std() == pytest.approx(scale, rel=0.02)
    jitter = np.random.default_rng(0).uniform(-0.5, 0.5, found.size)  # undoes the rounding
    assert kstest((found.ravel() + jitter) / scale, "norm").pvalue > 1e-3


def test_a_blurred_point_is_the_product_of_two_sampled_gaussians() -> None:
    image = constant(0)
    image[0, 16, 12] = 255
    sigma = 1.0
    line = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    line /= line.sum()
    expected = np.zeros((32, 32))
    expected[12:21, 8:17] = 255 * np.outer(line, line)
    found = changed("blur", image, 5)[0, :, :, 0].astype(float)
    assert np.abs(found - expected).max() <= 0.5 + 1e-3
    assert np.array_equal(changed("blur", constant(77), 5), constant(77))


def test_brightness_raises_the_value_and_keeps_hue_and_saturation() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    image[0, 0, 0] = 0
    found = changed("brightness", image, 5)
    for place in itertools.product(range(32), range(0, 32, 7)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[0][place] / 255))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3))
        assert np.abs(found[0][place] - 255 * np.array(expected)).max() <= 0.5 + 1e-3
    grey = changed("brightness", constant(100), 3)
    assert np.array_equal(grey, constant(138))  # 100 + 0.15 * 255


def test_contrast_shrinks_each_channel_towards_its_own_mean() -> None:
    image = drawn(2, 32, 32, 3)
    found = changed("contrast", image, 3).astype(float)
    for n, channel in itertools.product(range(2), range(3)):
        own = image[n, ..., channel].astype(float)
        expected = own.mean() + 0.4 * (own - own.mean())
        assert np.abs(found[n, ..., channel] - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(("strength", "quality"), [(1, 80), (5, 40)])
def test_jpeg_rounds_the_mean_of_a_block_to_its_quantizer(strength: int, quality: int) -> None:
    """A constant block has one coefficient, 8 (x - 128), whose step at quality 50 is 16."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    step = (16 * scale + 50) // 100
    for value in range(0, 256, 5):
        steps = 8 * (value - 128) / step
        away = math.copysign(math.floor(abs(steps) + 0.5), steps)  # as libjpeg rounds halves
        found = changed("jpeg", constant(value), strength)
        assert np.ptp(found) == 0
        assert abs(float(found[0, 0, 0, 0]) - np.clip(128 + away * step / 8, 0, 255)) <= 0.5


def test_jpeg_is_pillows_at_the_published_quality() -> None:
    image = drawn(1, 224, 224, 3)
    file = io.BytesIO()
    Image.fromarray(image[0]).save(file, "JPEG", quality=7)
    assert np.array_equal(changed("jpeg", image, 5)[0], np.asarray(Image.open(file)))


def test_a_pixelated_image_has_blocks_with_their_means() -> None:
    """At 224 pixels and strength 5, 56 blocks of 4 are left of each side."""
    image = drawn(1, 224, 224, 3)
    means = image[0].reshape(56, 4, 56, 4, 3).mean(axis=(1, 3))
    found = changed("pixelate", image, 5)[0].reshape(56, 4, 56, 4, 3)
    assert np.ptp(found, axis=(1, 3)).max() == 0
    assert np.abs(found[:, 0, :, 0] - means).max() <= 1  # Pillow rounds after each direction


def slow_plasma(noise: np.ndarray, decay: float) -> np.ndarray:
    """The diamond-square algorithm point by point."""
    size = len(noise)
    heights = np.zeros((size, size))
    step, amplitude = size, 1.0
    while step >= 2:
        half = step // 2
        for y, x in itertools.product(range(half, size, step), repeat=2):
            corners = [heights[(y + a) % size, (x + b) % size]
                       for a, b in itertools.product((-half, half), repeat=2)]  # fmt: skip
            heights[y, x] = np.mean(corners) + amplitude * noise[y, x]
        for y, x in itertools.product(range(0, size, half), repeat=2):
            if (y // half + x // half) % 2:
                near = [heights[(y + a) % size, (x + b) % size]
                        for a, b in ((-half, 0), (half, 0), (0, -half), (0, half))]  # fmt: skip
                heights[y, x] = np.mean(near) + amplitude * noise[y, x]
        step, amplitude = half, amplitude / decay**2
    heights -= heights.min()
    return heights / heights.max()


def test_plasma_is_the_diamond_square_algorithm() -> None:
    noise = np.random.default_rng(3).uniform(-1, 1, (2, 16, 16))
    for decay in (1.4, 3):
        found = plasma(noise, decay)
        for one, its in zip(found, noise, strict=True):
            assert np.allclose(one, slow_plasma(its, decay))


def test_fog_covers_a_grey_image_between_its_limits() -> None:
    """(x + t f) m / (m + t) with f in [0, 1]: from m² / (m + t) to m where x is m."""
    found = changed("fog", constant(204), 5).astype(float)
    low = 255 * 0.8 * 0.8 / (0.8 + 1.5)
    assert found.min() == pytest.approx(low, abs=0.5) and found.max() == 204
    assert np.array_equal(changed("fog", constant(0), 5), constant(0))


def test_a_shift_moves_by_its_share_of_the_side_and_repeats_the_border() -> None:
    image = drawn(20, 32, 32, 3)
    for strength in STRENGTHS:
        distance = corruptions.SHIFT * strength * 32
        for one, original in zip(changed("shift", image, strength), image, strict=True):
            padded = np.pad(original, ((8, 8), (8, 8), (0, 0)), mode="edge")
            moves = [
                (a, b)
                for a, b in itertools.product(range(-8, 9), repeat=2)
                if np.array_equal(one, padded[8 - a : 40 - a, 8 - b : 40 - b])
            ]
            assert len(moves) == 1
            assert np.hypot(*moves[0]) == pytest.approx(distance, abs=0.75)
