"""What the stage `compile` does around every backend, shown with ONNX Runtime."""

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
from pipeline.backends.base.job import Compiled, Job, Recipe
from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.registry import backend
from pipeline.backends.onnxruntime.compile import Compiler
from pipeline.backends.onnxruntime.spec import BACKEND, OnnxRuntime
from pipeline.compile.evidence import Evidence
from pipeline.compile.params import CompileParams
from pipeline.compile.records import CompiledMetrics
from pipeline.compile.student import compile_artifact, compile_student
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.core.params import load
from pipeline.data.records import load_split
from pipeline.export.evaluate import Runner
from pipeline.networks.records import ModelCard
from tests.sharing import describe

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]
Jobs = Callable[[str], Job]
ROOT = Path(__file__).parents[2]
SHIPPED = load(CompileParams, ROOT / "params.yaml")
SETTINGS = SHIPPED.backends.settings("onnxruntime")


def climbing(*rungs: str) -> CompileParams:
    """The shipped params with a ladder of these rungs above the default."""
    settings = {"rungs": ("default", *rungs), "significance": 1.0}
    quantize = SHIPPED.quantize.model_copy(update=settings)
    return SHIPPED.model_copy(update={"quantize": quantize})


PARAMS = climbing()


def make(
    precision: str,
    compiler: type[Compiler] = Compiler,
    params: CompileParams = PARAMS,
    its: OnnxRuntime = BACKEND,
    student: str = "tiny",
) -> CompiledMetrics:
    """The artifact of `student` for ONNX Runtime."""
    artifact = Artifact(student, its.name, precision)
    return compile_artifact(params, its, compiler(SETTINGS), artifact)


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
    shutil.copytree(job("fp32").weights, tmp_path / "models/students/tiny")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    job("fp32").manifest.write(tmp_path / "data/packed/manifest.json")
    for split in ("val", "test"):
        np.save(tmp_path / f"data/packed/{split}_images.npy", test_images[0])
        np.save(tmp_path / f"data/packed/{split}_labels.npy", test_images[1])
    np.save(tmp_path / "data/calibration/images.npy", job("fp32").calibration)
    np.save(tmp_path / "models/onnx/tiny/test_logits.npy", torch_logits)
    for file in ("model.onnx", "layers.json"):
        shutil.copy(job("fp32").onnx.with_name(file), tmp_path / "models/onnx/tiny")
    describe(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(project: Path) -> list[Path]:
    """Every file under the outputs, and every artifact's folder, hidden scratch included."""
    files = [path for path in (project / "metrics").rglob("*") if path.is_file()]
    return [*files, *project.glob("models/compiled/*/*/*")]


def test_it_records_the_artifact_and_its_accuracy(project: Path) -> None:
    metrics = make("int8")
    folder = project / "models/compiled/onnxruntime/tiny/int8"
    artifact = ArtifactRecord.read(folder / "artifact.json")
    evidence = Evidence.read(folder / "evidence.json")
    assert (evidence.execution, evidence.digests) == (artifact.execution, artifact.digests)
    assert evidence.answers().mean() == metrics.top1
    assert CompiledMetrics.read(folder / "metrics.json") == metrics
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
        make(precision)
        folder = project / f"models/compiled/onnxruntime/tiny/{precision}"
        digest = ArtifactRecord.read(folder / "artifact.json").calibration_digest
        assert (digest is None) == (precision == "fp32")


def test_the_stage_script_runs_by_hand(project: Path) -> None:
    tree = yaml.safe_load((project / "params.yaml").read_text())
    tree["students"]["zoo"]["tiny"] = tree["students"]["zoo"]["mnv4_small_050"]
    tree["backends"]["openvino"]["precisions"] = ["fp32"]
    tree["quantize"]["rungs"] = ["default"]
    (project / "params.yaml").write_text(yaml.safe_dump(tree))

    def script(backend: str, student: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stages.compile", "--backend", backend, "--student", student],
            cwd=project,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )

    done, one, failed, unknown = (
        script(*of)
        for of in (
            ("onnxruntime", "tiny"), ("openvino", "tiny"), ("onnxruntime", "huge"),
            ("openvin", "tiny"),
        )
    )  # fmt: skip
    assert done.returncode == one.returncode == 0, done.stderr + one.stderr
    assert re.findall(r"^tiny/onnxruntime/(\w+): top-1", done.stdout, re.M) == ["fp32", "int8"]
    assert re.findall(r"^tiny/openvino/(\w+): top-1", one.stdout, re.M) == ["fp32"]
    (made,) = (project / "models/compiled/openvino/tiny").iterdir()
    names = {"artifact.json", "evidence.json", "metrics.json", "model.bin", "model.xml"}
    assert made.name == "fp32" and {file.name for file in made.iterdir()} == names
    assert (failed.returncode, failed.stdout) == (unknown.returncode, unknown.stdout) == (1, "")
    assert "no student `huge`" in failed.stderr and "Traceback" not in failed.stderr
    assert "no `openvin` among the backends; did you mean `openvino`" in unknown.stderr


def test_precisions_are_those_of_the_parameters() -> None:
    assert backend("tflite").precisions == ("fp32", "fp16", "int8")


@pytest.mark.usefixtures("project")
def test_every_precision_that_is_asked_for_is_made_in_order() -> None:
    made = dict(compile_student(PARAMS, "onnxruntime", "tiny"))
    assert [str(artifact) for artifact in made] == [
        "tiny/onnxruntime/fp32", "tiny/onnxruntime/int8",
    ]  # fmt: skip
    for artifact, metrics in made.items():
        assert CompiledMetrics.read(artifact.folder / "metrics.json") == metrics


@pytest.mark.parametrize(("asked", "complaint"), [(["int4"], "'fp32' or 'int8'"), ([], "1 item")])
def test_a_precision_that_is_unknown_or_missing_is_an_error_that_names_the_known_ones(
    asked: list[str], complaint: str
) -> None:
    update = {"enabled": ["onnxruntime"], "onnxruntime": {"precisions": asked}}
    backends = type(SHIPPED.backends).model_validate(update)
    with pytest.raises(PipelineError, match=rf"backends\.onnxruntime\.precisions.*{complaint}"):
        list(compile_student(PARAMS.model_copy(update={"backends": backends}), "onnxruntime", "a"))


@pytest.mark.usefixtures("project")
def test_a_missing_package_is_an_error_that_names_it() -> None:
    class Lonely(OnnxRuntime):
        packages = ("onnx", "a-package-that-is-not-there")

    with pytest.raises(PipelineError, match="a-package-that-is-not-there is not installed"):
        make("fp32", its=Lonely())


@pytest.mark.usefixtures("project")
def test_a_student_that_is_not_exported_is_named() -> None:
    with pytest.raises(PipelineError, match="there is no Parity record"):
        make("fp32", student="huge")


class Distorted(OnnxRuntime):
    """ONNX Runtime whose logits are distorted after the fact."""

    __module__ = OnnxRuntime.__module__  # beside which its `run.py` is looked for

    def __init__(self, distort: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        self.distort = distort

    def load(self, model: Path, threads: int, batch: int = 0) -> Runner:
        run = super().load(model, threads, batch)
        return lambda images: self.distort(run(images))


class FloatInside(Compiler):
    """Asked for int8, it makes float and its inspection says so."""

    def compile(self, job: Job, folder: Path) -> Compiled:
        artifact = dataclasses.replace(job.artifact, precision="fp32")
        return super().compile(dataclasses.replace(job, artifact=artifact), folder)


class Deaf(Compiler):
    """Says that it keeps layers in float as the recipe asks, and does not."""

    def compile(self, job: Job, folder: Path) -> Compiled:
        compiled = super().compile(dataclasses.replace(job, recipe=Recipe()), folder)
        return dataclasses.replace(compiled, kept_float=job.recipe.float_layers)


class FloatInput(Compiler):
    """Its artifact takes floats."""

    def compile(self, job: Job, folder: Path) -> Compiled:
        compiled = super().compile(job, folder)
        execution = compiled.execution.model_copy(update={"input_type": "float32"})
        return dataclasses.replace(compiled, execution=execution)


NOT_FINITE, UPSIDE_DOWN = Distorted(lambda z: z * np.float32(np.nan)), Distorted(lambda z: -z)


@pytest.mark.parametrize(
    ("its", "compiler", "precision", "complaint"),
    [
        (
            BACKEND, FloatInside, "int8",
            r"asked for int8, but .* 100.0% .* in float: \S+ \([\d,]+ MACs\), ",
        ),
        (
            BACKEND, FloatInput, "fp32",
            "takes float32 and gives float32, where raw pixels are uint8",
        ),
        (NOT_FINITE, Compiler, "fp32", "not finite"),
        (UPSIDE_DOWN, Compiler, "fp32", "the conversion is broken"),
    ],
)  # fmt: skip
def test_an_unsound_artifact_leaves_nothing_behind(
    project: Path, its: OnnxRuntime, compiler: type[Compiler], precision: str, complaint: str
) -> None:
    with pytest.raises(PipelineError, match=complaint):
        make(precision, compiler, its=its)
    assert outputs(project) == []


@pytest.mark.usefixtures("project")
def test_the_error_names_the_largest_float_layers() -> None:
    with pytest.raises(PipelineError) as error:
        make("int8", FloatInside)
    named = [
        int(number.replace(",", ""))
        for number in re.findall(r"\(([\d,]+) MACs\)", str(error.value))
    ]
    assert len(named) == 5 and named == sorted(named, reverse=True)
    make("fp32")
    layers = ArtifactRecord.read(
        Artifact("tiny", "onnxruntime", "fp32").folder / "artifact.json"
    ).execution.in_float
    assert all(str(layer) in str(error.value) for layer in layers[:5])
    assert f" and {len(layers) - 5} more" in str(error.value)


@pytest.mark.usefixtures("project")
def test_so_much_in_float_passes_as_the_parameters_allow() -> None:
    """A student with operators that a runtime has no int8 kernel for may ship all the same."""
    quantize = PARAMS.quantize.model_copy(update={"min_int8_share": 0.0})
    with pytest.raises(PipelineError, match=r"quantize\.min_int8_share"):
        make("int8", FloatInside)
    metrics = make("int8", FloatInside, PARAMS.model_copy(update={"quantize": quantize}))
    assert metrics.int8_mac_share == 0


def beyond_reach(project: Path) -> None:
    """Let the float student have been better on val than any artifact can be."""
    file = project / "models/students/tiny/card.json"
    ModelCard.read(file).model_copy(update={"val_top1": 1.5}).write(file)


def test_layers_that_are_kept_in_float_on_purpose_are_no_fault(project: Path) -> None:
    beyond_reach(project)
    metrics = make("int8", params=climbing("float_layers"))
    sizes = [attempt.size_bytes for attempt in metrics.ladder if attempt.failure is None]
    assert len(sizes) > 1 and sizes == sorted(set(sizes))  # float weights are larger
    assert sum(attempt.kept for attempt in metrics.ladder) == 1


def test_a_layer_that_was_to_stay_in_float_and_did_not_is_a_failure(project: Path) -> None:
    beyond_reach(project)
    metrics = make("int8", Deaf, climbing("float_layers"))
    assert "asked to keep" in str(metrics.ladder[1].failure)
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
    make("int8", params=climbing("ranges"))
    assert read == ["val", "test"]


def test_an_unsound_artifact_leaves_the_last_sound_one(project: Path) -> None:
    make("fp32")
    before = {path: sha256(path) for path in project.rglob("*") if path.is_file()}
    with pytest.raises(PipelineError):
        make("fp32", its=UPSIDE_DOWN)
    assert before == {path: sha256(path) for path in project.rglob("*") if path.is_file()}
