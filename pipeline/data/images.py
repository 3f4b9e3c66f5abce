"""The one way from an image file to pixels: in the lab and, as pixels.py, in bundles.

Needs Python 3.8, NumPy and Pillow, and nothing of this package.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_GREY = ("1", "L", "LA", "La", "F", *_SIXTEEN_BIT)
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_BILINEAR = getattr(Image, "Resampling", Image).BILINEAR  # Pillow before 9.1 has no enum

_STRIP_PIXELS = 1 << 20

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


class ImageError(ValueError):
    """An image file that is missing, broken or no image. The text does not name the file."""


def load_image(source: Path | Image.Image, size: int, channels: int) -> NDArray[np.uint8]:
    """The pixels that models take, of a file or of an image in memory.

    The image is rotated by its EXIF orientation, put on white where it is transparent, scaled from
    16 bits to 8 and converted to RGB or grey. Then the shorter side is resized to `size` (bilinear,
    antialiased) and the centre is cut out. An image of that size keeps its pixels.

    Args:
        source: path of a file, or an open image.
        size: height and width in pixels.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 [size, size, channels], in [0, 255].

    Raises:
        ImageError: for a file that is missing, broken or no image.
    """
    if isinstance(source, Image.Image):
        return _to_pixels(source, size, channels)
    try:
        with Image.open(str(source)) as image:
            return _to_pixels(image, size, channels)
    except FileNotFoundError:
        raise ImageError("there is no such image") from None
    except UnidentifiedImageError:
        raise ImageError("not an image that Pillow can read") from None
    except BROKEN as error:
        raise ImageError(f"broken image: {error}") from None


def is_grey(image: Image.Image) -> bool:
    """Whether all colours that the image can hold are grey; only a palette is looked at."""
    if image.mode in ("P", "PA"):
        palette = image.getpalette("RGB") or []
        reds, greens, blues = palette[0::3], palette[1::3], palette[2::3]
        return reds == greens == blues
    return image.mode in _GREY


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after the rotation that EXIF asks for, from the header alone."""
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else (image.width, image.height)


def _to_pixels(image: Image.Image, size: int, channels: int) -> NDArray[np.uint8]:
    image = _converted(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), _BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """The image in 8 bits, on white where it is transparent, as `mode`, L or RGB.

    Strip by strip: of a large image there is one copy in memory at most, or none without need.
    """
    if image.mode == mode and "transparency" not in image.info:
        return image
    converted = Image.new(mode, image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        converted.paste(_opaque_eight_bit(strip).convert(mode), (0, top))
    return converted


def _opaque_eight_bit(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        # Pillow's own conversion clips at 255 and turns most of a 16-bit image white.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its values exceed 16 bits: what is white is not known")
        return Image.fromarray((values / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floats: what is white is not known")
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    if image.mode in _TRANSPARENT or "transparency" in image.info or palette.endswith("A"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
