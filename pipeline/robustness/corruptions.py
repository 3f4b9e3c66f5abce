"""Eight common corruptions of images, after Hendrycks and Dietterich (arXiv 1903.12261).

The paper has five severities for ImageNet-C, of 224 pixels, and weaker ones for CIFAR-10-C, of 32
pixels, as small images bear less. Their values are the two rows of each table below. The value for
an image of another side lies between them, geometrically in the logarithm of the side; smaller and
larger images get the nearer row. Lengths in pixels go on in proportion to the side.

All are functions of uint8 [N, H, W, C] to uint8 of the same shape, C 1 or 3. What is random is
drawn for each image by its number, so it depends on nothing else: not on the batch, the other
images, the strength or the network. A stronger noise is the same noise, larger.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter1d

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Draw = Callable[[int], np.random.Generator]
"""The generator of an image, by its place in the batch."""

SMALL, LARGE = 32, 224
"""Sides of CIFAR-10-C and ImageNet-C, in pixels."""

SHIFT = 0.04
"""Of the side, for each step of strength."""


@dataclass(frozen=True)
class Table:
    """A parameter by strength, at 32 and at 224 pixels."""

    small: tuple[float, ...]
    large: tuple[float, ...]
    length: bool = False
    """Whether it is a length in pixels."""

    def at(self, strength: int, side: int) -> float:
        """The value for a strength of 1 to 5 and images of a side in pixels."""
        small, large = self.small[strength - 1], self.large[strength - 1]
        share = math.log(side / SMALL) / math.log(LARGE / SMALL)
        inside = min(1.0, max(0.0, share))
        beyond = side / min(LARGE, max(SMALL, side)) if self.length else 1.0
        return float(small ** (1 - inside) * large**inside * beyond)


NOISE = Table((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38))
"""Standard deviation, of pixels in [0, 1]."""
BLUR = Table((0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6), length=True)
"""Standard deviation of the Gaussian, in pixels."""
BRIGHTNESS = Table((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5))
"""Added to pixels in [0, 1]."""
CONTRAST = Table((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))
"""Share of the contrast that is left."""
JPEG = Table((80, 65, 58, 50, 40), (25, 18, 15, 10, 7))
"""Quality."""
PIXELATE = Table((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))
"""Share of the side that is left."""
FOG = Table((0.2, 0.5, 0.75, 1, 1.5), (1.5, 2, 2.5, 2.5, 3))
"""Thickness, of pixels in [0, 1]."""
FOG_DECAY = Table((3, 3, 2.5, 2, 1.75), (2, 2, 1.7, 1.5, 1.4))
"""From one size of the fog's billows to the next, whose heights are divided by its square."""


def corrupt(
    name: str, images: Pixels, strength: int, *, seed: int, numbers: NDArray[np.integer]
) -> Pixels:
    """Corrupt images.

    Args:
        name: one of `CORRUPTIONS`.
        images: uint8 [N, H, W, C], C 1 or 3.
        strength: 1 to 5, the paper's severity.
        seed: of what is random.
        numbers: [N], which image of the split each is.

    Returns:
        uint8 [N, H, W, C], another array.
    """
    kind = list(CORRUPTIONS).index(name)

    def draw(place: int) -> np.random.Generator:
        return np.random.default_rng((seed, kind, int(numbers[place])))

    return CORRUPTIONS[name](images, strength, draw)


def gaussian_noise(images: Pixels, strength: int, draw: Draw) -> Pixels:
    """x + n, n normal with the standard deviation `NOISE`."""
    scale = 255 * NOISE.at(strength, _side(images))
    noise = [draw(i).standard_normal(images.shape[1:], np.float32) for i in range(len(images))]
    return _pixels(images + np.float32(scale) * np.stack(noise))


def blur(images: Pixels, strength: int, _: Draw) -> Pixels:
    """Convolution with a Gaussian of the standard deviation `BLUR`; the border is repeated."""
    sigma = BLUR.at(strength, _side(images))
    blurred = images.astype(np.float32)
    for axis in (1, 2):
        blurred = gaussian_filter1d(blurred, sigma, axis=axis, mode="nearest", truncate=4.0)
    return _pixels(blurred)


def brightness(images: Pixels, strength: int, _: Draw) -> Pixels:
    """Add `BRIGHTNESS` to the value V = max(R, G, B) of HSV; hue and saturation stay.

    They stay where all channels are multiplied by the same factor. A black pixel becomes grey.
    """
    added = np.float32(255 * BRIGHTNESS.at(strength, _side(images)))
    pixels = images.astype(np.float32)
    value = pixels.max(axis=3, keepdims=True)
    brighter = np.minimum(value + added, 255)
    return _pixels(np.where(value > 0, pixels * (brighter / np.maximum(value, 1)), brighter))


def contrast(images: Pixels, strength: int, _: Draw) -> Pixels:
    """m + c (x - m), m the mean of each channel of the image and c `CONTRAST`."""
    kept = np.float32(CONTRAST.at(strength, _side(images)))
    pixels = images.astype(np.float32)
    mean = pixels.mean(axis=(1, 2), keepdims=True)
    return _pixels(mean + kept * (pixels - mean))


def jpeg(images: Pixels, strength: int, _: Draw) -> Pixels:
    """Compressed by Pillow at the quality `JPEG`."""
    quality = round(JPEG.at(strength, _side(images)))

    def compressed(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each(images, compressed)


def pixelate(images: Pixels, strength: int, _: Draw) -> Pixels:
    """Made smaller to the share `PIXELATE` of its sides, and larger again, by box filters."""
    left = PIXELATE.at(strength, _side(images))

    def coarse(picture: Image.Image) -> Image.Image:
        small = [max(1, int(left * length)) for length in picture.size]
        box = Image.Resampling.BOX
        return picture.resize((small[0], small[1]), box).resize(picture.size, box)

    return _each(images, coarse)


def fog(images: Pixels, strength: int, draw: Draw) -> Pixels:
    """(x + t f) m / (m + t): f a plasma fractal in [0, 1], t `FOG`, m the image's maximum."""
    side, (height, width) = _side(images), images.shape[1:3]
    size = max(2, 1 << (max(height, width) - 1).bit_length())
    noise = np.stack([draw(i).uniform(-1, 1, (size, size)) for i in range(len(images))])
    heights = plasma(noise, FOG_DECAY.at(strength, side))[:, :height, :width, None]
    thickness = FOG.at(strength, side)
    pixels = images.astype(np.float32) / 255
    most = pixels.max(axis=(1, 2, 3), keepdims=True)
    return _pixels(255 * (pixels + thickness * heights) * most / (most + thickness))


def plasma(noise: NDArray[np.float64], decay: float) -> NDArray[np.float64]:
    """Fractal heights in [0, 1] by the diamond-square algorithm, on a torus.

    Fournier, Fussell, Carpenter, Communications of the ACM 25, 1982. Each point becomes the mean
    of its four neighbours on the grid that is known so far, plus noise, whose amplitude falls by
    decay² whenever the grid gets twice as fine.

    Args:
        noise: in [-1, 1], [N, S, S], S a power of two of at least 2.
        decay: above 1.
    """
    size = noise.shape[1]
    heights = np.zeros_like(noise)
    step, amplitude = size, 1.0
    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        below = np.roll(corners, -1, axis=1)
        right, across = np.roll(corners, -1, axis=2), np.roll(below, -1, axis=2)
        centres = (corners + below + right + across) / 4
        centres += amplitude * noise[:, half::step, half::step]
        heights[:, half::step, half::step] = centres
        up, left = np.roll(centres, 1, axis=1), np.roll(centres, 1, axis=2)
        rows = (corners + right + centres + up) / 4
        columns = (corners + below + centres + left) / 4
        heights[:, ::step, half::step] = rows + amplitude * noise[:, ::step, half::step]
        heights[:, half::step, ::step] = columns + amplitude * noise[:, half::step, ::step]
        step, amplitude = half, amplitude / decay**2
    heights -= heights.min(axis=(1, 2), keepdims=True)
    scaled: NDArray[np.float64] = heights / heights.max(axis=(1, 2), keepdims=True)
    return scaled


def shift(images: Pixels, strength: int, draw: Draw) -> Pixels:
    """Moved by `SHIFT` times the strength of the side, in a random direction.

    Whole pixels; the border is repeated, so that no edge appears that the image does not have.
    This one is not in the paper's sets of images, which have no change of place.
    """
    distance = SHIFT * strength * _side(images)
    rows, columns = (np.arange(length) for length in images.shape[1:3])
    moved = np.empty_like(images)
    for i, image in enumerate(images):
        angle = draw(i).uniform(0, 2 * math.pi)
        down, right = round(distance * math.sin(angle)), round(distance * math.cos(angle))
        y, x = np.clip(rows - down, 0, rows[-1]), np.clip(columns - right, 0, columns[-1])
        moved[i] = image[y[:, None], x]
    return moved


CORRUPTIONS: dict[str, Callable[[Pixels, int, Draw], Pixels]] = {
    "noise": gaussian_noise,
    "blur": blur,
    "brightness": brightness,
    "contrast": contrast,
    "jpeg": jpeg,
    "pixelate": pixelate,
    "fog": fog,
    "shift": shift,
}
"""By name, in the order of tables. The place of a name is a part of its seeds."""


def _side(images: Pixels) -> int:
    """The shorter side, in pixels."""
    return int(min(images.shape[1:3]))


def _pixels(values: NDArray[np.floating]) -> Pixels:
    """Rounded to [0, 255]."""
    rounded: Pixels = np.rint(values).clip(0, 255).astype(np.uint8)
    return rounded


def _each(images: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    """Change each image as a picture of Pillow."""
    pictures = (
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image) for image in images
    )
    changed = [np.asarray(change(picture)) for picture in pictures]
    return np.stack(changed).reshape(images.shape)
