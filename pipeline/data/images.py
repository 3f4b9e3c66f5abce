"""The one way from an image file to pixels: `prepare` and `predict` both use it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.core.errors import PipelineError

GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")

BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise for a broken file; each format has its own way."""

Pixels = NDArray[np.uint8]


def load_image(source: Path | Image.Image, size: int, channels: int) -> Pixels:
    """Pixels uint8 [size, size, channels] of a file or an image in memory.

    Turned as its EXIF entry says, put on white where it is transparent, 16 bits scaled to 8,
    converted to RGB (`channels` 3) or grey (1); then the shorter side is resized to `size`
    (bilinear, antialiased) and the centre cut out. An image of that size keeps its pixels.
    Raises `PipelineError` naming a file that is missing, broken or no image.
    """
    if isinstance(source, Image.Image):
        return _to_pixels(source, size, channels)
    try:
        with Image.open(source) as image:
            return _to_pixels(image, size, channels)
    except FileNotFoundError:
        raise PipelineError("there is no such image", where=str(source)) from None
    except UnidentifiedImageError:
        raise PipelineError("not an image that Pillow can read", where=str(source)) from None
    except BROKEN as error:
        raise PipelineError(f"broken image: {error}", where=str(source)) from None


def is_grey(image: Image.Image) -> bool:
    """Whether all colours that the image can hold are grey; only a palette is looked at."""
    if image.mode in ("P", "PA"):
        palette = image.getpalette("RGB") or []
        reds, greens, blues = palette[0::3], palette[1::3], palette[2::3]
        return reds == greens == blues
    return image.mode in GREY_MODES


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after the rotation that EXIF asks for, from the header alone."""
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else (image.width, image.height)


def _to_pixels(image: Image.Image, size: int, channels: int) -> Pixels:
    image = ImageOps.exif_transpose(image)
    image = _opaque_eight_bit(image).convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels)


def _opaque_eight_bit(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        # Pillow's own conversion clips at 255 and turns most of a 16-bit image white.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its values exceed 16 bits: what is white is not known")
        return Image.fromarray((values / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floats: what is white is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image)
    return image
