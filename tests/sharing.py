"""What takes long to make is made once for all workers of a test run; the project's own files."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.core.files import whole_folder


def of_all_workers(factory: pytest.TempPathFactory) -> Path:
    """The folder of this run, the same for each of its workers."""
    root = factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """One worker at a time is in here."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name`, filled by `make` if no worker of this run has done so yet."""
    root = of_all_workers(factory)
    with locked(root / f"{name}.lock"):
        if not (root / name).exists():
            with whole_folder(root / name) as folder:
                make(folder)
    return root / name


def project_files(*places: str) -> list[str]:
    """The files of the project that .gitignore does not name, by their paths from its root.

    In an unpacked archive, too, and where another user owns the repository: an empty one of our own
    reads the rules.
    """
    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["git", "init", "-q", "--bare", scratch], check=True)
        here = ["git", f"--git-dir={scratch}", f"--work-tree={root}"]
        listing = [*here, "ls-files", "--others", "--exclude-standard", "--", *places]
        names = subprocess.check_output(listing, cwd=root, text=True).splitlines()
    return [name for name in names if (root / name).is_file()]
