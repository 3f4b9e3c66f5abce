"""Archives of torchvision's sets: from the user's folder or from Debian, verified, unpacked."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import lzma
import shutil
import stat
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from pipeline.core.errors import PipelineError
from pipeline.data.folder import list_folder
from pipeline.data.known_sets import KNOWN_SETS

DEBIAN_PACKAGES = {"FashionMNIST": "dataset-fashion-mnist"}
UNPACKED = {
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
}
"""SHA-256 of the content of gzipped archives, by its name. Debian recompressed the published files:
its archives have the published content but not the MD5s that torchvision knows."""


_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError,
    NotImplementedError, RuntimeError,
)  # fmt: skip
"""What the standard library raises for archives that it cannot read, locked ones among them."""


_REPLACE = "remove it, or replace it with the original"


class UnavailableError(Exception):
    """One way to get the files failed; another may still work."""


def copy_archives(name: str, folder: Path, root: Path) -> int:
    """Copy the user's files to where torchvision looks for them, known digests checked.

    Args:
        name: of the set.
        folder: the user's files, flat or laid out as torchvision lays them out.
        root: the root folder of the set.

    Returns:
        How many files were copied; 0 where there is no `folder`.

    Raises:
        PipelineError: for an archive with another digest than the published one, and a folder
            that cannot be read.
    """
    if not folder.is_dir():
        return 0
    found = list_folder(folder, below=True).files
    files = [file for file in found if file.is_file() and file.name != "README.md"]
    for file in files:
        inner = file.relative_to(folder)
        target = root / inner if len(inner.parts) > 1 else root / KNOWN_SETS[name].folder / inner
        _copy_verified(name, file, target)
    return len(files)


def copy_from_debian(package: str, name: str, root: Path) -> None:
    """Copy the archives of a Debian package to where torchvision looks for them.

    apt checks the package's signature; the archives' content is checked here. Root is not needed.
    Where the system's package lists are empty, apt gets lists of its own.

    Raises:
        UnavailableError: where apt is missing or cannot download the package.
        PipelineError: for an archive with another content than the published one.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # apt may download as a user of its own
        lists = folder / "lists"
        private = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={folder / 'cache'}"]
        (lists / "partial").mkdir(parents=True)
        (folder / "cache" / "archives" / "partial").mkdir(parents=True)
        try:
            _command(["apt-get", "-q", "download", package], folder)
        except UnavailableError:
            _command(["apt-get", "-q", *private, "update"], folder)
            _command(["apt-get", "-q", *private, "download", package], folder)
        (archive,) = folder.glob("*.deb")
        _command(["dpkg-deb", "-x", archive.name, "content"], folder)
        for file in (folder / "content" / "usr" / "share" / "datasets").rglob("*.gz"):
            _copy_verified(name, file, root / KNOWN_SETS[name].folder / file.name)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive, of which nothing is trusted, into `folder`.

    Raises:
        PipelineError: names the archive, and the member whose path or link leads out of the folder
            or that is neither file, folder nor link; or says that the archive is damaged.
    """

    def checked(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo:
        linked = [member.linkname] if member.islnk() or member.issym() else []
        _check_inside(archive, member.name, *linked)
        return tarfile.data_filter(member, target)

    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                for info in zipped.infolist():
                    # zipfile would write the path that a link holds as the content of a file.
                    linked = stat.S_ISLNK(info.external_attr >> 16)
                    _check_inside(archive, info.filename, *(["/"] if linked else []))
                zipped.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter=checked)
    except tarfile.FilterError as error:
        raise PipelineError(f"unsafe: {error}", where=str(archive), fix=_REPLACE) from None
    except _DAMAGED as error:
        raise PipelineError(
            f"the archive is damaged: {error or type(error).__name__}",
            where=str(archive),
            fix=_REPLACE,
        ) from None


def _check_inside(archive: Path, member: str, *linked: str) -> None:
    for path in (member, *linked):
        parts = PurePosixPath(path.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            raise PipelineError(
                f"unsafe: its member {member!r} leads out of the folder",
                where=str(archive),
                fix=_REPLACE,
            )


def _copy_verified(name: str, file: Path, target: Path) -> None:
    """Copy an archive, or its content where only the compression differs from the published one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    published = KNOWN_SETS[name].archives.get(file.name)
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "md5").hexdigest()
    if published in (None, found):
        shutil.copyfile(file, target)
        return
    unpacked = b""
    if file.stem in UNPACKED:
        with contextlib.suppress(OSError, EOFError, zlib.error):
            unpacked = gzip.decompress(file.read_bytes())
    if hashlib.sha256(unpacked).hexdigest() != UNPACKED.get(file.stem):
        raise PipelineError(
            f"not the archive that {name} was published with: its digest differs",
            where=str(file),
            fix=_REPLACE,
        )
    target.with_suffix("").write_bytes(unpacked)


def _command(words: list[str], folder: Path) -> None:
    """Run a command in `folder`; `UnavailableError` where it fails."""
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    except FileNotFoundError:
        raise UnavailableError(f"there is no {words[0]} here") from None
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{words[0]} took more than 300 s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UnavailableError(f"{words[0]}: {lines[-1]}")
