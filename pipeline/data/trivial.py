"""TrivialAugment's operations (arXiv 2103.10158), batched: one per sample, at its own level.

The space is the paper's "wide" one, its 31 levels as torchvision's `TrivialAugmentWide` has
them: they are fixed, so on images below 32 pixels the strongest translations leave nothing.
On one channel `color` changes nothing, as in torchvision: a grey image has no saturation, and
the draws stay the same for any channels.

All is computed in whole numbers, which float32 holds exactly below 2^24, so that no device
rounds in its own way.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.augment import pick

LEVELS = 31


def trivial(
    pixels: torch.Tensor, operations: NDArray[np.integer], levels: NDArray[np.integer]
) -> torch.Tensor:
    """Change each sample of uint8 [B, H, W, C] (C is 1 or 3) by one operation.

    `operations` [B] are indices into `OPERATIONS`, `levels` [B] in [-30, 30]; an operation
    that has no direction ignores the sign. Each operation runs once, on all of its samples.
    """
    result, device = pixels.clone(), pixels.device
    levels = levels.astype(np.int64)
    moved = np.flatnonzero(np.isin(operations, _GEOMETRIC))
    if len(moved):
        index = torch.from_numpy(moved).to(device)
        inverses = _inverses(operations[moved], levels[moved], *pixels.shape[1:3])
        result[index] = _affine(pixels[index], inverses.to(device))
    for name, operation in _PIXELWISE.items():
        chosen = np.flatnonzero(operations == OPERATIONS.index(name))
        if len(chosen):
            index = torch.from_numpy(chosen).to(device)
            level = torch.from_numpy(levels[chosen]).to(device)[:, None, None, None]
            result[index] = operation(pixels[index], level)
    return result


def _inverses(
    operations: NDArray[np.integer], levels: NDArray[np.integer], height: int, width: int
) -> torch.Tensor:
    """[B, 2, 3]: where to read (x, y) for the place (x, y, 1), from the corner, in 1/65536 pixel.

    Shears of up to 0.99 keep the upper or left border, translations move by up to 32 whole
    pixels, rotations turn by up to 135 degrees about the centre.
    """
    strength = levels / (LEVELS - 1)

    def of(name: str, amount: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(operations == OPERATIONS.index(name), amount, 0)

    angle = of("rotate", np.deg2rad(135 * strength))  # counter-clockwise, as seen
    cos, sin, x, y = np.cos(angle), np.sin(angle), width / 2, height / 2
    left = of("translate_x", np.trunc(32 * strength))
    up = of("translate_y", np.trunc(32 * strength))
    column = [cos, of("shear_x", 0.99 * strength) - sin, x - cos * x + sin * y - left]
    row = [sin + of("shear_y", 0.99 * strength), cos, y - sin * x - cos * y - up]
    fixed = np.rint(np.array([column, row]) * 2**16).astype(np.int64)
    return torch.from_numpy(fixed).permute(2, 0, 1)


def _affine(pixels: torch.Tensor, inverses: torch.Tensor) -> torch.Tensor:
    """The nearest pixel of the place each is read from, 0 outside the image.

    Pixels' centres are at halves of a pixel: everything is counted twice.
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


def _blend(pixels: torch.Tensor, other: torch.Tensor | int, levels: torch.Tensor) -> torch.Tensor:
    """`other` + factor·(pixels - `other`), clipped: factor 1 ± 0.033 a level, in thousandths."""
    factor = (1000 + 33 * levels).float()
    mixed = pixels * factor + other * (1000 - factor)
    return _floor(mixed.clamp(0, 255_000), 1000).to(torch.uint8)


def _floor(whole: torch.Tensor, divisor: torch.Tensor | int) -> torch.Tensor:
    """Floor of a quotient of whole numbers: half a step away from where rounding matters."""
    return ((whole + 0.5) / divisor).floor()


def _brightness(pixels: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return _blend(pixels.float(), 0, levels)


def _color(pixels: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return _blend(pixels.float(), _grey(pixels), levels)


def _contrast(pixels: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    grey = _grey(pixels).flatten(1).long()
    count = grey.shape[1]
    mean = (2 * grey.sum(1) + count) // (2 * count)  # to the nearest grey level
    return _blend(pixels.float(), mean[:, None, None, None].float(), levels)


def _grey(pixels: torch.Tensor) -> torch.Tensor:
    """Luma of ITU-R BT.601, rounded down: float32 [B, H, W, 1]."""
    if pixels.shape[3] == 1:
        return pixels.float()
    weights = torch.tensor([299, 587, 114], device=pixels.device)
    return _floor((pixels * weights).sum(3, keepdim=True).float(), 1000)


def _sharpness(pixels: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Against a 3x3 blur that weighs the centre 5, the others 1; the border stays."""
    pixels = pixels.float()
    total = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    total = total[:, :, :-2] + total[:, :, 1:-1] + total[:, :, 2:]
    blurred = pixels.clone()
    blurred[:, 1:-1, 1:-1] = ((total + 4 * pixels[:, 1:-1, 1:-1]) / 13).round()
    return _blend(pixels, blurred, levels)


def _posterize(pixels: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Keep the 8 to 2 highest bits."""
    dropped = (2 * levels.abs() + 5) // 10
    return pixels & ((0xFF << dropped) & 0xFF).to(torch.uint8)


def _solarize(pixels: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Invert what is at least as bright as a threshold, 255 at level 0, 0 at level 30."""
    bright = pixels.int() * 2 >= 17 * (30 - levels.abs())  # 255 / 30 is 17 / 2
    return torch.where(bright, 255 - pixels, pixels)


def _autocontrast(pixels: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to the whole range; one without contrast stays as it is."""
    darkest, brightest = pixels.amin((1, 2), keepdim=True), pixels.amax((1, 2), keepdim=True)
    span = (brightest - darkest).float()
    stretched = _floor((pixels - darkest).float() * 255, span.clamp(min=1)).to(torch.uint8)
    return torch.where(brightest > darkest, stretched, pixels)


def _equalize(pixels: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Histogram equalisation of each channel, in Pillow's whole numbers.

    A value becomes the number of pixels below it, in steps of a 255th of all pixels but the
    brightest; a channel with less than one pixel a step stays as it is.
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


_PIXELWISE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    *_PIXELWISE,
)
_GEOMETRIC = range(1, 6)
