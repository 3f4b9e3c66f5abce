"""A folder for each training of a candidate, in which the pipeline's own functions run.

It has params.yaml, links to teachers and recorded logits, and the packed data without test.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.errors import PipelineError
from pipeline.core.files import whole_folder, write_whole
from pipeline.core.params import PARAMS_FILE
from pipeline.data.records import CALIBRATION, MANIFEST, PACKED, Manifest
from pipeline.distill.records import TEACHER_LOGITS
from pipeline.networks.params import Student
from pipeline.networks.records import TEACHERS
from pipeline.search import run
from pipeline.search.params import Target
from pipeline.search.records import CANDIDATE, DATA, RECORDINGS, RESULT, TRIALS, RungResult

LOG = "log.txt"


def withhold_test() -> Manifest:
    """Make search/data: links to all packed files but those of test, which no trial can open.

    Returns:
        The manifest of what is left.
    """
    full = Manifest.read(PACKED / MANIFEST)
    left = full.model_copy(
        update={
            "counts": {split: its for split, its in full.counts.items() if split != "test"},
            "digests": {
                name: digest
                for name, digest in full.digests.items()
                if not name.startswith("test_")
            },
        }
    )
    with whole_folder(DATA) as scratch:
        packed = scratch / PACKED.name
        packed.mkdir()
        for name in left.digests:
            (packed / name).symlink_to((PACKED / name).resolve())
        left.write(packed / MANIFEST)
        (scratch / CALIBRATION.name).symlink_to(CALIBRATION.resolve())
    return left


def params_for(
    tree: dict[str, Any], target: Target, student: Student | None, seed: int
) -> dict[str, Any]:
    """The tree of params.yaml for one candidate, which is compiled for the target alone.

    Args:
        tree: of the project.
        target: names backend and precision.
        student: the candidate; None where only teachers run.
        seed: of everything random.
    """
    settings = tree["backends"].get(target.backend, {}) | {"precisions": [target.precision]}
    changes: dict[str, Any] = {
        "seed": seed,
        "prune": {"enabled": []},
        "checkpoints": str(Path(tree["checkpoints"]).resolve()),
        "backends": {"enabled": [target.backend], target.backend: settings},
    }
    if student is not None:
        zoo = {CANDIDATE: student.model_dump(mode="json", exclude_defaults=True)}
        changes["students"] = {"enabled": [CANDIDATE], "zoo": zoo}
    return tree | changes


def recording(tree: dict[str, Any], target: Target, seed: int, lock: int) -> Path:
    """The teachers' logits for the views of a seed: the project's own, or recorded now.

    Args:
        tree: of params.yaml.
        target: of the search.
        seed: of the views.
        lock: a file descriptor that the process inherits.
    """
    if seed == tree["seed"]:
        return TEACHER_LOGITS
    folder = RECORDINGS / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as waiting:  # another worker may need the same one
        fcntl.flock(waiting, fcntl.LOCK_EX)
        if not (folder / TEACHER_LOGITS).exists():
            _furnish(folder, params_for(tree, target, None, seed), None)
            _run(folder, "record", lock)
    return folder / TEACHER_LOGITS


def train(
    tree: dict[str, Any], target: Target, student: Student, seed: int, place: str, lock: int
) -> RungResult:
    """Train, export and compile a candidate, and evaluate it on val by the target's runtime.

    What was finished before is read; a training that was stopped goes on.

    Args:
        tree: of params.yaml.
        target: names backend and precision.
        student: the candidate, whose recipe has its epochs.
        seed: of everything random.
        place: of its folder in search/trials.
        lock: a file descriptor that the process inherits.

    Raises:
        PipelineError: where it fails, with what it said.
    """
    folder = TRIALS / place
    if not (folder / RESULT).exists():
        logits = recording(tree, target, seed, lock)
        _furnish(folder, params_for(tree, target, student, seed), logits)
        _run(folder, "student", lock)
    return RungResult.read(folder / RESULT)


def _furnish(folder: Path, tree: dict[str, Any], logits: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    links = {"data": DATA, str(TEACHERS): TEACHERS}
    links |= {str(TEACHER_LOGITS): logits} if logits is not None else {}
    for name, target in links.items():
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target.resolve())
    write_whole(folder / PARAMS_FILE, yaml.safe_dump(tree, sort_keys=False))


def _run(folder: Path, what: str, lock: int) -> None:
    """Run `pipeline.search.run` in `folder`; it ends when this process does."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"PYTHONPATH": path, "TTY_COMPATIBLE": "0"}
    with (folder / LOG).open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", run.__name__, what], cwd=folder, env=environment,
            stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,),
        )  # fmt: skip
        try:
            code = process.wait()
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
    if code:
        raise PipelineError(_said(folder / LOG, code), where=str(folder))


def _said(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how}: {lines[-1] if lines else 'no message'}"
