"""What people's folders are really like is indexed, or refused in one clear sentence."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.data.folder import index_folder
from tests.data.test_prepare import ROOT, data, fill, noise, packed


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed, name in enumerate(("cat", "dog")):
        fill(tmp_path / "images" / name, 20, seed)
    return tmp_path / "images"


def with_tops(folder: Path, *tops: str) -> Path:
    for seed, top in enumerate(tops):
        for label, name in enumerate(("cat", "dog")):
            fill(folder / top / name, 2, 10 * seed + label)
    return folder


@pytest.mark.parametrize(
    ("tops", "layout"),
    [
        (("Train", "TEST"), "`TEST` is test, `Train` is train; val will be cut from train"),
        (("Training", "Testing"), "`Testing` is test, `Training` is train; val will be cut"),
        (("train", "eval"), "`eval` is test, `train` is train"),
        (("train", "dev", "evaluation"), "`dev` is val, `evaluation` is test, `train` is train"),
        (("train",), "`train` is train; val and test will be cut from train"),
        (("train", "valid", "test", "__MACOSX"), "`valid` is val"),
    ],
)
def test_splits_are_known_by_every_common_name(
    tmp_path: Path, tops: tuple[str, ...], layout: str
) -> None:
    index = index_folder(with_tops(tmp_path, *tops))
    assert index.classes == ("cat", "dog")
    assert layout in index.layout


@pytest.mark.parametrize(
    "tops",
    [
        ("val", "test"),
        ("train", "test1"),
        ("train", "unlabelled"),
        ("train", "test", "eval"),
        ("training_set", "test_set"),
        ("bus", "car", "train"),
    ],
)
def test_splits_are_never_taken_for_classes(tmp_path: Path, tops: tuple[str, ...]) -> None:
    with pytest.raises(PipelineError, match="splits or classes") as error:
        index_folder(with_tops(tmp_path, *tops))
    assert all(top in error.value.what for top in tops)


def test_a_class_may_be_called_train_below_a_split(tmp_path: Path) -> None:
    for seed, name in enumerate(("bus", "car", "train")):
        fill(tmp_path / "train" / name, 2, seed)
    assert index_folder(tmp_path).classes == ("bus", "car", "train")


def test_names_that_only_contain_a_splits_name_are_classes(tmp_path: Path) -> None:
    for seed, name in enumerate(("beaker", "test_tube")):
        fill(tmp_path / name, 2, seed)
    index = index_folder(tmp_path)
    assert index.classes == ("beaker", "test_tube")
    assert index.layout == "every folder is a class; val and test will be cut from train"


def test_splits_below_the_classes_are_not_mixed(tmp_path: Path) -> None:
    for seed, name in enumerate(("cat", "dog")):
        fill(tmp_path / name / "train", 2, seed)
        fill(tmp_path / name / "test", 2, seed + 5)
    with pytest.raises(PipelineError, match="every class folder holds folders of splits"):
        index_folder(tmp_path)


@pytest.mark.parametrize("place", ["eel", "cat/more"])
def test_a_folder_behind_a_link_is_refused_as_dvc_does_not_see_it(
    images: Path, tmp_path: Path, place: str
) -> None:
    fill(tmp_path / "elsewhere", 3, 9)
    (images / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PipelineError, match="a folder that is a symbolic link") as error:
        index_folder(images)
    assert error.value.where == str(images / place)


def test_linked_images_and_a_linked_folder_as_a_whole_are_used(
    images: Path, tmp_path: Path
) -> None:
    """DVC reads through both, so that a change is noticed."""
    noise(99).save(tmp_path / "far.png")
    (images / "cat" / "far.png").symlink_to(tmp_path / "far.png")
    (tmp_path / "link").symlink_to(images)
    assert len(index_folder(tmp_path / "link").files) == 41


@pytest.mark.parametrize("hidden", ["@eaDir", ".thumbnails", "__MACOSX", "._000.png", "@EADIR"])
@pytest.mark.parametrize("below", ["", "cat"])
def test_hidden_and_system_files_are_no_images_and_are_counted(
    images: Path, hidden: str, below: str
) -> None:
    where = images / below / hidden
    if where.suffix:
        shutil.copy(images / "cat" / "000.png", where)
    else:
        fill(where, 2, 5)
    index = index_folder(images)
    assert index.skipped == (where.relative_to(images).as_posix(),)
    assert index.classes == ("cat", "dog") and len(index.files) == 40 and not index.ignored


@pytest.mark.parametrize(
    "names", [("caf\u00e9", "cafe\u0301"), ("Cat", "cat"), ("stra\u00dfe", "STRASSE")]
)
@pytest.mark.parametrize("splits", [("", ""), ("train", "test")])
def test_class_names_that_differ_in_form_alone_are_refused(
    tmp_path: Path, names: tuple[str, str], splits: tuple[str, str]
) -> None:
    """Some file systems keep them apart and others do not; a person sees one name."""
    for seed, (split, name) in enumerate(zip(splits, names, strict=True)):
        fill(tmp_path / split / name, 2, seed)
        fill(tmp_path / split / "other", 2, seed + 5)
    with pytest.raises(PipelineError, match="differ only in case or in the Unicode form") as error:
        index_folder(tmp_path)
    assert all(ascii(name) in error.value.what for name in names)


def test_a_class_name_with_a_line_end_is_shown_escaped(images: Path) -> None:
    (images / "cat").rename(images / "ca\nt")
    with pytest.raises(PipelineError, match="a line end or another control character") as error:
        index_folder(images)
    assert r"'ca\nt'" in error.value.what


def test_a_folder_that_cannot_be_read_is_named(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deeper than a path may be long: unreadable for root, too."""
    monkeypatch.chdir(images / "cat")
    for _ in range(20):
        os.mkdir("d" * 250)  # noqa: PTH102 - relative, as the whole path would be too long
        monkeypatch.chdir("d" * 250)
    with pytest.raises(PipelineError, match="the folder cannot be read") as error:
        index_folder(images)
    assert error.value.where is not None and error.value.where.startswith(str(images / "cat" / "d"))


def test_what_is_not_used_is_listed(images: Path) -> None:
    shutil.copy(images / "cat" / "000.png", images / "loose.png")
    (images / "cat" / "paper.pdf").write_text("an extension that Pillow writes but cannot read")
    (images / "dog" / "lost.png").symlink_to("/nowhere/lost.png")
    index = index_folder(images)
    assert index.ignored == ("loose.png", "cat/paper.pdf", "dog/lost.png")
    assert len(index.files) == 40


def test_a_name_that_is_not_utf8_is_named(images: Path) -> None:
    (images / "cat" / "000.png").rename(os.fsdecode(os.fsencode(images / "cat") + b"/\xe9.png"))
    with pytest.raises(PipelineError, match="not valid UTF-8") as error:
        index_folder(images)
    assert r"cat/\udce9.png" in str(error.value)


def test_a_file_that_cannot_be_read_is_named(images: Path) -> None:
    (images / "cat" / "bad.png").symlink_to("/proc/self/mem")  # reading it fails for anyone
    with pytest.raises(PipelineError, match="cannot be read") as error:
        index_folder(images)
    assert str(images / "cat" / "bad.png") in str(error.value)


def test_an_image_too_large_to_be_true_is_rejected(images: Path, tmp_path: Path) -> None:
    """A few bytes that claim 900 million pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    (images / "cat" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    (rejected,) = packed(data(images), tmp_path).rejected
    assert rejected.file.endswith("bomb.png") and "decompression bomb" in rejected.reason


def test_a_folder_of_images_needs_no_torch(images: Path, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from pipeline.data.params import Data
from pipeline.data.prepare import prepare
from pipeline.data.sources import fetch
if __name__ == "__main__":
    settings = Data.model_validate_json(sys.argv[1])
    fetch(settings, Path("raw"))
    prepare(settings, 1, Path("raw"), Path("packed"), Path("calibration"))
    assert "torch" not in sys.modules
"""
    (tmp_path / "run.py").write_text(script)
    command = [sys.executable, "run.py", data(images).model_dump_json()]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
