"""How many images a network is given at once: fewer of larger ones, for the same memory.

The memory of a forward pass without gradients is that of the largest tensors that live at the same
time. For any network it grows with the number of pixels of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

PIXELS = 512 * 32 * 32
"""Of the images of a batch, summed up: 512 images of 32 x 32, 10 of 224 x 224, 2 of 512 x 512."""

T = TypeVar("T", bound=np.generic)


def images_per_call(most: int, height: int, width: int) -> int:
    """At least one and at most `most` images, with no more than `PIXELS` pixels together.

    Args:
        most: where the images are small.
        height: of an image as the network computes with it, in pixels.
        width: likewise.
    """
    return max(1, min(most, PIXELS // (height * width)))


def batches(images: NDArray[T], most: int) -> Iterator[NDArray[T]]:
    """Views of consecutive images [n, H, W, C] of `images` [N, H, W, C]: see `images_per_call`."""
    step = images_per_call(most, *images.shape[1:3])
    return (images[start : start + step] for start in range(0, len(images), step))
