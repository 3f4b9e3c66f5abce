"""The whole pipeline as a user runs it: real images, all runtimes, the `smoke` profile."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.backends.base.records import ArtifactRecord
from pipeline.cli.params import Params, load_params
from pipeline.compile.records import CompiledMetrics
from pipeline.core.files import sha256
from pipeline.data.records import Manifest
from pipeline.export.records import Parity
from pipeline.latency.records import BenchmarkRecord, Fingerprint
from pipeline.networks.records import Layers
from pipeline.training.records import read_curve
from tests.sharing import project_files

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


class Project:
    """A clone of the repository as it lies on disk, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in project_files():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        for name in ("metrics", "reports", "dvc.lock"):  # of an earlier run
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        kept = ("metrics/attribution", "metrics/devices", "metrics/robustness", "models/pruned")
        for name in kept:  # in a clone: with its README.md
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.set("profile", "smoke")
        identity = ["-c", "user.name=smoke", "-c", "user.email=smoke@example.org"]
        for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "smoke"]):
            subprocess.run(["git", *command], cwd=folder, check=True)

    def run(self, *command: str, code: int = 0) -> str:
        """Output of a command in the project; the exit code must be `code`."""
        done = subprocess.run(
            command, cwd=self.folder, env=ENVIRONMENT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == code, done.stdout
        return done.stdout

    def pipeline(self, *arguments: str, code: int = 0) -> str:
        return self.run("python", "-m", "pipeline", *arguments, code=code)

    def stage(self, name: str, *arguments: str, code: int = 0) -> str:
        return self.run("python", "-m", f"stages.{name}", *arguments, code=code)

    def set(self, dotted: str, value: object) -> object:
        """Set a key of params.yaml; give what it was."""
        file = self.folder / "params.yaml"
        tree = yaml.safe_load(file.read_text())
        *path, last = dotted.split(".")
        node = tree
        for key in path:
            node = node[key]
        old, node[last] = node.get(last), value
        file.write_text(yaml.safe_dump(tree, sort_keys=False))
        return old

    def changed_stages(self) -> set[str]:
        """What `dvc status` names, but for the stage that always runs."""
        return set(json.loads(self.run("dvc", "status", "--json", "dvc.yaml"))) - {"fingerprint"}

    def params(self) -> Params:
        return load_params(self.folder / "params.yaml")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("smoke"))
    project.pipeline("check")
    print(project.run("dvc", "repro"))
    if report := os.environ.get("SMOKE_REPORT"):
        shutil.copy(project.folder / "reports" / "report.md", report)
    return project


@pytest.fixture(scope="module")
def student(project: Project) -> str:
    return project.params().students.enabled[0]


def test_the_images_are_real_and_whole(project: Project) -> None:
    manifest = Manifest.read(project.folder / "data/packed/manifest.json")
    assert manifest.classes[:2] == ("T-shirt/top", "Trouser")
    assert {split: manifest.size(split) for split in manifest.counts} == {
        "train": 1000, "val": 1000, "test": 1000,
    }  # fmt: skip
    assert not manifest.rejected


def test_every_artifact_is_measured_on_its_runtime_or_says_why_not(project: Project) -> None:
    params = project.params()
    record = BenchmarkRecord.read(project.folder / "metrics/benchmark.json")
    asked = {artifact.key for artifact in params.backends.artifacts(params.students.enabled)}
    assert set(record.rows) == asked
    for name, row in record.rows.items():
        if row.status == "measured":
            assert row.latency_ms is not None and row.latency_ms.p50 > 0
            assert row.n >= params.benchmark.rounds * params.benchmark.min_runs
        else:
            assert "/tensorrt/" in name and row.status == "not_measured"
            assert row.reason and row.latency_ms is None


def compiled(project: Project) -> list[tuple[ArtifactRecord, CompiledMetrics]]:
    params = project.params()
    return [
        (
            ArtifactRecord.read(project.folder / artifact.folder / "artifact.json"),
            CompiledMetrics.read(project.folder / artifact.metrics),
        )
        for artifact in params.backends.artifacts(params.students.enabled)
    ]


def test_int8_is_int8_and_float_is_float(project: Project) -> None:
    for artifact, _ in compiled(project):
        if artifact.precision == "int8":
            assert artifact.execution.int8_mac_share >= 0.98, artifact
            assert artifact.execution.per_channel
        else:
            assert (artifact.execution.int8_mac_share, artifact.execution.per_channel) == (0, None)
        assert (artifact.execution.input_type, artifact.execution.output_type) == (
            "uint8",
            "float32",
        )


def test_every_runtime_computes_the_products_of_its_student(project: Project) -> None:
    for artifact, _ in compiled(project):
        file = project.folder / "models/onnx" / artifact.student / "layers.json"
        macs = [layer.macs for layer in Layers.read(file).layers]  # as torch counts them
        assert artifact.execution.macs == sum(macs), artifact
        if artifact.precision != "int8":
            assert sorted(p.macs for p in artifact.execution.in_float) == sorted(macs), artifact


def test_one_calibration_set_for_all_backends(project: Project) -> None:
    manifest = Manifest.read(project.folder / "data/packed/manifest.json")
    digests = {a.calibration_digest for a, _ in compiled(project) if a.precision == "int8"}
    assert digests == {manifest.calibration_digest}
    assert all(a.calibration_digest is None for a, _ in compiled(project) if a.precision != "int8")


def test_float_artifacts_answer_as_torch_does(project: Project) -> None:
    for artifact, metrics in compiled(project):
        assert metrics.images == 1000
        if artifact.precision == "fp32":
            assert metrics.agreement >= 0.999, artifact


def test_the_onnx_answers_as_torch_does(project: Project) -> None:
    for name in project.params().students.enabled:
        parity = Parity.read(project.folder / "models/onnx" / name / "parity.json")
        assert parity.same_argmax >= 0.999 and parity.images == 1000


def test_every_network_has_its_curve(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    params = project.params()
    monkeypatch.chdir(project.folder)
    for name in (*params.teachers.enabled, *params.students.enabled):
        assert len(read_curve(name)) == 1


def test_the_report_shows_every_row(project: Project) -> None:
    markdown = (project.folder / "reports/report.md").read_text()
    html = (project.folder / "reports/report.html").read_text()
    table = project.pipeline("results")
    for artifact, metrics in compiled(project):
        for text in (markdown, html):
            assert artifact.student in text and f"{metrics.top1:.4f}" in text
    assert "reports/report.html" in table


def test_reproducing_again_runs_the_fingerprint_alone(project: Project) -> None:
    said = project.run("dvc", "repro")
    assert re.findall("Running stage '(.*)'", said) == ["fingerprint"]
    assert not project.changed_stages()


def branches(project: Project, *students: str) -> set[str]:
    """The stages that a student's settings, losses and their code touch, of these students."""
    return {f"distill@{name}" for name in students or project.params().students.enabled}


def test_editing_one_student_touches_its_branch_alone(project: Project, student: str) -> None:
    key = f"students.zoo.{student}.args"
    old = project.set(key, {"drop_rate": 0.1})
    followers = {"bundle"}  # whose card names the losses, of which a student may have its own
    assert project.changed_stages() == branches(project, student) | followers
    project.set(key, old)


def test_another_loss_or_temperature_never_runs_the_teacher_again(project: Project) -> None:
    key = "profiles.smoke.distill.losses"
    losses = yaml.safe_load((project.folder / "params.yaml").read_text())["profiles"]["smoke"]
    other = [{"name": "kl", "weight": 1.0, "options": {"temperature": 2.0}}]
    assert losses["distill"]["losses"] != other
    old = project.set(key, other)
    assert project.changed_stages() == branches(project) | {"bundle"}  # whose card names it
    project.set(key, old)


def test_editing_limits_touches_the_report_alone_and_the_gate_nothing(project: Project) -> None:
    for key, readers in (("limits.max_top1_drop", {"report"}), ("gate.max_slowdown", set())):
        old = project.set(key, 0.5)
        assert project.changed_stages() == readers
        project.set(key, old)


BEFORE_BENCHMARK = (
    "fetch", "prepare", "train_teacher", "record_teacher", "distill", "export", "compile",
)  # fmt: skip


def edited(project: Project, folder: str) -> set[str]:
    """The stages that an edit in a folder of pipeline/ touches."""
    file = project.folder / "pipeline" / folder / "__init__.py"
    text = file.read_text()
    file.write_text(text + "# changed\n")
    changed = project.changed_stages()
    file.write_text(text)
    return changed


def test_an_edit_touches_the_stages_that_depend_on_its_room(project: Project) -> None:
    assert edited(project, "distill/losses") == branches(project) | {"record_teacher", "bundle"}
    assert edited(project, "gate") == edited(project, "cli") == set()
    for room in ("latency", "report", "bundle"):
        stages = {name.partition("@")[0] for name in edited(project, room)}
        assert stages and not stages & set(BEFORE_BENCHMARK), room


def test_an_edit_in_a_backend_touches_its_compile_and_what_follows(project: Project) -> None:
    params = project.params()
    for name in params.backends.enabled:
        changed = edited(project, f"backends/{name}")
        compiles = {stage for stage in changed if stage.startswith("compile@")}
        assert compiles == {f"compile@{name}-{student}" for student in params.students.enabled}
        assert not {stage.partition("@")[0] for stage in changed - compiles} & {*BEFORE_BENCHMARK}


def test_the_run_cache_restores_a_compile_stage(project: Project, student: str) -> None:
    folder = project.folder / "models/compiled/onnxruntime" / student
    before = {file.name: sha256(file) for file in folder.rglob("*") if file.is_file()}
    stage = f"compile@onnxruntime-{student}"
    lock = (project.folder / "dvc.lock").read_text()
    (project.folder / "dvc.lock").unlink()
    shutil.rmtree(folder)
    said = project.run("dvc", "repro", "--single-item", stage)
    assert "is cached - skipping run" in said
    assert before == {file.name: sha256(file) for file in folder.rglob("*") if file.is_file()}
    (project.folder / "dvc.lock").write_text(lock)


def test_dvc_shows_the_main_figures_in_120_columns(project: Project) -> None:
    said = project.run("dvc", "metrics", "show").splitlines()
    shown = [line.rstrip() for line in said if line.startswith(("Path", "metrics/summary"))]
    artifacts = project.params().backends.artifacts(project.params().students.enabled)
    assert len(shown) == 1 + len(artifacts)
    assert all(len(line) <= 120 for line in shown), max(shown, key=len)
    assert all(name in shown[0] for name in ("top1", "drop", "kb", "p50_ms"))


def test_a_stage_runs_by_hand_and_gives_the_same_bits(project: Project, student: str) -> None:
    weights = project.folder / "models/students" / student / "model.safetensors"
    before = sha256(weights)
    project.stage("distill", "--student", student)
    assert sha256(weights) == before
    assert not project.changed_stages()


def test_a_stage_names_what_it_does_not_know(project: Project) -> None:
    said = project.stage("export", "--student", "nobody", code=1)
    assert "there is no student `nobody`" in said and "Traceback" not in said


def test_an_interrupted_stage_leaves_nothing_and_the_next_run_goes_on(
    project: Project, student: str
) -> None:
    folder = project.folder / "models/students" / student
    kept = project.set("profiles.smoke.views.epochs", 400)
    recorded = project.set(
        "teacher_logits.record", False
    )  # there is no recording of so many epochs
    shutil.rmtree(folder)
    stage = subprocess.Popen(
        ["python", "-m", "stages.distill", "--student", student],
        cwd=project.folder, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    checkpoints = project.folder / ".work/checkpoints"
    end = time.monotonic() + 120
    while not list(checkpoints.glob("*.pt")) and time.monotonic() < end:
        time.sleep(0.2)
    stage.send_signal(signal.SIGINT)
    said, _ = stage.communicate(timeout=60)
    assert stage.returncode == 130, said
    assert "run the same command again" in said and "Traceback" not in said
    assert not folder.exists() and not list(folder.parent.glob(".*"))
    project.set("profiles.smoke.views.epochs", kept)
    project.set("teacher_logits.record", recorded)
    project.run("dvc", "repro")
    assert folder.exists()


def test_predict_gives_classes_with_probabilities(project: Project, student: str) -> None:
    import numpy as np
    from PIL import Image

    pixels = np.load(project.folder / "data/packed/test_images.npy", mmap_mode="r")[0, ..., 0]
    Image.fromarray(np.asarray(pixels)).save(project.folder / "boot.png")
    for backend, precision in project.params().backends.pairs():
        said = project.pipeline(
            "predict", "boot.png", "--student", student, "--backend", backend,
            "--precision", precision, "--json",
        )  # fmt: skip
        answer = json.loads(said[said.index("{") :])["images"][0]
        probabilities = [row["probability"] for row in answer["classes"]]
        assert answer["image"] == "boot.png"
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1.0001


def test_predict_names_what_is_not_there(project: Project, student: str) -> None:
    common = ["--student", student, "--backend", "onnxruntime", "--precision"]
    assert "no.png" in project.pipeline("predict", "no.png", *common, "int8", code=1)
    said = project.pipeline("predict", "boot.png", *common, "int4", code=1)
    assert "int4" in said and "Traceback" not in said


def test_another_machine_measures_by_itself(project: Project) -> None:
    """The record of another machine is told by hand, and replaced by `dvc repro`."""
    file = project.folder / "metrics/fingerprint.json"
    kept = file.read_text()
    Fingerprint.read(file).model_copy(update={"cores": 999}).write(file)
    assert "benchmark" in project.changed_stages()
    said = project.stage("benchmark", code=1)
    assert "another machine" in said and "dvc repro" in said and "Traceback" not in said
    project.stage("fingerprint")
    assert file.read_text() == kept
