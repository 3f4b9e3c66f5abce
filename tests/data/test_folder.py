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
from tests.data.test_prepare import ROOT, data, fill, packed


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


def test_splits_are_known_in_any_case(tmp_path: Path) -> None:
    index = index_folder(with_tops(tmp_path, "Train", "TEST"))
    assert index.classes == ("cat", "dog")
    assert {file.split for file in index.files} == {"train", "test"}


@pytest.mark.parametrize("tops", [("train", "test", "__MACOSX"), ("val", "test")])
def test_splits_are_never_taken_for_classes(tmp_path: Path, tops: tuple[str, ...]) -> None:
    with pytest.raises(PipelineError, match="splits or classes"):
        index_folder(with_tops(tmp_path, *tops))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for seed, name in enumerate(("bus", "car", "train")):
        fill(tmp_path / name, 2, seed)
    assert index_folder(tmp_path).classes == ("bus", "car", "train")


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
