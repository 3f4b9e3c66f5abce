"""Files and folders that appear whole or not at all, and whose digests are checked when read.

A scratch file or folder has a name of its own, `.NAME.HOST-PID.partial`, so that two processes
which write the same output do not touch each other's; the one that ends last wins. Its process
holds a lock on it. What a killed process left is removed by the next writer of the same output, or
by `remove_left`, as DVC may restore the output from its cache, so that nobody writes it.

Whatever a stage reads has a digest: of arrays, weights and models it stands in the record that
describes them, of a record within itself (see `core.records`). `checked` compares it. DVC's own
digests do not protect a stage that is run by hand, nor from damage that leaves a file's size and
time as they were.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.core.errors import PipelineError

_SCRATCH = ".*-*.partial"
"""How a scratch's name goes on after the output's, as a pattern."""

_FULL = 1 << 16
"""A disk with fewer free bytes counts as full."""


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a scratch folder beside `path` that replaces it when the block succeeds.

    After an error or an interrupt the scratch folder is removed and `path` is unchanged.

    Raises:
        OSError: with ENOSPC, if the block failed because the disk is full.
    """
    scratch = _scratch(path)
    scratch.mkdir()
    try:
        with _in_use(scratch):
            yield scratch
            for file in scratch.rglob("*"):
                if file.is_file():
                    _sync(file)
            _put(scratch, path)
        _sync(path.parent)
    except Exception as error:
        _tell_full_disk(error, path.parent)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`: beside it, synced, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch(path)
    try:
        scratch.touch()
        with _in_use(scratch):
            scratch.write_bytes(content.encode() if isinstance(content, str) else content)
            _sync(scratch)
            scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def move_contents(source: Path, target: Path) -> None:
    """Move what is in the folder `source` into the folder `target`, and remove `source`.

    They may lie on different file systems, between which files are copied.
    """
    for item in sorted(source.iterdir()):
        shutil.move(item, target / item.name)
    source.rmdir()


def remove_left(folder: Path, *, deep: bool) -> None:
    """Remove the scratch files and folders of killed processes in `folder`; if deep, also below."""
    for left in list((folder.rglob if deep else folder.glob)(f".*{_SCRATCH}")):
        _remove_if_left(left)


def checked(file: Path, digest: str | None) -> Path:
    """`file`, once it is known to have the recorded SHA-256 `digest`.

    Raises:
        PipelineError: where it is missing, has another digest, or none is recorded.
    """
    if not file.is_file():
        raise PipelineError("is missing", where=str(file), fix="run `dvc repro`")
    if sha256(file) != digest:
        raise PipelineError(
            "is damaged or of another run: its digest is not the recorded one",
            where=str(file),
            fix="remove it and run `dvc repro`",
        )
    return file


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits; the file is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder in the system's place for temporary files, and remove it at the end.

    Raises:
        OSError: with ENOSPC, if the block failed because the disk is full.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        except Exception as error:
            _tell_full_disk(error, Path(folder))
            raise


def _tell_full_disk(error: Exception, place: Path) -> None:
    """Raise an ENOSPC if a full disk at `place` explains `error`: libraries tell it variously."""
    reported = os.strerror(errno.ENOSPC) in str(error)
    if reported or shutil.disk_usage(place).free < _FULL:
        raise OSError(errno.ENOSPC, "no space left", str(place)) from error


def _scratch(path: Path) -> Path:
    """This process's scratch beside `path`, in a folder without those that killed ones left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}{_SCRATCH}"):
        _remove_if_left(left)
    return path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.partial")


@contextmanager
def _in_use(scratch: Path) -> Iterator[None]:
    """Hold a lock on a file or folder, which the system takes back however this process ends."""
    descriptor = os.open(scratch, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: there nothing is cleaned either
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _remove_if_left(scratch: Path) -> None:
    """Remove it, unless its process holds the lock on it."""
    try:
        descriptor = os.open(scratch, os.O_RDONLY)
    except OSError:  # its owner has just renamed it
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    else:
        _remove(scratch)
    finally:
        os.close(descriptor)


def _put(scratch: Path, path: Path) -> None:
    """Rename the folder `scratch` to `path`. The folder that is there is first renamed away.

    Deleting it in place would leave a part of it after a kill.
    """
    old = _scratch(path.with_name(f"{path.name}.old"))
    while True:
        with suppress(FileNotFoundError):
            path.rename(old)
        try:
            scratch.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _remove(old)  # another process put its folder there in this moment
        else:
            break
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
