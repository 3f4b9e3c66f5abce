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

from pipeline.core.files import sha256, whole_folder
from pipeline.data.records import CALIBRATION, MANIFEST, PACKED, Manifest
from pipeline.export.records import EXPORTED, ONNX, PARITY, Parity


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


def describe(project: Path = Path()) -> None:
    """Give the records of a project the digests of the files that a test wrote by hand.

    Of the packed and the calibration images, and of what `export` makes.
    """
    packed, calibration = project / PACKED, project / CALIBRATION / "images.npy"
    manifest = Manifest.read(packed / MANIFEST)
    changed: dict[str, object] = {
        "digests": {file.name: sha256(file) for file in sorted(packed.glob("*.npy"))}
    }
    if calibration.exists():
        changed["calibration_digest"] = sha256(calibration)
    manifest.model_copy(update=changed).write(packed / MANIFEST)
    for folder in (project / ONNX).glob("*"):
        Parity(
            images=0, same_argmax=1, max_logit_error=0, mean_logit_error=0, opset=20, versions={},
            digests={name: sha256(folder / name) for name in EXPORTED},
        ).write(folder / PARITY)  # fmt: skip
