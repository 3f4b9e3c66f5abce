"""The operations of TrivialAugment (arXiv 2103.10158) and RandAugment (arXiv 1909.13719), batched.

Each sample has an operation and a level of its own. The ranges of the 31 levels are those of
torchvision: `WIDE` of `TrivialAugmentWide`, `NARROW` of `RandAugment`. The wide ones do not depend
on the image's size: the strongest translations move an image of up to 32 pixels out of sight.
`color` leaves grey images as they are, as in torchvision; it is drawn for them as well, so that
draws do not depend on the number of channels.

Everything is computed in integers, which float32 represents exactly below 2^24, so that all
devices give the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.augment import pick, put

LEVELS = 31


@dataclass(frozen=True)
class Ranges:
    """What the operations do at the highest level, 30."""

    shear: float
    pixels: float
    """Of a translation, plus ..."""
    share: float
    """... this share of the image's side."""
    degrees: int
    thousandths: int
    """Per level, that brightness, color, contrast and sharpness change."""
    bits: int
    """That posterize drops."""


WIDE = Ranges(shear=0.99, pixels=32, share=0, degrees=135, thousandths=33, bits=6)
NARROW = Ranges(shear=0.3, pixels=0, share=150 / 331, degrees=30, thousandths=30, bits=4)


def trivial(
    pixels: torch.Tensor,
    operations: NDArray[np.integer],
    levels: NDArray[np.integer],
    ranges: Ranges = WIDE,
) -> torch.Tensor:
    """Change each sample by one operation. Each operation runs once, on all of its samples.

    Args:
        pixels: uint8 [B, H, W, C], C is 1 or 3.
        operations: [B], indices into `OPERATIONS`.
        levels: [B] in [-30, 30]; operations without a direction ignore the sign.
        ranges: what the levels stand for.
    """
    result, device = pixels.clone(), pixels.device
    levels = levels.astype(np.int64)
    moved = np.flatnonzero(np.isin(operations, [OPERATIONS.index(name) for name in _GEOMETRIC]))
    if len(moved):
        height, width = pixels.shape[1:3]
        index = put(moved, device)
        inverses = _inverses(operations[moved], levels[moved], height, width, ranges)
        result[index] = _affine(pixels[index], put(inverses, device))
    for name, operation in _PIXELWISE.items():
        chosen = np.flatnonzero(operations == OPERATIONS.index(name))
        if len(chosen):
            index = put(chosen, device)
            level = put(levels[chosen], device)[:, None, None, None]
            result[index] = operation(pixels[index], level, ranges)
    return result


def _inverses(
    operations: NDArray[np.integer],
    levels: NDArray[np.integer],
    height: int,
    width: int,
    ranges: Ranges,
) -> torch.Tensor:
    """[B, 2, 3]: maps output (x, y, 1) to input (x, y), from the corner, in 1/65536 pixel.

    Shears keep the upper or left border, translations are by whole pixels, rotations about the
    centre.
    """
    strength = levels / (LEVELS - 1)

    def of(name: str, amount: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(operations == OPERATIONS.index(name), amount, 0)

    angle = of("rotate", np.deg2rad(ranges.degrees * strength))  # counter-clockwise, as seen
    cos, sin, x, y = np.cos(angle), np.sin(angle), width / 2, height / 2
    left = of("translate_x", np.trunc((ranges.pixels + ranges.share * width) * strength))
    up = of("translate_y", np.trunc((ranges.pixels + ranges.share * height) * strength))
    column = [cos, of("shear_x", ranges.shear * strength) - sin, x - cos * x + sin * y - left]
    row = [sin + of("shear_y", ranges.shear * strength), cos, y - sin * x - cos * y - up]
    fixed = np.rint(np.array([column, row]) * 2**16).astype(np.int64)
    return torch.from_numpy(fixed).permute(2, 0, 1)


def _affine(pixels: torch.Tensor, inverses: torch.Tensor) -> torch.Tensor:
    """Transform with nearest neighbours and 0 outside the image.

    Pixel centres lie at half pixels, so coordinates are doubled.
    """
    _, height, width, _ = pixels.shape
    inverses = inverses[..., None, None]
    x = 2 * torch.arange(width, device=pixels.device) + 1
    y = 2 * torch.arange(height, device=pixels.device)[:, None] + 1
    columns, rows = (
        (inverses[:, i, 0] * x + inverses[:, i, 1] * y + 2 * inverses[:, i, 2]) >> 17
        for i in (0, 1)
    )
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    read = pick(pixels, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
    return read * inside[..., None]


def _blend(
    pixels: torch.Tensor, other: torch.Tensor | int, levels: torch.Tensor, ranges: Ranges
) -> torch.Tensor:
    """`other` + factor·(pixels - `other`), clipped, with the factor in thousandths."""
    factor = (1000 + ranges.thousandths * levels).float()
    mixed = pixels * factor + other * (1000 - factor)
    return _floor(mixed.clamp(0, 255_000), 1000).to(torch.uint8)


def _floor(whole: torch.Tensor, divisor: torch.Tensor | int) -> torch.Tensor:
    """Floor of a quotient of integers; + 0.5 keeps it away from values that rounding changes."""
    return ((whole + 0.5) / divisor).floor()


def _brightness(pixels: torch.Tensor, levels: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    return _blend(pixels.float(), 0, levels, ranges)


def _color(pixels: torch.Tensor, levels: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    return _blend(pixels.float(), _grey(pixels), levels, ranges)


def _contrast(pixels: torch.Tensor, levels: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    grey = _grey(pixels).flatten(1).long()
    count = grey.shape[1]
    mean = (2 * grey.sum(1) + count) // (2 * count)  # to the nearest grey level
    return _blend(pixels.float(), mean[:, None, None, None].float(), levels, ranges)


def _grey(pixels: torch.Tensor) -> torch.Tensor:
    """Luma of ITU-R BT.601, rounded down: float32 [B, H, W, 1]."""
    if pixels.shape[3] == 1:
        return pixels.float()
    weights = torch.tensor([299, 587, 114], device=pixels.device)
    return _floor((pixels * weights).sum(3, keepdim=True).float(), 1000)


def _sharpness(pixels: torch.Tensor, levels: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    """Blend with a 3x3 blur of weight 5 at the centre and 1 elsewhere; the border stays."""
    pixels = pixels.float()
    total = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    total = total[:, :, :-2] + total[:, :, 1:-1] + total[:, :, 2:]
    blurred = pixels.clone()
    blurred[:, 1:-1, 1:-1] = ((total + 4 * pixels[:, 1:-1, 1:-1]) / 13).round()
    return _blend(pixels, blurred, levels, ranges)


def _posterize(pixels: torch.Tensor, levels: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    """Keep the highest bits."""
    dropped = (ranges.bits * levels.abs() + 15) // 30
    return pixels & ((0xFF << dropped) & 0xFF).to(torch.uint8)


def _solarize(pixels: torch.Tensor, levels: torch.Tensor, _: Ranges) -> torch.Tensor:
    """Invert what is at least as bright as a threshold, 255 at level 0, 0 at level 30."""
    bright = pixels.int() * 2 >= 17 * (30 - levels.abs())  # 255 / 30 is 17 / 2
    return torch.where(bright, 255 - pixels, pixels)


def _autocontrast(pixels: torch.Tensor, *_: object) -> torch.Tensor:
    """Stretch each channel to the whole range; a constant one stays."""
    darkest, brightest = pixels.amin((1, 2), keepdim=True), pixels.amax((1, 2), keepdim=True)
    span = (brightest - darkest).float()
    stretched = _floor((pixels - darkest).float() * 255, span.clamp(min=1)).to(torch.uint8)
    return torch.where(brightest > darkest, stretched, pixels)


def _equalize(pixels: torch.Tensor, *_: object) -> torch.Tensor:
    """Histogram equalisation of each channel, in integers as Pillow computes it.

    A value becomes the number of pixels below it, divided by a step of 1/255 of all pixels but
    the brightest; a channel with a step below one pixel stays.
    """
    n, channels = len(pixels), pixels.shape[3]
    tables = torch.arange(n * channels, device=pixels.device).view(n, 1, 1, channels)
    index = tables * 256 + pixels
    counts = index.flatten().bincount(minlength=n * channels * 256).view(n, channels, 256)
    below = counts.cumsum(2) - counts
    brightest = pixels.amax((1, 2)).long()[..., None]
    step = below.gather(2, brightest) // 255
    lookup = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    values = torch.arange(256, device=pixels.device)
    return torch.where(step > 0, lookup, values).to(torch.uint8).take(index)


_PIXELWISE: dict[str, Callable[[torch.Tensor, torch.Tensor, Ranges], torch.Tensor]] = {
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}

_GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")

OPERATIONS = ("identity", *_GEOMETRIC, *_PIXELWISE)
