"""From a folder or a torchvision set to packed splits: whole, seeded, and suspicious."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from pipeline.core.errors import PipelineError
from pipeline.data.decoding import CUT, DIM, REDUCED
from pipeline.data.images import load_image
from pipeline.data.params import Data
from pipeline.data.prepare import _auto_size, _split, prepare, summary
from pipeline.data.records import (
    SPLITS,
    Manifest,
    load_calibration,
    load_origins,
    load_split,
    load_stored,
)
from pipeline.data.sources import Samples, fetch
from pipeline.data.torchvision_sets import _makers

ROOT = Path(__file__).parents[2]


def data(folder: Path, **changes: Any) -> Data:
    fields = {
        "source": "folder", "name": "FashionMNIST", "folder": folder, "val_fraction": 0.2,
        "test_fraction": 0.25, "max_rejected": 0.05, "calibration_images": 8,
    }  # fmt: skip
    return Data.model_validate(fields | changes)


def noise(seed: int, size: tuple[int, int] = (12, 12)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def fill(folder: Path, count: int, seed: int, size: tuple[int, int] = (12, 12)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise(seed * 1000 + i, size).save(folder / f"{i:03}.png")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of 20 images of 12 px."""
    for seed, name in enumerate(("cat", "dog")):
        fill(tmp_path / "images" / name, 20, seed)
    return tmp_path / "images"


def packed(settings: Data, folder: Path, seed: int = 1) -> Manifest:
    raw = folder / "raw"
    fetch(settings, raw)
    return prepare(settings, seed, raw, folder / "packed", folder / "calibration")


def test_a_folder_is_split_in_proportion_and_nothing_is_lost(images: Path, tmp_path: Path) -> None:
    manifest = packed(data(images), tmp_path)
    assert manifest.classes == ("cat", "dog")
    assert manifest.counts == {
        "train": {"cat": 12, "dog": 12},
        "val": {"cat": 3, "dog": 3},
        "test": {"cat": 5, "dog": 5},
    }
    assert (manifest.image_size, manifest.channels) == (12, 3)
    found = set()
    for split in manifest.counts:
        pixels, labels = load_split(split, tmp_path / "packed")
        assert pixels.dtype == np.uint8 and labels.dtype == np.int64
        found |= {
            (image.tobytes(), int(label)) for image, label in zip(pixels, labels, strict=True)
        }
    expected = {
        (np.asarray(noise(label * 1000 + i)).tobytes(), label)
        for label in (0, 1)
        for i in range(20)
    }
    assert found == expected
    assert not manifest.rejected and not manifest.warnings


def test_the_statistics_are_those_of_the_train_pixels(images: Path, tmp_path: Path) -> None:
    manifest = packed(data(images), tmp_path)
    pixels = load_split("train", tmp_path / "packed")[0].astype(np.float64)
    np.testing.assert_allclose(manifest.mean, pixels.mean((0, 1, 2)))
    np.testing.assert_allclose(manifest.std, pixels.std((0, 1, 2)))


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    images: Path, tmp_path: Path
) -> None:
    one, two, three = (packed(data(images), tmp_path / str(n), n // 2) for n in (0, 1, 2))
    assert one == two
    assert three.digests["train_images.npy"] != one.digests["train_images.npy"]


def test_calibration_comes_from_train_and_is_stratified(images: Path, tmp_path: Path) -> None:
    manifest = packed(data(images), tmp_path)
    train, labels = load_split("train", tmp_path / "packed")
    places = {image.tobytes(): int(label) for image, label in zip(train, labels, strict=True)}
    chosen = [
        places[image.tobytes()] for image in load_calibration(manifest, tmp_path / "calibration")
    ]
    assert sorted(chosen) == [0] * 4 + [1] * 4


def test_a_disk_without_room_for_the_images_is_told_before_any_is_decoded(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=40 * 512 * 512 * 3 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(PipelineError, match=r"images take 31\.5 MB and the disk has 31\.5 MB free"):
        packed(data(images, image_size=512), tmp_path)
    assert not (tmp_path / "packed").exists()
    assert packed(data(images, image_size=511), tmp_path).image_size == 511


def test_photos_are_stored_larger_and_seen_as_bundles_cut_them(tmp_path: Path) -> None:
    for seed, name in enumerate(("cat", "dog")):
        fill(tmp_path / "images" / name, 8, seed, (110, 90))
    manifest = packed(data(tmp_path / "images", image_size=70), tmp_path)
    assert manifest.stored_size == 80  # 1.15 * 70
    files = list((tmp_path / "images").rglob("*.png"))
    known = {load_image(file, 70, 3, 80).tobytes(): load_image(file, 80, 3) for file in files}
    whole, _ = load_stored("train", tmp_path / "packed")
    for seen, stored in zip(load_split("train", tmp_path / "packed")[0], whole, strict=True):
        assert np.array_equal(known[seen.tobytes()], stored)
    for images in (
        load_split("val", tmp_path / "packed")[0],
        load_calibration(manifest, tmp_path / "calibration"),
    ):
        assert {image.tobytes() for image in images} <= known.keys()
    assert "images of 70 px, the centre of 80, 2 classes" in "\n".join(summary(manifest))


def test_an_image_in_train_and_test_is_found_although_train_is_stored_larger(
    tmp_path: Path,
) -> None:
    for seed, split in enumerate(("train", "val", "test")):
        for label, name in enumerate(("cat", "dog")):
            fill(tmp_path / "own" / split / name, 4, 10 * seed + label, (100, 90))
    shutil.copy(tmp_path / "own/test/cat/000.png", tmp_path / "own/train/cat/again.png")
    manifest = packed(data(tmp_path / "own", image_size=70), tmp_path)
    assert manifest.stored_size == 80
    assert any("1 images are in train and in test" in one for one in manifest.warnings)


@pytest.mark.parametrize(("size", "told"), [(11, "less"), (25, "more than twice as much")])
def test_a_stored_size_that_crops_cannot_be_cut_from_is_told(
    images: Path, tmp_path: Path, size: int, told: str
) -> None:
    with pytest.raises(PipelineError, match=rf"{told} than the images' 12 px.*\n.*12 and 24"):
        packed(data(images, stored_size=size), tmp_path)
    assert not (tmp_path / "packed").exists()


def test_small_images_are_stored_as_they_are_unless_asked_otherwise(
    images: Path, tmp_path: Path
) -> None:
    assert packed(data(images), tmp_path / "auto").stored_size == 12
    assert packed(data(images, stored_size=24), tmp_path / "set").stored_size == 24
    for seed, name in enumerate(("cat", "dog")):
        fill(tmp_path / "medium" / name, 8, seed, (75, 90))
    medium = packed(data(tmp_path / "medium", image_size=70), tmp_path / "as large")
    assert medium.stored_size == 75
    small = data(images, image_size=70)  # of 12 px: enlarging them once more gains nothing
    assert packed(small, tmp_path / "enlarged").stored_size == 70


def test_own_splits_are_kept(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "valid", "test")):
        for label, name in enumerate(("cat", "dog")):
            fill(tmp_path / "own" / split / name, 6 - seed, 10 * seed + label)
    manifest = packed(data(tmp_path / "own"), tmp_path)
    assert [manifest.size(split) for split in ("train", "val", "test")] == [12, 10, 8]


def test_mixed_sizes_get_one_size(images: Path, tmp_path: Path) -> None:
    noise(5, (40, 30)).save(images / "cat" / "large.jpg")
    assert packed(data(images), tmp_path).image_size == 64
    assert packed(data(images, image_size=24), tmp_path).image_size == 24


def test_grey_images_stay_grey_and_one_coloured_makes_all_rgb(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        fill(tmp_path / "grey" / name, 6, 1)
        for i, file in enumerate(sorted((tmp_path / "grey" / name).iterdir())):
            noise(i + len(name) * (name == "cat")).convert("L").save(file)
    assert packed(data(tmp_path / "grey"), tmp_path).channels == 1
    noise(99).save(tmp_path / "grey" / "cat" / "colour.png")
    assert packed(data(tmp_path / "grey"), tmp_path).channels == 3


def test_broken_files_are_listed(images: Path, tmp_path: Path) -> None:
    file = images / "cat" / "007.png"
    file.write_bytes(file.read_bytes()[:100])
    manifest = packed(data(images), tmp_path)
    assert [rejected.file for rejected in manifest.rejected] == [str(file)]
    assert sum(manifest.size(split) for split in manifest.counts) == 39


def test_what_the_images_lose_and_which_are_broken_is_on_the_screen(
    images: Path, tmp_path: Path
) -> None:
    noise(1, (60, 40)).save(images / "cat" / "wide.png")
    noise(2, (40, 60)).save(images / "dog" / "tall.png")
    deep = np.arange(144, dtype=np.uint16).reshape(12, 12)
    Image.fromarray(deep * 28).save(images / "cat" / "twelve_bits.png")  # up to 4004
    Image.fromarray(deep * 450).save(images / "dog" / "sixteen_bits.png")
    (images / "dog" / "colour.png").write_bytes(deep_colour(0x0FFF))
    (images / "dog" / "bro\x1b[2Jken.png").write_text("no image")
    manifest = packed(data(images), tmp_path)
    lines = summary(manifest)
    assert lines[0] == (
        f"folder {images}: every folder is a class; val and test will be cut from train"
    )
    assert f"warning: 2 of 45 {CUT}" in lines
    assert f"warning: 3 of 45 {REDUCED}" in lines
    assert f"warning: 2 of 45 {DIM}" in lines
    assert lines[-1] == (
        "warning: 1 broken files are left out:\n"
        f"    {images}/dog/bro\\x1b[2Jken.png: not an image that Pillow can read"
    )


def deep_colour(value: int) -> bytes:
    """A PNG of 2 x 2 pixels with three times 16 bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = (b"\0" + struct.pack(">H", value) * 6) * 2
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_too_many_broken_files_stop_the_run_and_leave_nothing(images: Path, tmp_path: Path) -> None:
    for i in range(5):
        (images / "dog" / f"{i:03}.png").write_text("no image")
    with pytest.raises(PipelineError, match="broken files are more than") as error:
        packed(data(images), tmp_path)
    assert str(images / "dog") in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "raw"]


def test_a_limit_holds_for_every_split(images: Path, tmp_path: Path) -> None:
    manifest = packed(data(images, limit=6), tmp_path)
    assert all(manifest.counts[split] == {"cat": 3, "dog": 3} for split in manifest.counts)


def test_the_same_picture_in_train_and_test_is_named(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val", "test")):
        for label, name in enumerate(("cat", "dog")):
            fill(tmp_path / "own" / split / name, 5, 10 * seed + label)
    shutil.copy(tmp_path / "own/train/cat/002.png", tmp_path / "own/test/cat/copied.png")
    shutil.copy(tmp_path / "own/train/cat/003.png", tmp_path / "own/train/dog/torn.png")
    leak, torn = packed(data(tmp_path / "own"), tmp_path).warnings
    assert "1 images are in train and in test" in leak
    assert "train: train/cat/002.png = test: test/cat/copied.png" in leak
    assert "1 images have two labels" in torn and "torn.png" in torn


def test_other_files_are_counted(images: Path, tmp_path: Path) -> None:
    (images / "cat" / "notes.txt").write_text("mine")
    (images / "cat" / ".hidden.png").write_text("not mine")
    assert packed(data(images), tmp_path).warnings == (
        "1 files are not used: cat/notes.txt",
        "1 hidden or system files and folders are skipped: cat/.hidden.png",
    )


def test_a_small_train_split_is_all_calibration_and_says_so(images: Path, tmp_path: Path) -> None:
    manifest = packed(data(images, calibration_images=512), tmp_path)
    assert len(load_calibration(manifest, tmp_path / "calibration")) == 24
    assert "all 24 train images calibrate int8" in manifest.warnings[0]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="there is no such folder"):
        fetch(data(tmp_path / "nowhere"), tmp_path / "raw")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["", ".", "..", "data", "/", "data/raw", "x" * 5000, "a\0b"])
def test_a_folder_that_holds_what_fetch_writes_is_refused(folder: str) -> None:
    with pytest.raises(ValidationError, match="folder"):
        data(Path(folder))


def test_an_empty_class_is_named(images: Path, tmp_path: Path) -> None:
    (images / "eel").mkdir()
    with pytest.raises(PipelineError, match="the class `eel` has no image"):
        fetch(data(images), tmp_path / "raw")


def test_one_class_is_too_few(images: Path, tmp_path: Path) -> None:
    shutil.rmtree(images / "dog")
    with pytest.raises(PipelineError, match="at least two"):
        fetch(data(images), tmp_path / "raw")


def test_splits_of_other_classes_are_refused(tmp_path: Path) -> None:
    for split, names in (("train", "ab"), ("test", "ac")):
        for label, name in enumerate(names):
            fill(tmp_path / "own" / split / name, 2, label)
    with pytest.raises(PipelineError, match="the difference is b, c"):
        fetch(data(tmp_path / "own"), tmp_path / "raw")


def test_an_unknown_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="did you mean FashionMNIST"):
        fetch(data(tmp_path, source="torchvision", name="FashonMNIST"), tmp_path / "raw")


def test_a_wrong_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "at_hand").mkdir()
    file = tmp_path / "at_hand" / "train-images-idx3-ubyte.gz"
    file.write_bytes(b"something else")
    with pytest.raises(PipelineError, match="its digest differs") as error:
        fetch(data(tmp_path / "at_hand", source="torchvision"), tmp_path / "raw")
    assert str(file) in str(error.value)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    ("name", "options", "splits"),
    [
        ("CIFAR10", {}, {"train", "test"}),
        ("EMNIST", {"split": "letters"}, {"train", "test"}),
        ("SVHN", {}, {"train", "test"}),
        ("Flowers102", {}, {"train", "val", "test"}),
        ("OxfordIIITPet", {}, {"train", "test"}),
        ("EuroSAT", {}, {"train"}),
    ],
)
def test_every_way_that_sets_name_their_splits_is_known(
    tmp_path: Path, name: str, options: dict[str, str], splits: set[str]
) -> None:
    settings = data(tmp_path, source="torchvision", name=name, options=options)
    assert set(_makers(settings, tmp_path, download=False)) == splits


def test_a_set_without_splits_is_cut(tmp_path: Path) -> None:
    """torchvision's FakeData brings neither files nor splits."""
    options = {"size": 40, "image_size": [3, 16, 16], "num_classes": 2}
    settings = data(tmp_path, source="torchvision", name="FakeData", options=options)
    manifest = packed(settings, tmp_path)
    assert manifest.size("test") == 10 and manifest.size("val") == 6
    assert (manifest.image_size, manifest.channels, len(manifest.classes)) == (16, 3, 2)


@pytest.mark.parametrize(("count", "size"), [(1500, 224), (100, 1024)])
def test_memory_is_bounded_while_images_stream(tmp_path: Path, count: int, size: int) -> None:
    """Over 220 MB as pixels, few large images or many small ones: no process holds them."""
    for label, name in enumerate(("cat", "dog")):
        fill(tmp_path / "large" / name, 3, label, (224, 224))
        for i in range(3, count // 2):  # other content, the cheap way
            source = tmp_path / "large" / name / f"{i % 3:03}.png"
            (tmp_path / "large" / name / f"{i:03}.png").hardlink_to(source)
    script = f"""
import resource, sys
from pathlib import Path
from tests.data.test_prepare import data, packed
if __name__ == "__main__":
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    packed(data(Path({str(tmp_path / "large")!r}), image_size={size}), Path({str(tmp_path)!r}))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    (tmp_path / "run.py").write_text(script)
    said = subprocess.run(
        [sys.executable, tmp_path / "run.py"], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(said.stdout) * 1024 < count * size**2


def test_an_interrupt_leaves_nothing_and_the_next_run_goes_on(tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        fill(tmp_path / "data" / "source" / name, 200, label, (224, 224))
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["data"] |= {"source": "folder", "image_size": 224}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    here = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    command = [sys.executable, "-m", "stages.prepare"]
    subprocess.run([sys.executable, "-m", "stages.fetch"], check=True, **here)
    stage = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **here)
    begun = ".packed.*.partial/train_images.npy"
    end = time.monotonic() + 60
    while not list((tmp_path / "data").glob(begun)) and time.monotonic() < end:
        time.sleep(0.01)
    stage.send_signal(signal.SIGINT)
    _, said = stage.communicate(timeout=60)
    assert stage.returncode == 130, said
    assert "run the same command again" in said and "Traceback" not in said
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["raw", "source"]
    subprocess.run(command, check=True, capture_output=True, **here)
    assert (tmp_path / "data/packed/manifest.json").exists()


@pytest.mark.parametrize(
    ("count", "message"),
    [(400, "the packed images take 5.2 MB"), (35, "the disk is full")],
    ids=["no room for the splits", "but for the calibration set"],
)
def test_a_full_disk_is_one_message_and_nothing_half_written(
    images: Path, tiny_disk: Path, count: int, message: str
) -> None:
    fill(images / "cat", count, 7, (64, 64))
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["data"] |= {"source": "folder", "folder": str(images), "image_size": 64}
    (tiny_disk / "params.yaml").write_text(yaml.safe_dump(tree))
    here = {"cwd": tiny_disk, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    subprocess.run([sys.executable, "-m", "stages.fetch"], check=True, **here)
    stage = subprocess.run(
        [sys.executable, "-m", "stages.prepare"], capture_output=True, text=True, **here
    )
    assert stage.returncode == 1, stage.stderr
    assert message in stage.stderr and "Traceback" not in stage.stderr
    assert [p.name for p in (tiny_disk / "data").iterdir()] == ["raw"]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({(28, 28): 70_000}, 28),
        ({(64, 64): 9}, 64),
        ({(65, 65): 9}, 64),
        ({(28, 30): 9}, 64),
        ({(28, 28): 1, (40, 40): 9}, 64),
        ({(100, 300): 9}, 128),
        ({(500, 375): 9, (60, 60): 8}, 224),
        ({(500, 375): 50_001}, 128),
        ({}, 64),
    ],
)
def test_auto_size_follows_the_images(sizes: dict[tuple[int, int], int], expected: int) -> None:
    shorter = [min(size) for size, count in sizes.items() for _ in range(count)]
    assert _auto_size(Counter(sizes), float(np.median(shorter or [0]))) == expected


def test_every_class_is_in_every_split_where_classes_are_many(tmp_path: Path) -> None:
    for label in range(12):
        fill(tmp_path / "many" / f"class{label:02d}", 4, label)
    manifest = packed(data(tmp_path / "many", val_fraction=0.05, test_fraction=0.05), tmp_path)
    assert all(min(manifest.counts[split].values()) >= 1 for split in ("train", "val", "test"))


@pytest.mark.parametrize("counts", [(3, 3), (3, 20), (3, 3, 3, 40), (20, 20), (3,) * 9 + (200,)])
def test_three_images_of_a_class_are_enough_for_three_splits(
    counts: tuple[int, ...], tmp_path: Path
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    train = np.full(len(labels), "train")
    samples = Samples("drawn", "none", tuple(map(str, range(len(counts)))), labels, train)
    splits = _split(samples, data(tmp_path), np.random.default_rng(0))
    assert sum(map(len, splits.values())) == len(labels)
    for indices in splits.values():
        assert set(labels[indices]) == set(labels)


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_of_fewer_is_named_with_the_number_that_it_needs(
    count: int, tmp_path: Path
) -> None:
    fill(tmp_path / "images" / "rare", count, 0)
    fill(tmp_path / "images" / "cat", count, 1)
    with pytest.raises(PipelineError) as error:
        packed(data(tmp_path / "images"), tmp_path)
    assert error.value.what == (
        f"the class `cat`, and 1 more cannot be split: it has {count} image(s) and needs at least "
        "3, one each for train, test, val"
    )


def test_a_broken_file_can_leave_a_class_too_small(images: Path, tmp_path: Path) -> None:
    fill(images / "rare", 3, 5)
    (images / "rare" / "001.png").write_bytes(b"no image")
    with pytest.raises(PipelineError, match=r"`rare` has no image in the .* broken ones"):
        packed(data(images), tmp_path)


def test_every_packed_image_has_its_file_and_size(images: Path, tmp_path: Path) -> None:
    noise(5, (30, 20)).save(images / "cat" / "wide.png")
    (images / "dog" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    packed(data(images, max_rejected=0.1, image_size=12), tmp_path)
    for split in SPLITS:
        pixels, _ = load_split(split, tmp_path / "packed")
        origins = load_origins(split, tmp_path / "packed")
        assert len(origins) == len(pixels)
        for image, origin in zip(pixels, origins, strict=True):
            with Image.open(images / origin.name) as opened:
                assert opened.size == (origin.width, origin.height)
                if opened.size == (12, 12):
                    assert (np.asarray(opened) == image).all()
