"""One picture twice is found however it was saved; look-alikes are not taken for it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance

from pipeline.data import duplicates
from pipeline.data.duplicates import LIMITS, Prints, closest, limit_of, prints
from pipeline.data.images import load_image

SIZE = 64
FAR, NEAR = LIMITS[0][1], LIMITS[1][1]


def picture(seed: int) -> Image.Image:
    """Colours whose spectrum falls as that of photos does, with 1 / frequency."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(180)[:, None], np.fft.rfftfreq(180)) + 1 / 180
    noise = random.standard_normal((3, *frequency.shape)) + 1j * random.standard_normal(
        (3, *frequency.shape)
    )
    plane = np.fft.irfft2(noise.mean(0) / frequency + 0.3 * noise / frequency, (180, 180))
    pixels = 128 + 45 * plane / plane.std()
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def packed(*pictures: Image.Image) -> NDArray[np.uint8]:
    return np.stack([load_image(one, SIZE, 3) for one in pictures])


def encoded(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def changed(image: Image.Image) -> dict[str, Image.Image]:
    side = image.width
    return {
        "smaller": image.resize((side // 2, side // 2)),
        "larger": image.resize((3 * side, 3 * side)),
        "encoded": encoded(image, 30),
        "brighter": ImageEnhance.Brightness(image).enhance(1.1),
        "paler": encoded(ImageEnhance.Contrast(image).enhance(0.7), 80),
        "grey": image.convert("L"),
        "a moment later": image.rotate(0.5).crop((1, 1, side - 2, side - 1)),
    }


@pytest.fixture(scope="module")
def originals() -> list[Image.Image]:
    return [picture(seed) for seed in range(60)]


@pytest.mark.parametrize("how", changed(Image.new("RGB", (9, 9))))
def test_a_picture_is_found_again(how: str, originals: list[Image.Image]) -> None:
    train = prints(packed(*originals))
    again = prints(packed(*(changed(one)[how] for one in originals[:20])))
    found = closest(again, train, limit_of(train))
    assert found.place.tolist() == list(range(20))
    assert (found.similarity <= 1.001).all()


def test_different_pictures_are_not_taken_for_one(originals: list[Image.Image]) -> None:
    train = prints(packed(*originals))
    assert limit_of(train) == FAR
    assert not len(closest(train, None, FAR).found())
    assert not len(closest(prints(packed(picture(1000))), train, FAR).found())


@pytest.mark.parametrize(("alike", "limit"), [(10, 0.945), (4, FAR)])
def test_the_limit_follows_from_many_pairs_not_from_a_burst(alike: int, limit: float) -> None:
    """Of 20 images some have a similarity of 0.25, in 24% or in 3% of the pairs; others of 0."""
    vectors = np.eye(21)[1:]
    vectors[:alike] = 0.75**0.5 * vectors[:alike] + 0.5 * np.eye(21)[0]
    images = Prints(vectors.astype(np.float32), vectors.astype(np.float16))
    assert limit_of(images) == pytest.approx(limit, abs=1e-4)


def garment(width: int, grey: int, shade: int) -> NDArray[np.uint8]:
    """A coat of some width on black: at a glance like all others."""
    image = Image.new("L", (28, 28))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((14 - width, 3, 14 + width, 25), 3, fill=grey)
    pen.line((14, 5, 14, 25), fill=shade)
    return np.asarray(image)[..., None]


def test_where_all_images_look_alike_only_the_same_picture_counts() -> None:
    random = np.random.default_rng(0)
    shapes = [
        garment(width, int(random.integers(120, 230)), int(random.integers(20, 100)))
        for width in (5, 6, 7, 8, 9)
        for _ in range(3)
    ]
    speckled = [
        np.where(shape > 0, np.clip(shape + random.normal(0, 25, shape.shape), 1, 255), 0)
        for shape in shapes
    ]
    images = np.stack(speckled).astype(np.uint8)
    train = prints(images)
    limit = limit_of(train)
    assert limit == NEAR
    assert not len(closest(train, None, limit).found())
    brighter = np.clip(images[4:6] * 1.05, 0, 255).round().astype(np.uint8)
    assert closest(prints(brighter), train, limit).place.tolist() == [4, 5]


def test_the_similarity_is_the_cosine_of_the_gradients() -> None:
    images = np.random.default_rng(1).integers(0, 256, (6, 48, 72, 3)).astype(np.uint8)
    means = images.reshape(6, 24, 2, 24, 3, 3).mean((2, 4, 5))
    gradients = np.concatenate(
        [np.diff(means, axis=axis).reshape(6, -1) for axis in (1, 2)], axis=1
    )
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    fine = prints(images).fine.astype(np.float64)
    np.testing.assert_allclose(fine @ fine.T, unit @ unit.T, atol=1e-3)


def test_means_are_taken_where_parts_end_within_pixels() -> None:
    line = np.array([3.0, 6, 12, 24])
    expected = [(3 + 6 / 3) / (4 / 3), (6 * 2 / 3 + 12 * 2 / 3) / (4 / 3), (12 / 3 + 24) / (4 / 3)]
    np.testing.assert_allclose(duplicates._means(4, 3) @ line, expected, rtol=1e-6)


@pytest.mark.parametrize("within", [True, False])
def test_blocks_find_what_a_comparison_of_all_pairs_finds(
    within: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_ROWS", 7)
    monkeypatch.setattr(duplicates, "_COLUMNS", 11)
    monkeypatch.setattr(duplicates, "_PAIRS", 5)
    base = np.random.default_rng(2).integers(0, 256, (9, 24, 24, 1))
    copies = np.repeat(base, 4, axis=0) + np.random.default_rng(3).normal(0, 12, (36, 24, 24, 1))
    images = prints(np.clip(copies[np.random.default_rng(4).permutation(36)], 0, 255).astype("u1"))
    others = images if within else prints(np.clip(copies[::3], 0, 255).astype(np.uint8))
    exact = images.fine.astype(np.float32) @ others.fine.astype(np.float32).T
    if within:
        exact = np.tril(exact, -1)
    expected = np.where(exact.max(1) >= 0.9, exact.argmax(1), -1)
    found = closest(images, None if within else others, 0.9)
    assert found.place.tolist() == expected.tolist()
    assert (found.place >= 0).sum() == (27 if within else 36)
    np.testing.assert_allclose(found.similarity, np.where(expected >= 0, exact.max(1), 0), 1e-5)


def test_a_thousand_copies_are_all_found_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_ROWS", 64)
    one = prints(packed(picture(5)))
    copies = Prints(np.repeat(one.coarse, 1000, 0), np.repeat(one.fine, 1000, 0))
    assert len(closest(copies, None, NEAR).found()) == 999


def test_of_more_candidates_than_are_compared_the_most_similar_ones_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duplicates, "_MOST", 1)
    train = prints(packed(*map(picture, range(12))))
    assert closest(train, train, 0.03).place.tolist() == list(range(12))


def test_flat_images_and_sets_of_one_image_have_no_near_duplicates() -> None:
    flat = prints(np.full((3, 8, 8, 1), 77, np.uint8))
    assert not len(closest(flat, None, FAR).found())
    assert limit_of(prints(packed(picture(0)))) == FAR
