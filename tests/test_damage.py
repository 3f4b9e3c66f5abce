"""Every file that a stage reads, damaged in every way: it is noticed in one sentence, or harmless.

Which files a stage reads is seen while it runs, so that a new one is among them by being read. A
stage that does not name the damaged file must give the outputs of an undamaged run.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import pipeline
from pipeline.attribution.attribute import attribute
from pipeline.attribution.params import AttributionParams
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.params import ArtifactParams
from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.registry import backend_names
from pipeline.bundle.params import BundleParams
from pipeline.bundle.write import write_bundles
from pipeline.cli.params import load_params
from pipeline.compile.collect import collect
from pipeline.compile.params import CompileParams
from pipeline.compile.records import compiled_metrics
from pipeline.compile.student import compile_student
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.core.params import load
from pipeline.core.records import METRICS, Record
from pipeline.data.params import PrepareParams
from pipeline.data.prepare import prepare
from pipeline.data.records import PACKED, load_split
from pipeline.distill.params import DistillParams, RecordingParams
from pipeline.distill.recording import record_teacher_logits
from pipeline.distill.student import distill_student
from pipeline.export.onnx import export_student
from pipeline.export.params import ExportParams
from pipeline.latency.benchmark import benchmark
from pipeline.latency.fingerprint import update_fingerprint
from pipeline.latency.params import BenchmarkParams
from pipeline.networks.records import STUDENTS, ModelCard
from pipeline.report.page import report
from pipeline.report.params import ReportParams
from pipeline.training.params import TeacherParams
from pipeline.training.records import ModelMetrics, curve_files
from pipeline.training.teacher import train_teacher
from tests.conftest import STUDENT as WORKED
from tests.training.conftest import RESNET, STUDENT, fashion  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[1]

STAGES: dict[str, Callable[[], object]] = {
    "prepare": lambda: prepare(load(PrepareParams).data, load(PrepareParams).seed),
    "train_teacher": lambda: train_teacher(load(TeacherParams), "resnet"),
    "record_teacher": lambda: record_teacher_logits(load(RecordingParams)),
    "distill": lambda: distill_student(load(DistillParams), STUDENT),
    "export": lambda: export_student(STUDENT, load(ExportParams).export.opset),
    "compile": lambda: list(compile_student(load(CompileParams), "onnxruntime", STUDENT)),
    "attribution": lambda: attribute(load(AttributionParams), STUDENT),
    "collect": lambda: collect(load(ArtifactParams)),
    "benchmark": lambda: benchmark(load(BenchmarkParams)),
    "bundle": lambda: write_bundles(load(BundleParams)),
    "report": lambda: report(load(ReportParams)),
}
"""In order; stages/*.py call the same functions."""

TOLD = {"report": "missing"}
"""The report of an artifact without a record has a row that says so, in place of an error."""


def records() -> set[type[Record]]:
    """Every type of record, found by importing every module."""
    for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        if not module.name.endswith("__main__") and "backends." not in module.name:
            importlib.import_module(module.name)
    found, todo = set(), [Record]
    while todo:
        kinds = todo.pop().__subclasses__()
        found.update(kind for kind in kinds if kind.__module__.startswith("pipeline."))
        todo += kinds
    return found


def test_every_record_ends_with_its_digest() -> None:
    """No type of record writes or reads its file in a way of its own."""
    assert len(records()) > 20 and backend_names()
    for kind in records():
        assert not {"write", "read", "parse"} & vars(kind).keys(), kind


_watched: set[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is not None and event == "open" and isinstance(arguments[0], str | bytes | Path):
        mode, flags = arguments[1], arguments[2]
        if (mode is None and not flags & 3) or (mode and "w" not in mode and "+" not in mode):
            _watched.add(str(Path(str(arguments[0])).absolute()))


@contextlib.contextmanager
def reads() -> Iterator[set[str]]:
    """Paths of the files that are opened to be read."""
    global _watched
    if not hasattr(sys, "_edgestill_watch"):
        sys.addaudithook(_watch)  # it cannot be removed
        sys._edgestill_watch = True  # type: ignore[attr-defined]
    _watched = set()
    try:
        yield _watched
    finally:
        _watched = None


def params() -> None:
    """A project of one small teacher, one student and ONNX Runtime."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["data"] |= {"limit": 300, "calibration_images": 32}
    resnet = tree["teachers"]["zoo"]["resnet"]
    resnet["network"] = RESNET.model_dump(exclude_defaults=True)
    tree["views"]["epochs"] = resnet["views"]["epochs"] = 1
    for trained in (resnet, tree["distill"]):
        trained["training"] |= {"batch_size": 100, "lr": 0.005}
    tree["students"]["enabled"] = [STUDENT]
    precisions = {"onnxruntime": {"precisions": ["fp32", "int8"]}}
    tree["backends"] = {"enabled": [*precisions], **precisions}
    tree["quantize"] |= {"rungs": ["default", "float_layers"], "max_drop": 0.0}
    tree["benchmark"] = {"threads": 1, "rounds": 2, "extra_rounds": 0, "min_runs": 5,
                         "min_seconds": 0.001, "batch": 0}  # fmt: skip
    tree["attribution"] |= {"enabled": [STUDENT], "images": 6, "grid": 4, "examples": 1}
    Path("params.yaml").write_text(yaml.safe_dump(tree))


@pytest.fixture(scope="module")
def finished(
    fashion: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, list[Path]]]:
    """The current folder is a finished project; by stage, the files that it read."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("finished")
        patch.chdir(folder)
        (folder / ".dvc").mkdir()
        (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
        shutil.copytree(fashion / "data/raw", "data/raw")
        params()
        load_params()
        read = {}
        for name, stage in STAGES.items():
            if name == "benchmark":
                update_fingerprint()
            with reads() as opened:
                stage()
            inside = {Path(file) for file in opened if file.startswith(f"{folder}/")}
            kept = [file.relative_to(folder) for file in inside if file.is_file()]
            own = written(name)
            read[name] = sorted(
                file for file in kept
                if file.parts[0] in ("data", "models", "metrics", ".work")
                and not any(file.is_relative_to(place) for place in own)
            )  # fmt: skip
        yield read


def written(stage: str) -> list[Path]:
    """The outputs of a stage in dvc.yaml."""
    found = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    outputs = [*found["outs"], *found.get("metrics", []), *found.get("plots", [])]
    names = [next(iter(out)) if isinstance(out, dict) else out for out in outputs]
    return [Path(name.split("/${")[0]) for name in names]


def missing(file: Path) -> bool:
    file.unlink()
    return True


def empty(file: Path) -> bool:
    file.write_bytes(b"")
    return True


def truncated(file: Path) -> bool:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return True


def one_bit(file: Path) -> bool:
    """A bit in the middle of the file, of a digit where it is text."""
    content = bytearray(file.read_bytes())
    place = len(content) // 2
    if file.suffix in (".json", ".tsv"):
        place = next(i for i in range(place, len(content)) if chr(content[i]).isdigit())
    content[place] ^= 1
    file.write_bytes(bytes(content))
    return True


def foreign(file: Path) -> bool:
    """A valid file of the same kind, of another network or artifact, or with other values."""
    if file.suffix == ".npy":
        array = np.load(file)
        np.save(file, array[::-1] if array.ndim != 3 else array[:, ::-1])
        return True
    for other in sorted(Path().rglob(f"*{file.suffix}")):
        alike = other.name == file.name or {other.stem, file.stem} == {"fp32", "int8"}
        if alike and other.parts[0] == file.parts[0] and sha256(other) != sha256(file):
            file.write_bytes(other.read_bytes())
            return True
    return False  # there is one of its kind


DAMAGES = (missing, empty, truncated, one_bit, foreign)


STUDENT_FOLDER, CURVE = STUDENTS / WORKED, curve_files(WORKED)["val_loss"]
ARTIFACT = Artifact(WORKED, "onnxruntime", "fp32")
METRICS_FILE = METRICS / "students" / f"{WORKED}.json"
READERS: dict[Path, Callable[[], object]] = {
    PACKED / "manifest.json": lambda: load_split("test"),
    PACKED / "test_images.npy": lambda: load_split("test"),
    PACKED / "test_labels.npy": lambda: load_split("test"),
    STUDENT_FOLDER / "card.json": lambda: ModelCard.read_beside(STUDENT_FOLDER),
    STUDENT_FOLDER / "model.safetensors": lambda: ModelCard.read_beside(STUDENT_FOLDER),
    METRICS_FILE: lambda: ModelMetrics.read(METRICS_FILE),
    CURVE: lambda: ModelMetrics.read(METRICS_FILE).curve(WORKED),
    ARTIFACT.folder / "artifact.json": lambda: ArtifactRecord.read_whole(ARTIFACT.folder),
    ARTIFACT.folder / "model.onnx": lambda: ArtifactRecord.read_whole(ARTIFACT.folder),
    ARTIFACT.metrics: lambda: compiled_metrics(ARTIFACT),
}
"""Of each kind of file one, with its reader."""


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("file", READERS, ids=str)
def test_a_reader_names_the_file_that_is_damaged(file: Path) -> None:
    content = file.read_bytes()
    for damage in (missing, empty, truncated, one_bit):
        damage(file)
        with pytest.raises(PipelineError) as error:
            READERS[file]()
        assert error.value.where == str(file) and error.value.fix, damage
        file.write_bytes(content)
        READERS[file]()


def state(stage: str) -> dict[str, str]:
    files = [
        f for place in written(stage) for f in ([place] if place.is_file() else place.rglob("*"))
    ]
    return {str(file): sha256(file) for file in files if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_damage_is_told_or_harmless(finished: dict[str, list[Path]], stage: str) -> None:
    assert finished[stage], "a stage reads something"
    silent = []
    for file in finished[stage]:
        content, before = file.read_bytes(), state(stage)
        for damage in DAMAGES:
            try:
                if damage(file):
                    outcome = _outcome(stage, file, before, damage.__name__)
                    if outcome:
                        silent.append(f"{file} {damage.__name__}: {outcome}")
            finally:
                file.write_bytes(content)
            if state(stage) != before:  # the report tells a missing record in its pages
                STAGES[stage]()
    assert not silent, "\n".join(silent)


def _outcome(stage: str, file: Path, before: dict[str, str], how: str) -> str | None:
    """What is wrong with the way in which a stage met a damaged file; None if nothing is."""
    try:
        STAGES[stage]()
    except PipelineError as error:
        # A record and the files beside it do not belong together: either may be the foreign one.
        if str(file.parent if how == "foreign" else file) not in str(error):
            return f"the error does not name it: {error}"
        return "outputs were lost" if state(stage) != before else None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if state(stage) == before or TOLD.get(stage) == how:
        return None
    return "not noticed"
