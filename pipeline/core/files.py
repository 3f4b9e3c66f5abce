"""Files and folders that appear complete or not at all, and digests."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = 1 << 16
"""A disk with fewer free bytes counts as full."""


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a scratch folder beside `path` that replaces it when the block succeeds.

    After an error or an interrupt the scratch folder is removed and `path` is unchanged.

    Raises:
        OSError: with ENOSPC, if the block failed because the disk is full.
    """
    scratch = path.with_name(f".{path.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        for file in scratch.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            shutil.rmtree(path)
        scratch.replace(path)
        _sync(path.parent)
    except Exception as error:
        # Libraries report a full disk by various exceptions.
        reported = os.strerror(errno.ENOSPC) in str(error)
        if reported or shutil.disk_usage(path.parent).free < _FULL:
            raise OSError(errno.ENOSPC, "no space left", str(path)) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`: beside it, synced, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.partial")
    try:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)
        _sync(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits; the file is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
