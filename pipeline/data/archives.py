"""Archives of torchvision's sets, from the user's folder or from Debian, verified by digest."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import inspect
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

from pipeline.core.errors import PipelineError

DEBIAN_PACKAGES = {"FashionMNIST": "dataset-fashion-mnist"}
UNPACKED = {
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
}
"""SHA-256 of the content of gzipped archives, by its name. Debian recompressed the published files:
its archives have the published content but not the MD5s that torchvision knows."""


class UnavailableError(Exception):
    """One way to get the files failed; another may still work."""


def copy_archives(kind: Any, folder: Path, root: Path) -> int:
    """Copy the user's files to where torchvision looks for them, known digests checked.

    Args:
        kind: the dataset class.
        folder: the user's files, flat or laid out as torchvision lays them out.
        root: the root folder of the set.

    Returns:
        How many files were copied; 0 where there is no `folder`.

    Raises:
        PipelineError: for an archive with another digest than the published one.
    """
    if not folder.is_dir():
        return 0
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "README.md" and not file.name.startswith(".")
    ]
    for file in files:
        inner = file.relative_to(folder)
        target = root / inner if len(inner.parts) > 1 else _archive_folder(kind, root) / inner
        _copy_verified(kind, file, target)
    return len(files)


def copy_from_debian(package: str, kind: Any, root: Path) -> None:
    """Copy the archives of a Debian package to where torchvision looks for them.

    apt checks the package's signature; the archives' content is checked here. Root is not needed.
    Where the system's package lists are empty, apt gets lists of its own.

    Raises:
        UnavailableError: where apt is missing or cannot download the package.
        PipelineError: for an archive with another content than the published one.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
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
            _copy_verified(kind, file, _archive_folder(kind, root) / file.name)


def _archive_folder(kind: Any, root: Path) -> Path:
    """Where torchvision looks for archives before it downloads them."""
    from torchvision import datasets

    return root / kind.__name__ / "raw" if issubclass(kind, datasets.MNIST) else root


def _copy_verified(kind: Any, file: Path, target: Path) -> None:
    """Copy an archive, or its content where only the compression differs from the published one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    published = _published_digests(kind, file.name)
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "md5").hexdigest()
    if not published or found in published:
        shutil.copyfile(file, target)
        return
    unpacked = b""
    if file.stem in UNPACKED:
        with contextlib.suppress(OSError, EOFError, zlib.error):
            unpacked = gzip.decompress(file.read_bytes())
    if hashlib.sha256(unpacked).hexdigest() != UNPACKED.get(file.stem):
        raise PipelineError(
            f"not the archive that {kind.__name__} was published with: its digest differs",
            where=str(file),
            fix="remove it, or replace it with the original",
        )
    target.with_suffix("").write_bytes(unpacked)


def _published_digests(kind: Any, name: str) -> set[str]:
    """MD5s that an archive of this name may have; empty where torchvision gives none.

    Each set of torchvision keeps them in its own way, but always as literals of its module.
    """
    if resources := dict(getattr(kind, "resources", [])):
        return {resources[name]} if name in resources else set()
    source = inspect.getsource(sys.modules[kind.__module__])
    if Path(name).suffix not in (".gz", ".tgz", ".tar", ".zip", ".bz2", ".mat"):
        return set()
    return set(re.findall(r"\b[0-9a-f]{32}\b", source)) if name in source else set()


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
