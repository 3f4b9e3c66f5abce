"""Of EXIF the orientation is needed, and no other entry can turn, refuse or stop an image."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.data.images import ImageError, load_image
from tests.data.exif import block, mutated, orientation, strange
from tests.data.test_prepare import data, packed

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
TURNED = {
    1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1], 5: PIXELS.T,
    6: np.rot90(PIXELS, -1), 7: PIXELS[::-1, ::-1].T, 8: np.rot90(PIXELS),
}  # fmt: skip
"""What is to be seen by orientation."""

BLOCKS = 2000
"""Of each kind of file."""


def encoded(kind: str, exif: bytes = b"") -> bytes:
    """PIXELS as a file with this EXIF block, as it stands."""
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "webp" else {"quality": 100}
    Image.fromarray(PIXELS).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


PNG, JPEG = encoded("png"), encoded("jpeg")


def with_exif(kind: str, exif: bytes) -> bytes:
    """As `encoded`, many times as fast."""
    if kind == "png":
        content = exif.removeprefix(b"Exif\0\0")
        check = struct.pack(">L", zlib.crc32(b"eXIf" + content))
        return PNG[:33] + struct.pack(">L", len(content)) + b"eXIf" + content + check + PNG[33:]
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + JPEG[2:]


def opened(content: bytes, folder: Path) -> np.ndarray:
    file = folder / "image"
    file.unlink(missing_ok=True)  # some file systems take long to overwrite a file
    file.write_bytes(content)
    return load_image(file, 16, 1)[..., 0]


def blocks(seed: int, count: int) -> Iterator[tuple[bytes, int | None]]:
    """EXIF blocks, and the orientation of those whose other entries alone are strange."""
    draw = random.Random(seed)
    for number in range(count):
        turned = draw.randint(1, 8) if number % 2 else None
        exif = strange(draw, turned)
        yield (exif, turned) if turned else (mutated(draw, exif), None)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("turned", range(9))
def test_every_orientation_is_the_one_that_pillow_shows(
    kind: str, order: str, turned: int, tmp_path: Path
) -> None:
    content = encoded(kind, block([(0x0131, 2, 3, b"me\0"), orientation(turned, order)], order))
    found = opened(content, tmp_path)
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(found, np.asarray(ImageOps.exif_transpose(image).convert("L")))
    if kind != "jpeg":
        assert np.array_equal(found, TURNED[turned or 1])


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_no_malformed_exif_refuses_stops_or_turns_an_image(kind: str, tmp_path: Path) -> None:
    upright = opened(with_exif(kind, block([])), tmp_path)
    shown = {
        turned: opened(with_exif(kind, block([orientation(turned)])), tmp_path)
        for turned in range(1, 9)
    }
    assert len({pixels.tobytes() for pixels in shown.values()}) == 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for exif, turned in blocks(17, BLOCKS):
            found = opened(with_exif(kind, exif), tmp_path)
            if turned is not None:
                assert np.array_equal(found, shown[turned]), exif.hex()
            else:  # a mutation may have made or unmade an orientation, but nothing else
                assert any(np.array_equal(found, pixels) for pixels in shown.values()), exif.hex()
    assert np.array_equal(upright, shown[1])


@pytest.mark.parametrize(
    "entry",
    [
        (0x011A, 2, 2, b"7\0"),  # XResolution as text: Pillow calls the JPEG no image
        (0x011A, 2, 3, b"72\0"),
        (0x0131, 11, 1, struct.pack("<f", 1.5)),  # Software as a number
        (0x8769, 2, 4, b"here"),
    ],
)
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_a_wrongly_typed_entry_does_not_matter(
    entry: tuple[int, int, int, bytes], kind: str, tmp_path: Path
) -> None:
    exif = block([orientation(6), entry, (0x0128, 3, 1, b"\2\0")])
    content = encoded("webp", exif) if kind == "webp" else with_exif(kind, exif)
    expected = opened(encoded(kind, block([orientation(6)])), tmp_path)
    assert np.array_equal(opened(content, tmp_path), expected)


def test_the_orientation_of_xmp_counts_where_exif_has_none(tmp_path: Path) -> None:
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="3"/>'
    segment = b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp
    turned = opened(with_exif("jpeg", block([orientation(3)])), tmp_path)
    assert np.array_equal(opened(JPEG[:2] + segment + JPEG[2:], tmp_path), turned)
    both = with_exif("jpeg", block([orientation(1)]))
    assert np.array_equal(opened(both[:2] + segment + both[2:], tmp_path), opened(JPEG, tmp_path))


def test_exif_behind_the_pixels_counts(tmp_path: Path) -> None:
    late = with_exif("png", block([orientation(6)]))
    chunk = late[33 : len(late) - len(PNG) + 33]
    assert np.array_equal(opened(PNG[:-12] + chunk + PNG[-12:], tmp_path), TURNED[6])


def test_exif_in_hexadecimal_digits_counts_unless_they_are_none(tmp_path: Path) -> None:
    exif = block([orientation(6)])
    for digits, expected in ((exif.hex(), TURNED[6]), ("no digits", PIXELS), ("0", PIXELS)):
        text = f"Raw profile type exif\0\nexif\n{len(exif):8}\n{digits}\n".encode()
        chunk = struct.pack(">L", len(text)) + b"tEXt" + text
        chunk += struct.pack(">L", zlib.crc32(b"tEXt" + text))
        assert np.array_equal(opened(PNG[:33] + chunk + PNG[33:], tmp_path), expected)


def test_a_tiff_is_turned_once(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.tif", tiffinfo={0x0112: 6})
    assert np.array_equal(load_image(tmp_path / "a.tif", 16, 1)[..., 0], TURNED[6])


def test_an_image_with_malformed_exif_is_prepared(tmp_path: Path) -> None:
    """In the decoding processes; 60 x 40, so that its size is looked at, too."""
    draw = random.Random(3)
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            (tmp_path / "images" / name / f"{i}.jpg").write_bytes(
                with_exif("jpeg", mutated(draw, strange(draw, None))) + bytes([label, i])
            )
    manifest = packed(data(tmp_path / "images"), tmp_path)
    assert not manifest.rejected and manifest.image_size == 16


def test_a_broken_file_is_still_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="broken image"):
        opened(with_exif("jpeg", block([orientation(6)]))[:-200], tmp_path)
