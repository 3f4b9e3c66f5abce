"""From image files to the pixels that the model was trained on; needs Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import BundleError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def load_image(file: Path, size: int, channels: int) -> NDArray[np.uint8]:
    """Pixels uint8 [size, size, channels] of an image file, as preprocess.json says it.

    Raises `BundleError` where Pillow is missing or cannot read the file.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise BundleError(
            f"{file}: image files need Pillow ({error})", "pip install pillow, or give .npy files"
        ) from None
    try:
        with Image.open(str(file)) as image:
            return _to_pixels(image, size, channels)
    except Exception as error:  # each of Pillow's decoders has its own
        raise BundleError(f"{file}: not an image that can be read: {error}") from None


def _to_pixels(image: Any, size: int, channels: int) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    image = _opaque_eight_bit(ImageOps.exif_transpose(image))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        bilinear = getattr(Image, "Resampling", Image).BILINEAR  # Pillow before 9.1 has no enum
        image = ImageOps.fit(image, (size, size), bilinear)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels)


def _opaque_eight_bit(image: Any) -> Any:
    from PIL import Image

    if image.mode in _SIXTEEN_BIT:
        # Pillow's own conversion clips at 255 and turns most of a 16-bit image white.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its values exceed 16 bits: what is white is not known")
        return Image.fromarray((values / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floats: what is white is not known")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
