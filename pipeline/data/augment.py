"""Batched augmentation, a different draw for every sample, on whatever device the batch is."""

from __future__ import annotations

import torch

from pipeline.params import Augment


def augment(pixels: torch.Tensor, options: Augment, generator: torch.Generator) -> torch.Tensor:
    """Flip, shift and erase each sample of uint8 [N, H, W, C] by its own draw.

    Flips left-right with probability 1/2. Shifts by whole pixels, uniform in
    [-shift, shift] for both axes, repeating the border. Erases, with probability `erase`, a
    rectangle of random noise that covers 2 to 25% of the image (random erasing,
    arXiv 1708.04896, in the bounds that keep small garments visible). Returns the same shape
    and dtype; the input is not changed. `generator` alone decides the result.
    """
    n, height, width, _ = pixels.shape
    device = pixels.device
    rows = torch.arange(height, device=device).expand(n, height)
    columns = torch.arange(width, device=device).expand(n, width)
    if options.flip:
        flip = torch.rand(n, 1, generator=generator, device=device) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    if options.shift:
        span = 2 * options.shift + 1
        offset = torch.randint(span, (2, n, 1), generator=generator, device=device) - options.shift
        rows = (rows + offset[0]).clamp(0, height - 1)
        columns = (columns + offset[1]).clamp(0, width - 1)
    samples = torch.arange(n, device=device)[:, None, None]
    pixels = pixels[samples, rows[:, :, None], columns[:, None, :]]
    if options.erase:
        pixels = _erase(pixels, options.erase, generator)
    return pixels


def _erase(pixels: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    n, height, width, _ = pixels.shape
    device = pixels.device
    chosen, area, aspect, top, left = torch.rand(5, n, 1, generator=generator, device=device)
    area = 0.02 + 0.23 * area
    aspect = torch.exp((2 * aspect - 1) * 1.2)  # log-uniform in about [0.3, 3.3]
    box_height = (area * aspect).sqrt().clamp(max=1.0) * height
    box_width = (area / aspect).sqrt().clamp(max=1.0) * width
    top, left = top * (height - box_height), left * (width - box_width)
    row, column = torch.arange(height, device=device), torch.arange(width, device=device)
    in_rows = (row >= top) & (row < top + box_height)
    in_columns = (column >= left) & (column < left + box_width)
    inside = in_rows[:, :, None] & in_columns[:, None, :] & (chosen < probability)[:, :, None]
    noise = torch.randint(256, pixels.shape, generator=generator, device=device, dtype=torch.uint8)
    return torch.where(inside[..., None], noise, pixels)
