"""Every kind of image file becomes the pixels that a person would expect."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.data import images
from pipeline.data.images import ImageError, is_grey, load_image

GRADIENT = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def saved(folder: Path, image: Image.Image, name: str = "image.png", **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def colour(*rgba: int, mode: str = "RGBA") -> Image.Image:
    return Image.new(mode, (8, 8), rgba if len(rgba) > 1 else rgba[0])


def test_an_image_of_the_right_size_keeps_its_pixels(tmp_path: Path) -> None:
    found = load_image(saved(tmp_path, Image.fromarray(GRADIENT)), 8, 1)
    assert found.dtype == np.uint8 and found.shape == (8, 8, 1)
    assert np.array_equal(found[..., 0], GRADIENT)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    found = load_image(saved(tmp_path, Image.fromarray(GRADIENT)), 8, 3)
    assert all(np.array_equal(found[..., channel], GRADIENT) for channel in range(3))


def test_colour_becomes_grey_by_luma(tmp_path: Path) -> None:
    """ITU-R 601: 0.299 R + 0.587 G + 0.114 B."""
    found = load_image(saved(tmp_path, colour(200, 100, 50, mode="RGB")), 8, 1)
    assert abs(int(found[0, 0, 0]) - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)) <= 1


@pytest.mark.parametrize(("alpha", "expected"), [(0, (255, 255, 255)), (255, (10, 20, 30))])
def test_transparency_shows_white(
    tmp_path: Path, alpha: int, expected: tuple[int, int, int]
) -> None:
    found = load_image(saved(tmp_path, colour(10, 20, 30, alpha)), 8, 3)
    assert tuple(found[4, 4]) == expected


def test_grey_with_alpha_shows_white(tmp_path: Path) -> None:
    assert load_image(saved(tmp_path, colour(0, 0, mode="LA")), 8, 1)[0, 0, 0] == 255


def test_a_palette_gives_its_colours_and_its_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 9, 99, 199])
    assert tuple(load_image(saved(tmp_path, image), 8, 3)[0, 0]) == (9, 99, 199)
    clear = saved(tmp_path, image, "clear.png", transparency=1)
    assert tuple(load_image(clear, 8, 3)[0, 0]) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = (GRADIENT.astype(np.uint16)) * 257
    found = load_image(saved(tmp_path, Image.fromarray(values)), 8, 1)
    assert np.array_equal(found[..., 0], GRADIENT)


def test_sixteen_bits_are_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = saved(tmp_path, Image.fromarray(GRADIENT.astype(np.uint16) * 257), exif=exif)
    assert np.array_equal(load_image(file, 8, 1)[..., 0], np.rot90(GRADIENT, -1))


def test_half_transparent_grey_is_mixed_with_white(tmp_path: Path) -> None:
    found = load_image(saved(tmp_path, colour(100, 128, mode="LA")), 8, 1)[0, 0, 0]
    assert abs(int(found) - (100 * 128 + 255 * 127) / 255) <= 1


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    file = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "image.jpg")
    assert load_image(file, 8, 3).max() < 10


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image = Image.fromarray(GRADIENT)
    file = saved(tmp_path, image, exif=exif)
    assert np.array_equal(load_image(file, 8, 1)[..., 0], np.rot90(GRADIENT, -1))


def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path: Path) -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 16:48] = 200  # the centre square
    found = load_image(saved(tmp_path, Image.fromarray(pixels)), 16, 3)
    assert found.shape == (16, 16, 3) and (found[:, 1:-1] == 200).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_strips_of_a_large_image_give_the_pixels_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, mode: str, channels: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (61, 97, 4), np.uint8)
    image = Image.fromarray(noise)
    if mode == "I;16":
        image = Image.fromarray(noise.view(np.uint16)[..., 0])
    elif mode != "RGBA":
        image = image.convert("RGB").convert("L" if mode == "LA" else mode).convert(mode)
    whole = load_image(image, 28, channels)
    monkeypatch.setattr(images, "_STRIP_PIXELS", 500)
    assert np.array_equal(load_image(image, 28, channels), whole)


def test_an_image_that_needs_no_conversion_is_not_copied(tmp_path: Path) -> None:
    """A PNG of some kB can hold a hundred megapixels: each copy would take 4 bytes for each."""
    with Image.open(saved(tmp_path, Image.new("RGB", (8, 8)))) as image:
        assert images._converted(image, "RGB") is image


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "tif", "webp", "bmp", "jp2", "avif"])
def test_a_truncated_file_is_broken(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = saved(tmp_path, Image.fromarray(noise), f"broken.{kind}")
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(ImageError, match="broken image"):
        load_image(file, 8, 3)


def test_an_avif_without_its_item_is_broken(tmp_path: Path) -> None:
    """Pillow reports this format's faults as RuntimeError."""
    file = saved(tmp_path, Image.fromarray(GRADIENT), "broken.avif")
    file.write_bytes(file.read_bytes().replace(b"iloc", b"free"))
    with pytest.raises(ImageError, match="broken image"):
        load_image(file, 8, 3)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(ImageError, match="not an image"):
        load_image(tmp_path / "a.png", 8, 3)
    with pytest.raises(ImageError, match="no such image"):
        load_image(tmp_path / "b.png", 8, 3)


@pytest.mark.parametrize(
    "head", [b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"II*\0\x08\0\0\0\xff\xff"]
)
def test_300_mb_of_junk_are_refused_at_once(tmp_path: Path, head: bytes) -> None:
    """Pillow would look for the end of the header byte by byte."""
    with (tmp_path / "junk.jpg").open("wb") as file:
        file.write(head)
        file.truncate(300_000_000)
    start = time.monotonic()
    with pytest.raises(ImageError, match=r"not an image|does not end within"):
        load_image(tmp_path / "junk.jpg", 8, 3)
    assert time.monotonic() - start < 5


def test_float_pixels_are_refused_as_their_white_is_not_known(tmp_path: Path) -> None:
    file = saved(tmp_path, Image.fromarray(np.ones((8, 8), np.float32)), "a.tiff")
    with pytest.raises(ImageError, match="what is white is not known"):
        load_image(file, 8, 1)


def test_a_palette_is_grey_if_its_colours_are() -> None:
    image = Image.new("P", (8, 8))
    image.putpalette([0, 0, 0, 7, 7, 7])
    assert is_grey(image)
    image.putpalette([0, 0, 0, 7, 8, 7])
    assert not is_grey(image)
    assert is_grey(Image.new("L", (8, 8))) and not is_grey(Image.new("RGB", (8, 8)))


def picture(width: int, height: int) -> Image.Image:
    """Smooth shapes with some noise, as in a photo."""
    random = np.random.default_rng(1)
    coarse = random.integers(0, 256, (height // 40, width // 40, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noise = random.normal(0, 3, smooth.shape)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "options"), [
    ((640, 480), {}), ((481, 643), {}), ((643, 401), {"progressive": True}),
])  # fmt: skip
def test_a_large_jpeg_decoded_smaller_has_the_pixels_of_the_whole(
    tmp_path: Path, mode: str, channels: int, size: tuple[int, int], options: dict[str, bool]
) -> None:
    file = saved(tmp_path, picture(*size).convert(mode), "a.jpg", quality=90, **options)
    with Image.open(file) as image:
        image.load()
        whole = load_image(image, 64, channels).astype(int)
    with Image.open(file) as image:
        found = load_image(image, 64, channels)
        assert min(image.size) < min(size) / 2 + 1 and min(image.size) >= 128
    error = np.abs(found - whole)
    assert error.mean() < 0.5 and error.max() <= 8
    assert np.array_equal(found, load_image(file, 64, channels))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_is_turned_and_cut_as_the_whole_is(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(tmp_path, picture(643, 401), "a.jpg", quality=90, exif=exif)
    with Image.open(file) as image:
        whole = load_image(ImageOps.exif_transpose(image), 64, 3).astype(int)
    error = np.abs(load_image(file, 64, 3) - whole)
    assert error.mean() < 0.5 and error.max() <= 8


def test_a_jpeg_of_less_than_four_times_the_size_is_decoded_in_full(tmp_path: Path) -> None:
    file = saved(tmp_path, picture(500, 375), "a.jpg", quality=90)
    with Image.open(file) as image:
        expected = ImageOps.fit(image.convert("RGB"), (224, 224), Image.Resampling.BILINEAR)
    assert np.array_equal(load_image(file, 224, 3), np.asarray(expected))


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_centre_is_cut_out_of_what_the_shorter_side_is_resized_to(
    tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(tmp_path, picture(300, 211), "a.png", exif=exif)
    with Image.open(file) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    whole = np.asarray(ImageOps.fit(upright, (73, 73), Image.Resampling.BILINEAR))
    found = load_image(file, 64, 3, 73).astype(int)
    assert np.abs(found - whole[4:68, 4:68]).max() <= 1  # turned before or after it is resized


def test_a_jpeg_of_several_pictures_as_phones_write_it_is_decoded_smaller_too(
    tmp_path: Path,
) -> None:
    image = picture(643, 401)
    file = saved(tmp_path, image, "a.mpo", quality=90, save_all=True, append_images=[image])
    with Image.open(file) as opened:
        found = load_image(opened, 64, 3)
        assert (opened.format, opened.size) == ("MPO", (322, 201))
    assert np.abs(found - load_image(image, 64, 3).astype(int)).mean() < 1.5
