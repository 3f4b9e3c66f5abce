"""Augmentations of batches, on the batch's device. The caller draws all random numbers.

Pixels are uint8 [B, H, W, C]. A box is (top, left, bottom, right) in whole pixels, the last two
exclusive, and may be empty. No function changes its input. Pixels are computed in integers, so
that a sample's view depends neither on the rest of its batch nor on the device.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Boxes = NDArray[np.int64]
"""[B, 4]: top, left, bottom, right."""

Uniform = NDArray[np.floating]
"""Draws from [0, 1), [B] or [B, draws per sample], and values computed from them."""

WHOLE = 65536
"""The MixUp weight 1: weights are integers, in units of 1/65536."""


def put(values: NDArray[Any] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """`values` on `device`; the host does not wait until they are there."""
    return torch.as_tensor(values).to(device, non_blocking=True)


def flip_and_shift(pixels: torch.Tensor, flip: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Mirror horizontally, then shift; pixels beyond the border repeat it.

    Args:
        pixels: uint8 [B, H, W, C].
        flip: bool [B], which samples are mirrored.
        shift: int [B, 2], pixels up and to the left.
    """
    _, height, width, _ = pixels.shape
    rows = torch.arange(height, device=pixels.device) + shift[:, :1]
    columns = torch.arange(width, device=pixels.device)
    columns = torch.where(flip[:, None], columns.flip(0), columns) + shift[:, 1:]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    return pick(pixels, rows[:, :, None], columns[:, None, :])


def pick(pixels: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """`pixels[b, rows[b, y, x], columns[b, y, x]]` at [b, y, x], indices broadcast to [B, H, W]."""
    n, height, width, channels = pixels.shape
    samples = torch.arange(n, device=pixels.device)[:, None, None]
    index = (samples * height + rows) * width + columns
    if channels == 1:  # the faster one for single bytes; the other for pixels of several
        return pixels.take(index)[..., None]
    return pixels.reshape(-1, channels).index_select(0, index.flatten()).view(*index.shape, -1)


def crop_boxes(draws: Uniform, smallest: float, height: int, width: int) -> Boxes:
    """Boxes of a random resized crop (Inception's: arXiv 1409.4842).

    The share of the image's area is uniform in [`smallest`, 1]; the aspect ratio, relative to
    the image's, is log-uniform in [3/4, 4/3] as far as a box of that area fits the image; the
    position is uniform. Sides are rounded to whole pixels.

    Args:
        draws: uniform [B, 4].
        smallest: share of the area, in (0, 1].
        height: of the image.
        width: of the image.
    """
    draws = draws.astype(np.float64)
    area = smallest + (1 - smallest) * draws[:, 0]
    spread = np.minimum(math.log(4 / 3), -np.log(area))
    return _placed(area, np.exp((2 * draws[:, 1] - 1) * spread), draws[:, 2:], height, width)


def resized_crop(
    pixels: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int] | None = None
) -> torch.Tensor:
    """Resize each sample's box (int64 [B, 4], not empty) bilinearly.

    Pixel centres are those of `align_corners=False`, as in every current library; the box's
    border is repeated; weights are integers, in units of 1/256. Larger boxes are not smoothed: at
    more than twice the result's size some of their pixels would not be read.

    Args:
        pixels: uint8 [B, H, W, C].
        boxes: int64 [B, 4].
        size: height and width of the result; None: H and W.
    """
    n, height, width, channels = pixels.shape
    rows, columns = size or (height, width)
    top, left, bottom, right = boxes.T
    near, far, across = _neighbours(left, right, columns)
    every = torch.arange(height, device=pixels.device)[:, None]
    one, other = (pick(pixels, every, place[:, None, :]).int() for place in (near, far))
    lines = _between(one, other, across[:, None, :, None]).flatten(0, 1)
    upper, lower, down = _neighbours(top, bottom, rows)
    first = torch.arange(n, device=pixels.device)[:, None] * height
    one, other = (
        lines.index_select(0, (first + place).flatten()).view(n, rows, columns, channels)
        for place in (upper, lower)
    )
    mixed = _between(one, other, down[:, :, None, None])
    return ((mixed + 2**15) >> 16).to(torch.uint8)


def _between(one: torch.Tensor, other: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """256 times the linear interpolation at `weight` / 256, in integers."""
    return (other - one).mul_(weight).add_(one, alpha=256)


def _neighbours(
    start: torch.Tensor, end: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each output pixel [B, size]: the pixels before and after, and 256ths of the latter."""
    length = (end - start)[:, None]
    centres = 2 * torch.arange(size, device=start.device) + 1
    place = (256 * (centres * length - size) + size).div(2 * size, rounding_mode="floor")
    place = torch.minimum(place.clamp(min=0), 256 * (length - 1))
    before = place >> 8
    after = torch.minimum(before + 1, length - 1)
    return start[:, None] + before, start[:, None] + after, (place & 255).int()


def erase_boxes(draws: Uniform, probability: float, height: int, width: int) -> Boxes:
    """Boxes of random erasing (arXiv 1708.04896); empty for samples that are not erased.

    A box takes 2 to 25% of the image's area (the paper's bound is 40%; small objects stay visible);
    its aspect ratio is log-uniform in [0.3, 1/0.3], its position uniform.

    Args:
        draws: uniform [B, 5].
        probability: of erasing a sample.
        height: of the image.
        width: of the image.
    """
    draws = draws.astype(np.float64)
    area = 0.02 + 0.23 * draws[:, 1]
    aspect = np.exp((1 - 2 * draws[:, 2]) * math.log(0.3))
    boxes = _placed(area, aspect, draws[:, 3:], height, width)
    return np.where(draws[:, :1] < probability, boxes, 0)


def _placed(area: Uniform, aspect: Uniform, place: Uniform, height: int, width: int) -> Boxes:
    """Boxes of a share of the area and an aspect ratio, both relative to the image's."""
    sizes = np.array([height, width])
    sides = np.sqrt(np.stack([area / aspect, area * aspect], axis=1)) * sizes
    sides = np.clip(np.rint(sides), 1, sizes)
    start = np.floor(place * (sizes - sides + 1))
    return np.concatenate([start, start + sides], axis=1).astype(np.int64)


def erase(pixels: torch.Tensor, boxes: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """Fill each sample's box (int64 [B, 4]) with its colour (uint8 [B, C])."""
    return torch.where(_inside(pixels, boxes), colours[:, None, None, :], pixels)


def mixup(pixels: torch.Tensor, partners: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """MixUp (arXiv 1710.09412): weight·own + (1 - weight)·partner, rounded.

    Args:
        pixels: uint8 [B, H, W, C].
        partners: of the same shape.
        weights: int [B] in [0, 65536], in units of 1/65536.
    """
    weights = weights.int()[:, None, None, None]
    mixed = pixels.int() * weights + partners.int() * (WHOLE - weights)
    return ((mixed + WHOLE // 2) >> 16).to(torch.uint8)


def cutmix_boxes(share: NDArray[np.float32], centre: Uniform, height: int, width: int) -> Boxes:
    """Boxes of CutMix (arXiv 1905.04899): sides √(1 - share) of the image's, clipped to it.

    Args:
        share: [B], of its own image that a sample keeps; clipping and rounding change it, and
            `kept` gives the exact share.
        centre: uniform [B, 2], relative to the image.
        height: of the image.
        width: of the image.
    """
    sizes = np.array([height, width])
    half = np.sqrt(1 - share.astype(np.float64))[:, None] * sizes / 2
    middle = centre * sizes
    edges = np.concatenate([middle - half, middle + half], axis=1)
    clipped: NDArray[np.float64] = np.clip(np.rint(edges), 0, np.tile(sizes, 2))
    return clipped.astype(np.int64)


def kept(boxes: Boxes, height: int, width: int) -> NDArray[np.float64]:
    """Exact share of the pixels that lie outside each box, [B]."""
    top, left, bottom, right = boxes.T
    area = (bottom - top) * (right - left)
    return np.asarray(1 - area / (height * width))


def cutmix(pixels: torch.Tensor, partners: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Replace the pixels inside each sample's box (int64 [B, 4]) by its partner's."""
    return torch.where(_inside(pixels, boxes), partners, pixels)


def _inside(pixels: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Which pixels lie inside the boxes, bool [B, H, W, 1]."""
    _, height, width, _ = pixels.shape
    top, left, bottom, right = boxes.T[..., None]
    rows = torch.arange(height, device=pixels.device)
    columns = torch.arange(width, device=pixels.device)
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    inside: torch.Tensor = in_rows[:, :, None] & in_columns[:, None, :]
    return inside[..., None]
