"""A small real student, compiled for every backend as the stages would have left it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.backends.base.job import Job
from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.registry import backend
from pipeline.backends.base.spec import BackendSettings, versions
from pipeline.bundle.write import write_bundles
from pipeline.cli.params import load_params
from pipeline.core.files import sha256
from pipeline.data.records import PACKED, SPLITS, Arrays
from tests.backends.conftest import job
from tests.conftest import flawless, write_training
from tests.students import draw, student_folder

PARAMS = Path(__file__).parents[2] / "params.yaml"
STUDENT = "mnv4_small_050"

__all__ = ["job", "shipped", "student"]


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student_folder("relu", tmp_path_factory)


@pytest.fixture(scope="session")
def shipped(
    job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, list[Path]]]:
    """Bundles by backend, of the precisions in params.yaml; converting for LiteRT is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("shipped"))
        tree = yaml.safe_load(PARAMS.read_text())
        tree["backends"]["tflite"]["precisions"] = ["fp32", "fp16", "int8"]
        found = ship(tree, job)
    yield found


def ship(
    tree: dict[str, Any], job: Callable[..., Job], tests: Arrays | None = None
) -> dict[str, list[Path]]:
    """Compile and bundle `STUDENT` in the current folder, as a `tree` of params.yaml says.

    `tests` are images and labels in place of those that are drawn.
    """
    tree["students"]["enabled"] = [STUDENT]
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    params = load_params()
    PACKED.mkdir(parents=True)
    for part, array in zip(("images", "labels"), tests or draw(100, seed=2), strict=True):
        np.save(PACKED / f"test_{part}.npy", array)
    manifest = job("fp32").manifest
    counts = dict.fromkeys(SPLITS, manifest.counts["train"])
    digests = manifest.digests | {file.name: sha256(file) for file in PACKED.iterdir()}
    changed = {"counts": counts, "digests": digests}
    manifest.model_copy(update=changed).write(PACKED / "manifest.json")
    write_training("teachers", params.teachers.enabled[0])
    write_training("students", STUDENT)
    for name, precision in params.backends.pairs():
        compile_artifact(job(precision, name), params.backends.settings(name))
    found: dict[str, list[Path]] = {name: [] for name in params.backends.enabled}
    for bundle in write_bundles(params):
        path = Path(f"models/bundles/{STUDENT}-{bundle.backend}-{bundle.precision}").resolve()
        found[bundle.backend].append(path)
    return found


def compile_artifact(job: Job, settings: BackendSettings) -> None:
    """What the stage `compile` leaves, but for the accuracy."""
    artifact = replace(job.artifact, student=STUDENT)
    its = backend(artifact.backend)
    artifact.folder.mkdir(parents=True)
    compiled = its.compiler(settings).compile(job, artifact.folder)
    record = ArtifactRecord(
        student=STUDENT,
        backend=artifact.backend,
        precision=artifact.precision,
        model_file=compiled.model_file,
        quantizer=compiled.quantizer,
        weights_digest="e" * 64,
        calibration_digest=None,
        image_size=job.manifest.image_size,
        stored_size=job.manifest.stored_size,
        channels=job.manifest.channels,
        classes=job.manifest.classes,
        execution=compiled.execution,
        micro=compiled.micro,
        versions=versions(its.packages),
        digests={file.name: sha256(file) for file in sorted(artifact.folder.iterdir())},
    )
    record.write(artifact.folder / "artifact.json")
    share, by = compiled.execution.int8_mac_share, its.evaluator() or ""
    metrics = flawless(artifact.folder / compiled.model_file, share, by)
    metrics.model_copy(update={"digests": record.digests}).write(artifact.metrics)
