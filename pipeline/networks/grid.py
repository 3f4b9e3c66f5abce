"""The input grid: students normalise pixels by (x - 128) / 64, so x - 128 is the int8 input.

At scale 1/64 and zero point 0 the int8 value x - 128 stands for exactly the normalised pixel; as
uint8 with zero point 128 it is the pixel x itself. Quantizing the input therefore loses nothing.
Every student, every quantizer and every check takes the numbers from here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CENTRE = 128
"""The pixel that is normalised to 0, and the zero point of uint8."""

STEPS = 64
"""Steps of the grid per unit: the scale is 1 / STEPS."""

SCALE = 1 / STEPS

LOWEST, HIGHEST = (0 - CENTRE) * SCALE, (255 - CENTRE) * SCALE
"""The range of normalised pixels: over it 256 levels have the step SCALE."""


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(x - 128) / 64 of raw pixels, exact in float32, of the same shape."""
    return (pixels.astype(np.float32) - np.float32(CENTRE)) * np.float32(SCALE)


def every_pixel(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """As many images [N, *shape] as it takes to hold every pixel value, from 0 to 255."""
    count = -(-256 // int(np.prod(shape)))
    return np.resize(np.arange(256, dtype=np.uint8), (count, *shape))
