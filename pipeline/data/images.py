"""The one way from an image file to pixels: in the lab and, as pixels.py, in bundles.

Needs Python 3.8, NumPy and Pillow, and nothing of this package.
"""

from __future__ import annotations

import io
import re
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_GREY = ("1", "L", "LA", "La", "F", *SIXTEEN_BIT)
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_BILINEAR = getattr(Image, "Resampling", Image).BILINEAR  # Pillow before 9.1 has no enums
_TURNS = getattr(Image, "Transpose", Image)
_UPRIGHT = {
    2: _TURNS.FLIP_LEFT_RIGHT,
    3: _TURNS.ROTATE_180,
    4: _TURNS.FLIP_TOP_BOTTOM,
    5: _TURNS.TRANSPOSE,
    6: _TURNS.ROTATE_270,
    7: _TURNS.TRANSVERSE,
    8: _TURNS.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""

_ORIENTATION = 0x0112
_INTEGERS = {3: "H", 4: "L"}
"""EXIF's types of integers, SHORT and LONG, and their formats in `struct`."""

_HEADER_READS = 50_000
"""Reads in which Pillow has to find a file's header. Real headers take a few thousand."""

_STRIP_PIXELS = 1 << 20

_REDUCED = 2
"""A JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 of its size that is still so many
times as large as the wanted pixels. docs/own-images.md says how far that is from a full decode."""

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


def load_image(
    source: Path | Image.Image, size: int, channels: int, resize: int | None = None
) -> NDArray[np.uint8]:
    """The pixels that models take, of a file or of an image in memory.

    The image is rotated by its EXIF orientation, put on white where it is transparent, scaled from
    16 bits to 8 and converted to RGB or grey. Then the shorter side is resized to `resize`
    (bilinear, antialiased) and the centre of `size` is cut out. A square image of `resize` keeps
    its pixels. A JPEG of four times `resize` or more is decoded at a reduced size, in a fraction of
    time and memory.

    Args:
        source: path of a file, or an open image, whose pixels are decoded here if they are not yet.
        size: height and width in pixels.
        channels: 3 for RGB, 1 for grey.
        resize: what the shorter side becomes before the centre is cut out; None: `size`.

    Returns:
        uint8 [size, size, channels], in [0, 255].

    Raises:
        ImageError: for a file that is missing, broken or no image.
    """
    resize = resize or size
    if isinstance(source, Image.Image):
        return _to_pixels(source, size, channels, resize)
    with open_image(source) as image:
        return _to_pixels(image, size, channels, resize)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file and read its header; the pixels are decoded when they are asked for.

    Raises:
        ImageError: for a file that is missing, broken or no image, also where this shows only in
            the block.
    """
    try:
        with _File(str(path)) as file, Image.open(file) as image:
            file.reads_left = None
            if file.exif:
                image.info["exif"] = file.exif
            yield image
    except FileNotFoundError:
        raise ImageError("there is no such image") from None
    except UnidentifiedImageError:
        raise ImageError("not an image that Pillow can read") from None
    except BROKEN as error:
        raise ImageError(f"broken image: {error or type(error).__name__}") from None


def is_grey(image: Image.Image) -> bool:
    """Whether all colours that the image can hold are grey; only a palette is looked at."""
    if image.mode in ("P", "PA"):
        palette = image.getpalette("RGB") or []
        reds, greens, blues = palette[0::3], palette[1::3], palette[2::3]
        return reds == greens == blues
    return image.mode in _GREY


class _File(io.BufferedReader):
    """An image file as Pillow is to see it, with two differences from the file on the disk.

    The number of reads is limited until the header is found: Pillow searches junk byte by byte,
    which takes minutes for some hundred MB.

    A JPEG's EXIF segment is kept in `exif` and Pillow finds zeros in its place. Of EXIF the
    orientation alone is needed, and Pillow would refuse sound images for other, malformed entries.
    """

    def __init__(self, path: str) -> None:
        super().__init__(io.FileIO(path))
        self.exif = b""
        self.reads_left: int | None = _HEADER_READS
        self._is_jpeg = self.peek(2)[:2] == b"\xff\xd8"

    def read(self, size: int | None = -1) -> bytes:
        self._count()
        content = super().read(size)
        if self.reads_left is not None and self._is_jpeg and content.startswith(b"Exif\0\0"):
            self.exif += content[6:]
            return bytes(len(content))
        return content

    def readline(self, size: int | None = -1) -> bytes:
        self._count()
        return super().readline(size)

    def _count(self) -> None:
        if self.reads_left is not None:
            self.reads_left -= 1
            if self.reads_left < 0:
                raise ImageError(f"its header does not end within {_HEADER_READS:,} reads")


def _orientation(image: Image.Image) -> int:
    """1 to 8 as EXIF, or else XMP, gives it; anything else is to be taken as 1, upright.

    The entry is read by itself: malformed entries beside it do not matter, and every version of
    Pillow gives the same answer.
    """
    if hasattr(image, "tag_v2"):
        return 1  # a TIFF, which Pillow itself turns when it decodes it
    exif = image.info.get("exif", b"")
    if not exif and "Raw profile type exif" in image.info:  # of a PNG, in hexadecimal digits
        digits = "".join(str(image.info["Raw profile type exif"]).split("\n")[3:])
        try:
            exif = bytes.fromhex(digits)
        except ValueError:
            exif = b""
    found = _exif_integer(exif, _ORIENTATION)
    if found is not None:
        return found
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    if isinstance(xmp, str):
        xmp = xmp.encode("utf-8", "replace")
    match = re.search(b'tiff:Orientation(?:="|>)([0-9])', xmp)
    return int(match.group(1)) if match else 1


def _exif_integer(exif: bytes, wanted: int) -> int | None:
    """The integer of the tag `wanted` in the first directory; None where there is none.

    Format: TIFF 6.0, section 2. A header of byte order and offset of the directory, which is the
    number of entries and 12 bytes for each: tag, type, number of values, and the value.
    """
    exif = re.sub(b"^(Exif\0\0)+", b"", exif)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "L", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, start)
        for place in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(order + "HHL", exif, place)
            if tag == wanted and kind in _INTEGERS and count == 1:
                return int(struct.unpack_from(order + _INTEGERS[kind], exif, place + 8)[0])
    except struct.error:  # the block ends within the directory
        return None
    return None


def _to_pixels(image: Image.Image, size: int, channels: int, resize: int) -> NDArray[np.uint8]:
    width, height = _reduce(image, _REDUCED * resize)
    image.load()  # a PNG may have its EXIF behind the pixels
    turn = _UPRIGHT.get(_orientation(image))
    image = _converted(image, "L" if channels == 1 else "RGB")
    if image.size != (resize, resize):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((resize, resize), _BILINEAR, box=box)
    if turn is not None:
        image = image.transpose(turn)
    pixels = np.asarray(image, dtype=np.uint8).reshape(resize, resize, channels)
    return centre(pixels, (size, size))


def centre(images: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The centre of images [..., H, W, C], of `shape` = (height, width); nothing is copied."""
    height, width = shape
    top, left = (images.shape[-3] - height) // 2, (images.shape[-2] - width) // 2
    return images[..., top : top + height, left : left + width, :]


def _reduce(image: Image.Image, shortest: int) -> tuple[float, float]:
    """Have a JPEG decoded smaller, with a shorter side of `shortest` pixels or more.

    Returns:
        Width and height of the picture in the pixels that are decoded. Where the size of the file
        is no multiple of the reduction, the last column and row are only partly covered.
    """
    if image.format in ("JPEG", "MPO"):
        reduced = image.draft(None, (shortest, shortest))  # None: it is decoded already
        if reduced is not None:
            return reduced[1][2], reduced[1][3]
    return image.size


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
    if image.mode in SIXTEEN_BIT:
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
