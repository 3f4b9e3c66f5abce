"""Opens a search in the current folder: checks everything that it needs, once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.backends.base.registry import backend
from pipeline.backends.base.spec import versions
from pipeline.core.documents import read_yaml
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.core.params import PARAMS_FILE, load, nearest
from pipeline.data.records import MANIFEST, PACKED, Manifest
from pipeline.distill.params import own_recipe
from pipeline.distill.recording import RecordedLogits, wanted
from pipeline.distill.teachers import teacher_digest
from pipeline.export.params import ExportParams
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.search.params import SEARCH_FILE, Target, read_search
from pipeline.search.records import DATA, FOLDER, JOURNAL, Identity
from pipeline.search.space import check_values, networks
from pipeline.search.storage import open_storage, open_study
from pipeline.search.study import Project, Search
from pipeline.search.workspace import withhold_test
from pipeline.training.checkpoints import run_key

IDENTITY = "identity"
"""Key of a study's user attributes."""


def make_teachers() -> None:
    """Bring teachers and recorded logits up to date, which all candidates share.

    Raises:
        PipelineError: where a stage fails; it has said why.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", "dvc", "repro", "record_teacher"]
    if subprocess.run(command, env=os.environ | {"PATH": path}, check=False).returncode:
        raise PipelineError("`dvc repro record_teacher` failed", fix="see what it said above")


def open_search(kind: type[Search] = Search, *, new: bool = True) -> Search:
    """A worker for the search of the current folder.

    Args:
        kind: of worker.
        new: whether a study may begin; else there has to be one, and may be of the latency on
            another machine, for which this one then trains and times nothing.

    Raises:
        PipelineError: for a mistake in search.yaml, a runtime that is missing, data or teachers
            that are not up to date, and for a study of something else.
    """
    search, project = read_search(), load(Project)
    tree: Any = read_yaml(PARAMS_FILE)
    _check_target(search.target, project)
    manifest = Manifest.read(PACKED / MANIFEST)
    expected = wanted(project, manifest)
    if expected.teachers:
        RecordedLogits(expected)
    if search.storage is None and not new and not JOURNAL.exists():
        raise PipelineError(
            "there is no search in this folder",
            where=str(FOLDER),
            fix="begin one: python -m pipeline search",
        )
    study = open_study(open_storage(search.storage, JOURNAL))
    machine = read_fingerprint()
    opset = load(ExportParams).export.opset
    data = _withheld(manifest)
    worker = kind(study, search, project, tree, opset, data, machine)
    _check_networks(worker)
    identity = _identity(worker, manifest)
    if IDENTITY not in study.user_attrs:
        study.set_user_attr(IDENTITY, identity.model_dump())
    before = Identity.model_validate(study.user_attrs[IDENTITY])
    differing = before.differing(identity)
    if differing == ["machine"] and not new:
        worker.times = False
    elif differing:
        raise PipelineError(
            f"its trials are of another {' and another '.join(differing)}",
            where=str(FOLDER) if search.storage is None else f"{SEARCH_FILE}: storage",
            fix=f"to begin anew, rename or delete the folder {FOLDER}/"
            if search.storage is None
            else "name another database",
        )
    return worker


def _check_target(target: Target, project: Project) -> None:
    spec = backend(target.backend)
    if target.precision not in spec.precisions:
        raise PipelineError(
            f"target.precision: {spec.title} has no `{target.precision}`"
            f"{nearest(target.precision, spec.precisions)}",
            where=str(SEARCH_FILE),
        )
    versions(spec.packages)
    project.backends.settings(target.backend)
    if target.timed and (reason := spec.unmeasurable()):
        raise PipelineError(
            f"target: latencies of {spec.title} cannot be measured here: {reason}",
            where=str(SEARCH_FILE),
            fix="leave out `max_ratio` and `max_p50_ms`, or search on the device",
        )


def _check_networks(worker: Search) -> None:
    """What would fail every candidate of a network, but only after minutes."""
    project = worker.project
    check_values(worker.search.space, worker.networks, project.distill)
    for name, its in worker.networks.items():
        where = f"{SEARCH_FILE}: space.student.{name}"
        file = its.weights_file(project.checkpoints)
        if file is not None and not file.exists():
            raise PipelineError(
                f"there is no weights file `{its.weights}`",
                where=where,
                fix=f"put it into {project.checkpoints}, or set `weights: none`",
            )
        own, _ = own_recipe(name, its, project.distill)
        for tap in (tap for term in own.losses for tap in term.taps if tap not in its.taps):
            raise PipelineError(
                f"it has no tap `{tap}`, which its losses compare",
                where=where,
                fix=f"add `taps: {{ {tap}: MODULE }}`: `python -m pipeline taps {its.arch}`",
            )


def _withheld(full: Manifest) -> Manifest:
    """The manifest of search/data, which is made again where the packed data changed."""
    file = DATA / "packed" / MANIFEST
    if file.exists():
        left = Manifest.read(file)
        if left.digests.items() <= full.digests.items() and left.made_for == full.made_for:
            return left
    return withhold_test()


def _identity(worker: Search, manifest: Manifest) -> Identity:
    def digest(*parts: Any) -> str:
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    search, project, target = worker.search, worker.project, worker.search.target
    known = networks(search.space, project.students)
    files = [its.weights_file(project.checkpoints) for its in known.values()]
    limits = target.model_dump(exclude={"min_top1", "min_balanced"})
    groups = {"distill", "views", "teacher_logits", "teachers", "quantize", "seed"}
    return Identity(
        space=digest(
            search.space.model_dump(mode="json"),
            search.halving,
            search.keep,
            {name: its.model_dump(mode="json") for name, its in known.items()},
            [sha256(file) for file in files if file is not None and file.exists()],
        ),
        target=digest(limits, target.metric, project.benchmark.threads),
        params=digest(
            project.model_dump(mode="json", include=groups),
            project.backends.settings(target.backend).model_dump(mode="json"),
        ),
        data=digest(manifest.digests, manifest.calibration_digest),
        teachers=digest([teacher_digest(name) for name in project.teachers.enabled]),
        code=run_key(),
        machine=digest(worker.machine.model_dump()) if target.timed else "",
    )
