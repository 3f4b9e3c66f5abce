"""torchvision's sets: verified wherever they come from, and one clear error where they don't."""

from __future__ import annotations

import contextlib
import gzip
import io
import socket
import stat
import struct
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError
from pipeline.core.patches import import_torchvision
from pipeline.data.archives import unpack
from pipeline.data.known_sets import KNOWN_SETS
from pipeline.data.params import Data
from pipeline.data.prepare import prepare
from pipeline.data.records import FETCHED, Fetched
from pipeline.data.sources import fetch
from pipeline.data.torchvision_sets import _makers, _unverified, open_set
from tests.data.test_prepare import data

import_torchvision()
from torchvision import datasets  # noqa: E402 - only now can it be imported beside any torch


def settings(folder: Path, name: str = "FashionMNIST", **options: Any) -> Data:
    return data(folder, source="torchvision", name=name, options=options)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mirror can be reached from this process; apt runs in one of its own."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise OSError("the network is closed")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def write_idx(file: Path, values: NDArray[np.uint8]) -> None:
    shape = struct.pack(f">{values.ndim}I", *values.shape)
    file.write_bytes(struct.pack(">HBB", 0, 8, values.ndim) + shape + values.tobytes())


@pytest.mark.usefixtures("no_network")
def test_fashion_mnist_comes_from_debian_and_then_from_a_folder(tmp_path: Path) -> None:
    try:
        fetch(settings(tmp_path / "none"), tmp_path / "raw")
    except PipelineError as error:
        assert "torchvision's mirrors" in error.what and "dataset-fashion-mnist" in error.what
        pytest.skip("neither the mirrors nor Debian's package can be reached")
    files = sorted((tmp_path / "raw" / "FashionMNIST" / "raw").iterdir())
    (tmp_path / "at_hand").mkdir()
    for file in files:  # compressed anew, as Debian does: another archive, the same content
        archive = tmp_path / "at_hand" / f"{file.name}.gz"
        archive.write_bytes(gzip.compress(file.read_bytes(), compresslevel=1))
    fetch(settings(tmp_path / "at_hand"), tmp_path / "again")
    for split, size in (("train", 60_000), ("test", 10_000)):
        part = open_set(settings(tmp_path), tmp_path / "again")[split]
        assert np.bincount(part.targets).tolist() == [size // 10] * 10


@pytest.mark.usefixtures("no_network")
def test_a_set_that_cannot_be_had_says_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="could not be fetched") as error:
        fetch(settings(tmp_path / "none", "CIFAR10"), tmp_path / "raw")
    assert "torchvision's mirrors" in error.value.what
    assert error.value.fix is not None and "data.folder" in error.value.fix
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("CIFAR10", "cifar-10-python.tar.gz"),
        ("SVHN", "train_32x32.mat"),
        ("EuroSAT", "EuroSAT.zip"),
        ("MNIST", "train-labels-idx1-ubyte.gz"),
    ],
)
def test_a_wrong_archive_of_any_set_is_named(tmp_path: Path, name: str, file: str) -> None:
    (tmp_path / "at_hand").mkdir()
    (tmp_path / "at_hand" / file).write_bytes(b"something else")
    with pytest.raises(PipelineError, match="its digest differs") as error:
        fetch(settings(tmp_path / "at_hand", name), tmp_path / "raw")
    assert str(tmp_path / "at_hand" / file) in str(error.value)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("EMNIST", {}, "'split'"),
        ("EMNIST", {"split": "foo"}, "Unknown value 'foo'"),
        ("SVHN", {"split": "foo"}, "Unknown value 'foo'"),
        ("Places365", {"split": "train"}, "train-standard"),
        ("FashionMNIST", {"splitt": 1}, "takes no splitt"),
    ],
)
def test_wrong_options_are_one_clear_error(
    tmp_path: Path, name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(PipelineError, match=said) as error:
        fetch(settings(tmp_path / "none", name, **options), tmp_path / "raw")
    assert error.value.where is not None and "data.options" in error.value.where


@pytest.mark.parametrize("name", sorted(KNOWN_SETS))
def test_the_table_of_sets_is_that_of_the_installed_torchvision(tmp_path: Path, name: str) -> None:
    """Every split is accepted, and every digest stands in the source code."""
    options = {"EMNIST": {"split": "letters"}}.get(name, {})
    for make in _makers(settings(tmp_path, name, **options), tmp_path, download=False).values():
        try:
            with contextlib.suppress(OSError, RuntimeError):  # it looks for files last
                make()
        except PipelineError as error:
            assert "needs the package" in error.what
    source = Path(sys.modules[getattr(datasets, name).__module__].__file__).read_text()
    for archive, digest in KNOWN_SETS[name].archives.items():
        assert digest is None or digest in source, archive


def test_a_set_that_is_no_classification_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no classification set") as error:
        fetch(settings(tmp_path, "CocoDetection"), tmp_path / "raw")
    assert error.value.fix is not None and "CIFAR10" in error.value.fix


def tar(folder: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    """An archive with a sound file and then the member `name`."""
    archive = folder / "fgvc-aircraft-2013b.tar.gz"
    folder.mkdir(exist_ok=True)
    with tarfile.open(archive, "w:gz") as out:
        out.addfile(tarfile.TarInfo("fgvc/readme.txt"))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        out.addfile(member)
    return archive


HOSTILE_TARS = [
    ("../../x", tarfile.REGTYPE, ""),
    ("/tmp/edgestill-x", tarfile.REGTYPE, ""),
    ("fgvc/../../../x", tarfile.REGTYPE, ""),
    ("fgvc/link", tarfile.SYMTYPE, "../../.."),
    ("fgvc/link", tarfile.SYMTYPE, "/etc"),
    ("fgvc/hard", tarfile.LNKTYPE, "../../x"),
    ("fgvc/device", tarfile.CHRTYPE, ""),
    ("fgvc/pipe", tarfile.FIFOTYPE, ""),
]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("name", "kind", "link"), HOSTILE_TARS)
def test_an_archive_without_a_published_digest_cannot_leave_its_folder(
    tmp_path: Path, name: str, kind: bytes, link: str
) -> None:
    tar(tmp_path / "at_hand", name, kind, link)
    with pytest.raises(PipelineError, match="unsafe") as error:
        fetch(settings(tmp_path / "at_hand", "FGVCAircraft"), tmp_path / "raw")
    assert name in error.value.what
    assert error.value.where is not None and "fgvc-aircraft-2013b.tar.gz" in error.value.where
    assert [path.name for path in tmp_path.iterdir()] == ["at_hand"]


@pytest.mark.parametrize("name", ["../x", "/tmp/edgestill-x", r"..\x", "link"])
def test_a_zip_archive_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = (stat.S_IFLNK if name == "link" else stat.S_IFREG) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(PipelineError, match="unsafe: its member") as error:
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert repr(name) in error.value.what and error.value.where == str(tmp_path / "a.zip")
    assert not (tmp_path / "out").exists()


def test_sound_archives_are_unpacked_with_their_inner_links(tmp_path: Path) -> None:
    unpack(tar(tmp_path, "fgvc/link", tarfile.SYMTYPE, "readme.txt"), tmp_path / "out")
    assert (tmp_path / "out/fgvc/link").readlink() == Path("readme.txt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("fgvc/names.txt", "names")
    unpack(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out/fgvc/names.txt").read_text() == "names"


@pytest.mark.parametrize("kind", ["tar.gz", "tar", "tar.xz", "zip"])
@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty"])
def test_a_damaged_archive_is_named(tmp_path: Path, kind: str, damage: str) -> None:
    noise = np.random.default_rng(0).bytes(40_000)
    archive = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.writestr("noise", noise)
    else:
        with tarfile.open(archive, f"w:{kind[4:]}") as out:
            member = tarfile.TarInfo("noise")
            member.size = len(noise)
            out.addfile(member, io.BytesIO(noise))
    content = archive.read_bytes()
    archive.write_bytes({"truncated": content[:20_000], "foreign": noise, "empty": b""}[damage])
    with pytest.raises(PipelineError, match="damaged") as error:
        unpack(archive, tmp_path / "out")
    assert error.value.where == str(archive)


def test_what_could_not_be_verified_is_said() -> None:
    assert _unverified("FGVCAircraft") == [
        "torchvision knows no digest of fgvc-aircraft-2013b.tar.gz: its content is not verified"
    ]
    assert not _unverified("CIFAR10")


def test_preparing_before_fetching_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no Fetched record") as error:
        prepare(settings(tmp_path), 1, tmp_path / "raw", tmp_path / "p", tmp_path / "c")
    assert error.value.fix == "run `dvc repro`"


def test_classes_that_no_image_has_are_left_out(tmp_path: Path) -> None:
    """EMNIST's letters have the labels 1 to 26; class 0 is called `N/A`."""
    raw = tmp_path / "raw" / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 260), ("test", 78)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
        write_idx(raw / f"emnist-letters-{split}-images-idx3-ubyte", pixels)
        labels = (np.arange(count) % 26 + 1).astype(np.uint8)
        write_idx(raw / f"emnist-letters-{split}-labels-idx1-ubyte", labels)
    Fetched(digests={}).write(tmp_path / "raw" / FETCHED)
    letters = settings(tmp_path, "EMNIST", split="letters")
    manifest = prepare(letters, 1, tmp_path / "raw", tmp_path / "p", tmp_path / "c")
    assert "".join(manifest.classes) == "abcdefghijklmnopqrstuvwxyz"
    assert set(manifest.counts["test"].values()) == {3}
    assert "N/A" in manifest.warnings[0]
    assert set(np.load(tmp_path / "p" / "test_labels.npy")) == set(range(26))
