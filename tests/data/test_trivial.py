"""TrivialAugment's operations, held against torchvision's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.patches import import_torchvision
from pipeline.data.trivial import LEVELS, NARROW, OPERATIONS, WIDE, Ranges, trivial

import_torchvision()
from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as F  # noqa: E402

ALL_LEVELS = np.arange(1 - LEVELS, LEVELS)
GEOMETRIC = OPERATIONS[1:6]
SIGNED = (*GEOMETRIC, "brightness", "color", "contrast", "sharpness")
EXACT = ("identity", "posterize", "solarize", "equalize")

STRENGTHS: dict[str, Callable[[int], float]] = {
    "shear_x": lambda level: 0.99 * level / 30,
    "shear_y": lambda level: 0.99 * level / 30,
    "translate_x": lambda level: 32 * level / 30,
    "translate_y": lambda level: 32 * level / 30,
    "rotate": lambda level: 135 * level / 30,
    "brightness": lambda level: 0.99 * level / 30,
    "color": lambda level: 0.99 * level / 30,
    "contrast": lambda level: 0.99 * level / 30,
    "sharpness": lambda level: 0.99 * level / 30,
    "posterize": lambda level: round(8 - 6 * level / 30),
    "solarize": lambda level: 1 - level / 30,
}

NARROW_STRENGTHS = STRENGTHS | {
    "shear_x": lambda level: 0.3 * level / 30,
    "shear_y": lambda level: 0.3 * level / 30,
    "translate_x": lambda level: 150 / 331 * 33 * level / 30,
    "translate_y": lambda level: 150 / 331 * 33 * level / 30,
    "rotate": lambda level: float(level),
    "brightness": lambda level: 0.9 * level / 30,
    "color": lambda level: 0.9 * level / 30,
    "contrast": lambda level: 0.9 * level / 30,
    "sharpness": lambda level: 0.9 * level / 30,
    "posterize": lambda level: round(8 - 4 * level / 30),
}
"""For images of 33 pixels."""

Strengths = dict[str, Callable[[int], float]]
RANGES: dict[str, tuple[Ranges, Strengths, Any]] = {
    "wide": (WIDE, STRENGTHS, v2.TrivialAugmentWide),
    "narrow": (NARROW, NARROW_STRENGTHS, v2.RandAugment),
}


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def images(n: int, height: int, width: int, channels: int) -> torch.Tensor:
    """Of every kind: full and little contrast, noise and smooth, one that is constant."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.rand(n, height, width, channels, generator=generator)
    smooth = noise.cumsum(1).cumsum(2)
    smooth = smooth / smooth.amax((1, 2, 3), keepdim=True)
    span = torch.linspace(0, 1, n)[:, None, None, None]
    kind = (torch.arange(n) % 2 == 0)[:, None, None, None]
    return (255 * (0.9 * (1 - span) + span * torch.where(kind, noise, smooth))).to(torch.uint8)


def every_level(name: str, pixels: torch.Tensor, ranges: Ranges = WIDE) -> torch.Tensor:
    return trivial(pixels, np.full(len(pixels), OPERATIONS.index(name)), ALL_LEVELS, ranges)


def reference(
    name: str, image: torch.Tensor, level: int, strengths: Strengths = STRENGTHS
) -> torch.Tensor:
    """What torchvision makes of [H, W, C] at a signed level."""
    image = image.permute(2, 0, 1)
    sign = math.copysign(1, level) if name in SIGNED else 1
    strength = sign * strengths[name](abs(level)) if name in strengths else 0.0
    plain: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    shear = math.degrees(math.atan(strength))
    made = {
        "identity": lambda: image,
        "shear_x": lambda: F.affine(image, **plain | {"shear": [shear, 0.0]}, center=[0, 0]),
        "shear_y": lambda: F.affine(image, **plain | {"shear": [0.0, shear]}, center=[0, 0]),
        "translate_x": lambda: F.affine(image, **plain | {"translate": [int(strength), 0]}),
        "translate_y": lambda: F.affine(image, **plain | {"translate": [0, int(strength)]}),
        "rotate": lambda: F.rotate(image, strength),
        "brightness": lambda: F.adjust_brightness(image, 1 + strength),
        "color": lambda: F.adjust_saturation(image, 1 + strength),
        "contrast": lambda: F.adjust_contrast(image, 1 + strength),
        "sharpness": lambda: F.adjust_sharpness(image, 1 + strength),
        "posterize": lambda: F.posterize(image, int(strength)),
        "solarize": lambda: F.solarize(image, 8.5 * (30 - abs(level))),
        "autocontrast": lambda: F.autocontrast(image),
        "equalize": lambda: F.equalize(image),
    }[name]()
    return made.permute(1, 2, 0)


@pytest.mark.parametrize(("_", "ours", "theirs"), RANGES.values(), ids=RANGES)
def test_the_operations_and_their_levels_are_torchvision_s(
    _: Ranges, ours: Strengths, theirs: Any
) -> None:
    space = {
        name.lower(): (strengths(LEVELS, 33, 33), signed)
        for name, (strengths, signed) in theirs._AUGMENTATION_SPACE.items()
    }
    assert space.keys() == {name.replace("_", "") for name in OPERATIONS}
    for name in OPERATIONS:
        strengths, signed = space[name.replace("_", "")]
        assert signed == (name in SIGNED)
        assert (strengths is None) == (name not in ours)
        if strengths is not None:
            expected = [ours[name](level) for level in range(LEVELS)]
            np.testing.assert_allclose(strengths.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("ranges", "strengths", "_"), RANGES.values(), ids=RANGES)
def test_an_operation_is_torchvision_s_at_every_level(
    name: str, channels: int, ranges: Ranges, strengths: Strengths, _: Any
) -> None:
    """To one grey level where it rounds floats; moved pixels are the same ones.

    A narrow shear by 0.04, 0.12, 0.2 or 0.28 reads whole rows from the very edge between two
    pixels, a rotation by 30 degrees single ones.
    """
    pixels = images(len(ALL_LEVELS), 33, 33, channels)
    results = every_level(name, pixels, ranges)
    for image, changed, level in zip(pixels, results, ALL_LEVELS, strict=True):
        error = (changed.int() - reference(name, image, level, strengths).int()).abs()
        if name.startswith("shear") and ranges is NARROW and abs(level) % 8 == 4:
            assert (error == 0).float().mean() > 0.75
        elif name == "rotate" and ranges is NARROW:
            assert (error == 0).float().mean() > 0.97
        else:
            assert error.max() <= (0 if name in EXACT + GEOMETRIC else 1)


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize(("height", "width"), [(28, 28), (24, 40)])
def test_an_even_size_moves_the_same_pixels_but_for_ties(
    name: str, height: int, width: int
) -> None:
    """At 45 degrees a diagonal is read from the very edge between two pixels."""
    pixels = images(len(ALL_LEVELS), height, width, 1)
    for image, changed, level in zip(pixels, every_level(name, pixels), ALL_LEVELS, strict=True):
        same = (changed == reference(name, image, level)).float().mean()
        assert same > 0.97


def test_every_sample_of_a_batch_gets_its_own_operation_and_level() -> None:
    pixels = images(300, 12, 12, 3)
    random = np.random.default_rng(1)
    operations, levels = random.integers(0, len(OPERATIONS), 300), random.integers(-30, 31, 300)
    before = pixels.clone()
    together = trivial(pixels, operations, levels)
    assert torch.equal(pixels, before)
    for i in range(300):
        alone = trivial(pixels[i : i + 1], operations[i : i + 1], levels[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.parametrize("name", SIGNED)
def test_level_0_changes_nothing(name: str) -> None:
    pixels = images(9, 12, 12, 3)
    operations = np.full(9, OPERATIONS.index(name))
    assert torch.equal(trivial(pixels, operations, np.zeros(9, int)), pixels)


def test_a_quarter_turn_is_exact() -> None:
    pixels = images(9, 28, 28, 3)
    turned = trivial(pixels, np.full(9, OPERATIONS.index("rotate")), np.full(9, 20))
    assert torch.equal(turned, pixels.rot90(dims=(1, 2)))


def test_a_grey_image_has_no_colour_to_change() -> None:
    pixels = images(len(ALL_LEVELS), 12, 12, 1)
    assert torch.equal(every_level("color", pixels), pixels)
    grey = pixels.expand(-1, -1, -1, 3)
    assert torch.equal(every_level("color", grey), grey)


@pytest.mark.parametrize("name", ["contrast", "sharpness", "autocontrast", "equalize"])
def test_an_image_without_contrast_stays(name: str) -> None:
    pixels = torch.arange(len(ALL_LEVELS), dtype=torch.uint8).mul(4)[:, None, None, None]
    pixels = pixels.expand(-1, 9, 9, 1)
    assert torch.equal(every_level(name, pixels), pixels)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_smallest_image_is_an_image(name: str) -> None:
    pixels = images(len(ALL_LEVELS), 1, 1, 3)
    assert every_level(name, pixels).shape == pixels.shape
