"""What `pipeline.measure.compile` does around every backend, shown with ONNX Runtime."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.backends.base import Compiled, Job, Runner
from pipeline.backends.onnxruntime import OnnxRuntime
from pipeline.contracts import Artifact, CompiledMetrics
from pipeline.errors import PipelineError
from pipeline.files import sha256
from pipeline.measure.compile import compile_student, precisions

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]
Jobs = Callable[[str], Job]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(
    job: Jobs,
    test_images: Split,
    torch_logits: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder in which everything up to the export of the student `tiny` has been run."""
    for folder in ("data/packed", "data/calibration", "models/onnx/tiny"):
        (tmp_path / folder).mkdir(parents=True)
    job("fp32").manifest.write(tmp_path / "data/packed/manifest.json")
    np.save(tmp_path / "data/packed/test_images.npy", test_images[0])
    np.save(tmp_path / "data/packed/test_labels.npy", test_images[1])
    np.save(tmp_path / "data/calibration/images.npy", job("fp32").calibration)
    np.save(tmp_path / "models/onnx/tiny/test_logits.npy", torch_logits)
    shutil.copy(job("fp32").onnx, tmp_path / "models/onnx/tiny/model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(project: Path) -> list[Path]:
    """Every file or folder under the outputs, hidden scratch included."""
    return [path for top in ("models/compiled", "metrics") for path in project.glob(f"{top}/*/*")]


def test_it_records_the_artifact_and_its_accuracy(project: Path) -> None:
    metrics = compile_student(OnnxRuntime(), "tiny", "int8")
    folder = project / "models/compiled/onnxruntime/tiny-int8"
    artifact = Artifact.read(folder / "artifact.json")
    assert CompiledMetrics.read(project / "metrics/compiled/onnxruntime-tiny-int8.json") == metrics
    assert artifact.digests == {"model.onnx": sha256(folder / "model.onnx")}
    assert set(artifact.versions) == {"onnx", "onnxruntime"}
    assert artifact.int8_op_share == metrics.int8_op_share == 1
    assert metrics.images == 300
    assert metrics.size_bytes == (folder / "model.onnx").stat().st_size
    assert abs(metrics.top1_drop) < 0.02 and metrics.agreement > 0.97
    assert metrics.evaluated_with.startswith("onnxruntime 1")


def test_only_int8_has_a_calibration(project: Path) -> None:
    for precision in ("fp32", "int8"):
        compile_student(OnnxRuntime(), "tiny", precision)
        folder = project / f"models/compiled/onnxruntime/tiny-{precision}"
        digest = Artifact.read(folder / "artifact.json").calibration_digest
        assert (digest is None) == (precision == "fp32")


def test_the_stage_script_runs_by_hand(project: Path) -> None:
    command = ["-m", "stages.compile_onnxruntime", "--student", "tiny", "--precision"]

    def script(precision: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command, precision],
            cwd=project,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )

    done, failed = script("fp32"), script("fp8")
    assert done.returncode == 0 and "top-1" in done.stdout, done.stderr
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "no precision `fp8`" in failed.stderr and "Traceback" not in failed.stderr


def test_precisions_are_those_of_the_parameters() -> None:
    assert precisions("tflite") == ("fp32", "fp16", "int8")


def test_an_unknown_precision_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(PipelineError, match=r"no precision `int4`.*\n.*fp32, int8"):
        compile_student(OnnxRuntime(), "tiny", "int4")


@pytest.mark.usefixtures("project")
def test_a_missing_package_is_an_error_that_names_it() -> None:
    class Lonely(OnnxRuntime):
        packages = ("onnx", "a-package-that-is-not-there")

    with pytest.raises(PipelineError, match="a-package-that-is-not-there is not installed"):
        compile_student(Lonely(), "tiny", "fp32")


@pytest.mark.usefixtures("project")
def test_a_student_that_is_not_exported_is_named() -> None:
    with pytest.raises(PipelineError, match="`huge` has not been exported"):
        compile_student(OnnxRuntime(), "huge", "fp32")


class Distorted(OnnxRuntime):
    """ONNX Runtime whose logits are distorted after the fact."""

    def __init__(self, distort: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        self.distort = distort

    def load(self, model: Path, threads: int) -> Runner:
        run = super().load(model, threads)
        return lambda images: self.distort(run(images))


class FloatInside(OnnxRuntime):
    """Asked for int8, it makes float and its inspection says so."""

    def compile(self, job: Job, folder: Path) -> Compiled:
        return super().compile(dataclasses.replace(job, precision="fp32"), folder)


@pytest.mark.parametrize(
    ("backend", "precision", "complaint"),
    [
        (FloatInside(), "int8", "asked int8, but the runtime executes 100%"),
        (Distorted(lambda z: z * np.float32(np.nan)), "fp32", "not finite"),
        (Distorted(lambda z: -z), "fp32", "the conversion is broken"),
    ],
)
def test_an_unsound_artifact_leaves_nothing_behind(
    project: Path, backend: OnnxRuntime, precision: str, complaint: str
) -> None:
    with pytest.raises(PipelineError, match=complaint):
        compile_student(backend, "tiny", precision)
    assert outputs(project) == []


def test_an_unsound_artifact_leaves_the_last_sound_one(project: Path) -> None:
    compile_student(OnnxRuntime(), "tiny", "fp32")
    before = {path: sha256(path) for path in project.rglob("*") if path.is_file()}
    with pytest.raises(PipelineError):
        compile_student(Distorted(lambda z: -z), "tiny", "fp32")
    assert before == {path: sha256(path) for path in project.rglob("*") if path.is_file()}
