"""Where the hidden patch lies: positions relative to the image, so that cost is not its size's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError


def strips(size: int, grid: int, share: float) -> NDArray[np.bool_]:
    """The pixels along a side that the patch covers at each of its positions, evenly spread.

    Args:
        size: height and width of the images in pixels.
        grid: positions along each side, G.
        share: the patch's side as a part of the image's; G of them are at least as long as it.

    Returns:
        bool [G, size]; every pixel belongs to some position.

    Raises:
        PipelineError: for a patch that leaves fewer than G different positions along a side.
    """
    side = max(1, round(share * size), -(-size // grid))
    if size - side + 1 < grid:
        raise PipelineError(
            f"a patch of {side} pixels has {max(0, size - side + 1)} positions along an image of "
            f"{size}, fewer than the {grid} of attribution.grid",
            where="params.yaml: attribution",
            fix="make `patch` or `grid` smaller",
        )
    first = np.round(np.linspace(0, size - side, grid)).astype(int)[:, None]
    pixels = np.arange(size)
    covered: NDArray[np.bool_] = (pixels >= first) & (pixels < first + side)
    return covered


def patches(strips: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of the patch at each position, bool [G * G, S, S] of strips [G, S], by row."""
    count, size = strips.shape
    inside = strips[:, None, :, None] & strips[None, :, None, :]
    return inside.reshape(count * count, size, size)


def spread(values: NDArray[np.floating[Any]], strips: NDArray[np.bool_]) -> NDArray[np.float64]:
    """A map of pixels from one of positions: the mean over the patches that a pixel belongs to.

    Args:
        values: of each position, [G, G].
        strips: bool [G, S].

    Returns:
        float64 [S, S].
    """
    weights = strips / strips.sum(axis=0)
    pixels: NDArray[np.float64] = weights.T @ values.astype(np.float64) @ weights
    return pixels
