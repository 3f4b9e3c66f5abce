"""Images without labels: packed once, never from val or test, shown at a set ratio."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.errors import PipelineError
from pipeline.data import params
from pipeline.data.params import Augment
from pipeline.data.prepare import summary
from pipeline.data.records import load_split
from pipeline.data.sources import fetch
from pipeline.data.unlabelled import INDEX, UNKNOWN, Joined, epoch_images, load_shown, repeats
from pipeline.data.views import Views
from pipeline.training.params import TeacherViews
from tests.data.test_prepare import data, fill, packed

HALF = params.Views(unlabelled=0.5)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of 20 images of 12 px, and 9 images without labels in folders of any depth."""
    for seed, name in enumerate(("cat", "dog")):
        fill(tmp_path / "images" / name, 20, seed)
    fill(tmp_path / "more", 5, 7)
    fill(tmp_path / "more" / "deep" / "er", 4, 8)
    (tmp_path / "more" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def test_a_folder_is_packed_beside_the_same_splits(images: Path, tmp_path: Path) -> None:
    plain = packed(data(images), tmp_path / "plain")
    manifest = packed(data(images, unlabelled=tmp_path / "more"), tmp_path / "with")
    assert (plain.unlabelled, manifest.unlabelled) == (0, 9)
    assert plain.digests.items() < manifest.digests.items()
    assert manifest.counts == plain.counts and manifest.mean == plain.mean
    assert "and 9 unlabelled images" in summary(manifest)[1]
    shown = load_shown(manifest, params.Views(), folder=tmp_path / "with" / "packed")
    assert (shown.labels == UNKNOWN).sum() == 9


def test_labels_are_kept_per_class_and_the_rest_loses_them(images: Path, tmp_path: Path) -> None:
    whole = packed(data(images), tmp_path / "whole")
    few = packed(data(images, labels=3), tmp_path / "few")
    assert few.counts["train"] == {"cat": 3, "dog": 3}
    assert few.unlabelled == whole.size("train") - 6
    every = {image.tobytes() for image in load_split("train", tmp_path / "whole" / "packed")[0]}
    shown = load_shown(few, params.Views(), folder=tmp_path / "few" / "packed")
    assert {image.tobytes() for image in shown.images[:]} == every
    for split in ("val", "test"):
        assert few.digests[f"{split}_images.npy"] == whole.digests[f"{split}_images.npy"]


def test_more_labels_than_a_class_has_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="13 labels of each class are asked for; `cat` has 12"):
        packed(data(images, labels=13), tmp_path)


def test_an_image_of_test_among_them_is_refused_by_name(images: Path, tmp_path: Path) -> None:
    for file in (images / "cat").iterdir():  # some are train's, one at least is of test
        shutil.copy(file, tmp_path / "more" / f"copy of {file.name}")
    with pytest.raises(
        PipelineError,
        match=r"have the pixels of val or test.*: \S*more/copy of .*png = (val|test): ",
    ):
        packed(data(images, unlabelled=tmp_path / "more"), tmp_path)
    assert not (tmp_path / "packed").exists()


def test_an_image_of_train_among_them_is_left_out(images: Path, tmp_path: Path) -> None:
    packed(data(images), tmp_path)
    known = {image.tobytes() for image in load_split("train", tmp_path / "packed")[0]}
    from tests.data.test_prepare import noise

    name = next(f"{i:03}.png" for i in range(20) if np.asarray(noise(i)).tobytes() in known)
    shutil.copy(images / "cat" / name, tmp_path / "more" / "copy.png")
    manifest = packed(data(images, unlabelled=tmp_path / "more"), tmp_path)
    assert manifest.unlabelled == 9
    (warning,) = manifest.warnings
    assert warning.startswith("1 unlabelled images are left out") and "copy.png" in warning


@pytest.mark.parametrize("what", ["missing", "empty", "text"])
def test_a_folder_without_images_is_refused(images: Path, tmp_path: Path, what: str) -> None:
    folder = tmp_path / what
    if what != "missing":
        folder.mkdir()
    if what == "text":
        (folder / "list.txt").write_text("1.png")
    with pytest.raises(PipelineError, match=r"no such folder|no image in it") as caught:
        packed(data(images, unlabelled=folder), tmp_path)
    assert str(folder) in str(caught.value)


def test_a_changed_image_makes_what_was_fetched_stale(images: Path, tmp_path: Path) -> None:
    settings = data(images, unlabelled=tmp_path / "more")
    packed(settings, tmp_path)
    before = (tmp_path / "raw" / INDEX).read_bytes()
    shutil.copy(images / "cat" / "000.png", next((tmp_path / "more").glob("*.png")))
    fetch(settings, tmp_path / "raw")
    assert (tmp_path / "raw" / INDEX).read_bytes() != before


def test_broken_ones_are_named_and_too_many_stop_the_run(images: Path, tmp_path: Path) -> None:
    (tmp_path / "more" / "broken.png").write_bytes(b"no image")
    manifest = packed(data(images, unlabelled=tmp_path / "more"), tmp_path)
    assert [Path(one.file).name for one in manifest.rejected] == ["broken.png"]
    for i in range(4):
        (tmp_path / "more" / f"broken{i}.png").write_bytes(b"no image")
    with pytest.raises(PipelineError, match="max_rejected"):
        packed(data(images, unlabelled=tmp_path / "more"), tmp_path)


def test_the_rarer_kind_is_repeated_up_to_the_ratio() -> None:
    assert repeats(1000, 54_200, params.Views()) == (8, 1)  # 8,000 of 62,200 is an eighth
    assert repeats(1000, 500, params.Views()) == (1, 1)
    assert repeats(1000, 54_200, TeacherViews()) == (54, 1)
    assert repeats(1000, 500, HALF) == (1, 2)
    assert (
        repeats(1000, 0, params.Views()) == repeats(1000, 500, params.Views(unlabelled=0)) == (1, 0)
    )


def shown(augment: Augment) -> Views:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
    joined = Joined(pixels[:10], pixels[10:], (2, 1))
    labels = np.concatenate([np.tile(np.arange(10) % 3, 2), np.full(20, UNKNOWN)])
    known = pixels[:10], np.arange(10) % 3
    return Views(joined, labels, augment, classes=3, seed=1, known=known)


def test_repeated_images_have_views_of_their_own() -> None:
    plain = Augment(flip=False, shift=0)
    pixels, labels = shown(plain).batch(0, np.array([3, 13, 25]), torch.device("cpu"))
    assert torch.equal(pixels[0], pixels[1]) and labels.tolist() == [0, 0, UNKNOWN]
    moved, _ = shown(Augment(shift=4)).batch(0, np.arange(20), torch.device("cpu"))
    assert sum(not torch.equal(moved[i], moved[i + 10]) for i in range(10)) > 5


def test_mixtures_have_all_of_their_labels_or_none() -> None:
    views = shown(Augment(mixup=1.0, cutmix=1.0))
    _, shares = views.batch(0, np.arange(40), torch.device("cpu"))
    assert torch.allclose(shares[:20].sum(1), torch.ones(20))
    assert (shares[20:] == 0).all()


def test_an_epoch_has_as_many_images_as_its_views(images: Path, tmp_path: Path) -> None:
    manifest = packed(data(images, labels=2), tmp_path)
    stream = load_shown(manifest, HALF, tmp_path / "packed")
    assert sum(epoch_images(manifest, HALF)) == len(stream.labels) == len(stream.images)
