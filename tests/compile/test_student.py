"""What `pipeline.measure.compile` does around every backend, shown with ONNX Runtime."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.job import (
    Compiled,
    Job,
    Recipe,
)
from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.onnxruntime.spec import OnnxRuntime
from pipeline.cli.params import Params, load_params
from pipeline.compile.evidence import Evidence
from pipeline.compile.records import CompiledMetrics
from pipeline.compile.student import (
    compile_student,
)
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.data.records import load_split
from pipeline.export.evaluate import Runner
from pipeline.networks.records import ModelCard

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]
Jobs = Callable[[str], Job]
ROOT = Path(__file__).parents[2]
SHIPPED = load_params(ROOT / "params.yaml")


def climbing(*rungs: str) -> Params:
    """The shipped params with a ladder of these rungs above the default."""
    settings = {"rungs": ("default", *rungs)}
    quantize = SHIPPED.quantize.model_copy(update=settings)
    return SHIPPED.model_copy(update={"quantize": quantize})


PARAMS = climbing()


@pytest.fixture
def project(
    job: Jobs,
    test_images: Split,
    torch_logits: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder in which everything up to the export of the student `tiny` has been run."""
    for folder in ("data/packed", "data/calibration", "models/onnx/tiny", "models/students"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copytree(job("fp32").student_folder, tmp_path / "models/students/tiny")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    job("fp32").manifest.write(tmp_path / "data/packed/manifest.json")
    for split in ("val", "test"):
        np.save(tmp_path / f"data/packed/{split}_images.npy", test_images[0])
        np.save(tmp_path / f"data/packed/{split}_labels.npy", test_images[1])
    np.save(tmp_path / "data/calibration/images.npy", job("fp32").calibration)
    np.save(tmp_path / "models/onnx/tiny/test_logits.npy", torch_logits)
    for file in ("model.onnx", "layers.json"):
        shutil.copy(job("fp32").onnx.with_name(file), tmp_path / "models/onnx/tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(project: Path) -> list[Path]:
    """Every file under the outputs, and every artifact's folder, hidden scratch included."""
    files = [path for path in (project / "metrics").rglob("*") if path.is_file()]
    return [*files, *project.glob("models/compiled/*/*/*")]


def test_it_records_the_artifact_and_its_accuracy(project: Path) -> None:
    metrics = compile_student(PARAMS, OnnxRuntime(), "tiny", "int8")
    folder = project / "models/compiled/onnxruntime/tiny/int8"
    artifact = ArtifactRecord.read(folder / "artifact.json")
    evidence = Evidence.read(project / "metrics/evidence/onnxruntime/tiny/int8.json")
    assert (evidence.execution, evidence.digests) == (artifact.execution, artifact.digests)
    assert evidence.answers().mean() == metrics.top1
    assert CompiledMetrics.read(project / "metrics/compiled/onnxruntime/tiny/int8.json") == metrics
    assert artifact.digests == {"model.onnx": sha256(folder / "model.onnx")}
    assert set(artifact.versions) == {"onnx", "onnxruntime"}
    assert artifact.execution.int8_mac_share == metrics.int8_mac_share == 1
    assert metrics.images == 300
    assert metrics.size_bytes == (folder / "model.onnx").stat().st_size
    assert abs(metrics.top1_drop) < 0.02 and metrics.agreement > 0.97
    assert metrics.evaluated_with.startswith("onnxruntime 1")
    assert len(metrics.layers) == 18 and artifact.exact_input_images == 33


def test_only_int8_has_a_calibration(project: Path) -> None:
    for precision in ("fp32", "int8"):
        compile_student(PARAMS, OnnxRuntime(), "tiny", precision)
        folder = project / f"models/compiled/onnxruntime/tiny/{precision}"
        digest = ArtifactRecord.read(folder / "artifact.json").calibration_digest
        assert (digest is None) == (precision == "fp32")


def test_the_stage_script_runs_by_hand(project: Path) -> None:
    tree = yaml.safe_load((project / "params.yaml").read_text())
    tree["students"]["zoo"]["tiny"] = tree["students"]["zoo"]["mnv4_small_050"]
    tree["backends"]["openvino"]["precisions"], tree["quantize"]["rungs"] = [], ["default"]
    (project / "params.yaml").write_text(yaml.safe_dump(tree))

    def script(backend: str, student: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"stages.compile_{backend}", "--student", student],
            cwd=project,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )

    done, nothing, failed = (
        script(*of)
        for of in (("onnxruntime", "tiny"), ("openvino", "tiny"), ("onnxruntime", "huge"))
    )
    assert done.returncode == nothing.returncode == 0, done.stderr + nothing.stderr
    assert re.findall(r"^tiny onnxruntime (\w+): top-1", done.stdout, re.M) == ["fp32", "int8"]
    assert nothing.stdout == "" and {path.parts[-3] for path in outputs(project)} == {"onnxruntime"}
    for folder in ("models/compiled", "metrics/compiled", "metrics/evidence"):
        assert not list((project / folder / "openvino/tiny").iterdir())  # DVC wants it there
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "no student `huge`" in failed.stderr and "Traceback" not in failed.stderr


def test_precisions_are_those_of_the_parameters() -> None:
    assert precisions("tflite") == ("fp32", "fp16", "int8")


def test_an_unknown_precision_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(PipelineError, match=r"no precision `int4`.*\n.*fp32, int8"):
        compile_student(PARAMS, OnnxRuntime(), "tiny", "int4")


@pytest.mark.usefixtures("project")
def test_a_missing_package_is_an_error_that_names_it() -> None:
    class Lonely(OnnxRuntime):
        packages = ("onnx", "a-package-that-is-not-there")

    with pytest.raises(PipelineError, match="a-package-that-is-not-there is not installed"):
        compile_student(PARAMS, Lonely(), "tiny", "fp32")


@pytest.mark.usefixtures("project")
def test_a_student_that_is_not_exported_is_named() -> None:
    with pytest.raises(PipelineError, match="`huge` has not been exported"):
        compile_student(PARAMS, OnnxRuntime(), "huge", "fp32")


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


class Deaf(OnnxRuntime):
    """Says that it keeps layers in float as the recipe asks, and does not."""

    def compile(self, job: Job, folder: Path) -> Compiled:
        compiled = super().compile(dataclasses.replace(job, recipe=Recipe()), folder)
        return dataclasses.replace(compiled, kept_float=job.recipe.float_layers)


class FloatInput(OnnxRuntime):
    """Its artifact takes floats."""

    def compile(self, job: Job, folder: Path) -> Compiled:
        compiled = super().compile(job, folder)
        execution = compiled.execution.model_copy(update={"input_type": "float32"})
        return dataclasses.replace(compiled, execution=execution)


@pytest.mark.parametrize(
    ("backend", "precision", "complaint"),
    [
        (FloatInside(), "int8", r"asked int8, but .* 100.0% .* in float: \S+ \([\d,]+ MACs\), "),
        (FloatInput(), "fp32", "takes float32 and gives float32, where raw pixels are uint8"),
        (Distorted(lambda z: z * np.float32(np.nan)), "fp32", "not finite"),
        (Distorted(lambda z: -z), "fp32", "the conversion is broken"),
    ],
)
def test_an_unsound_artifact_leaves_nothing_behind(
    project: Path, backend: OnnxRuntime, precision: str, complaint: str
) -> None:
    with pytest.raises(PipelineError, match=complaint):
        compile_student(PARAMS, backend, "tiny", precision)
    assert outputs(project) == []


@pytest.mark.usefixtures("project")
def test_the_error_names_the_largest_float_products() -> None:
    with pytest.raises(PipelineError) as error:
        compile_student(PARAMS, FloatInside(), "tiny", "int8")
    named = [
        int(number.replace(",", ""))
        for number in re.findall(r"\(([\d,]+) MACs\)", str(error.value))
    ]
    assert len(named) == 5 and named == sorted(named, reverse=True)
    compile_student(PARAMS, OnnxRuntime(), "tiny", "fp32")
    products = ArtifactRecord.read(
        Artifact("tiny", "onnxruntime", "fp32").folder / "artifact.json"
    ).execution.in_float
    assert all(str(product) in str(error.value) for product in products[:5])
    assert f" and {len(products) - 5} more" in str(error.value)


def beyond_reach(project: Path) -> None:
    """Let the float student have been better on val than any artifact can be."""
    file = project / "models/students/tiny/card.json"
    ModelCard.read(file).model_copy(update={"val_top1": 1.5}).write(file)


def test_layers_that_are_kept_in_float_on_purpose_are_no_fault(project: Path) -> None:
    beyond_reach(project)
    metrics = compile_student(climbing("float_layers"), OnnxRuntime(), "tiny", "int8")
    sizes = [attempt.size_bytes for attempt in metrics.ladder if attempt.failure is None]
    assert len(sizes) > 1 and sizes == sorted(set(sizes))  # float weights are larger
    assert sum(attempt.kept for attempt in metrics.ladder) == 1


def test_a_layer_that_was_to_stay_in_float_and_did_not_is_a_failure(project: Path) -> None:
    beyond_reach(project)
    metrics = compile_student(climbing("float_layers"), Deaf(), "tiny", "int8")
    assert "meant to keep" in str(metrics.ladder[1].failure)
    assert metrics.ladder[0].kept and metrics.int8_mac_share == 1


def test_the_ladder_is_judged_on_val_and_test_is_looked_at_once(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def noted(split: Any, *rest: Any) -> Any:
        read.append(split)
        return load_split(split, *rest)

    monkeypatch.setattr("pipeline.compile.student.load_split", noted)
    beyond_reach(project)
    compile_student(climbing("ranges"), OnnxRuntime(), "tiny", "int8")
    assert read == ["val", "test"]


def test_an_unsound_artifact_leaves_the_last_sound_one(project: Path) -> None:
    compile_student(PARAMS, OnnxRuntime(), "tiny", "fp32")
    before = {path: sha256(path) for path in project.rglob("*") if path.is_file()}
    with pytest.raises(PipelineError):
        compile_student(PARAMS, Distorted(lambda z: -z), "tiny", "fp32")
    assert before == {path: sha256(path) for path in project.rglob("*") if path.is_file()}
