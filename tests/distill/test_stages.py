"""The stages of this room on real images: teachers, students, real kills."""

from __future__ import annotations

import signal
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.params import Params
from pipeline.core.files import sha256
from pipeline.data.prepare import prepare
from pipeline.distill.recording import record_teacher_logits
from pipeline.distill.records import TeacherLogitsRecord
from pipeline.distill.student import distill_student
from pipeline.networks.inference import predict
from pipeline.networks.records import ModelCard
from pipeline.networks.weights import load_pixels_to_logits
from pipeline.training.auto import INT8_PHASE
from pipeline.training.records import ModelMetrics
from tests.distill.conftest import DISTILL, teach
from tests.training.conftest import ROOT, STUDENT, stage

TEACHER_WEIGHTS = Path("models/teachers/resnet/model.safetensors")
STUDENT_WEIGHTS = Path(f"models/students/{STUDENT}/model.safetensors")

ONLINE = [
    {"name": "kl", "weight": 0.9, "options": {"temperature": 4.0}},
    {"name": "cross_entropy", "weight": 0.1},
    {"name": "hint", "weight": 0.1, "taps": ["late"]},
]


def test_a_teacher_is_trained_and_taught_from(configured: Callable[..., Params]) -> None:
    params = configured()
    teach(params)
    card = ModelCard.read(TEACHER_WEIGHTS.with_name("card.json"))
    pixels = np.load("data/packed/train_images.npy")
    assert card.normalisation.mean == pytest.approx([pixels.mean()])
    assert card.classes[0] == "T-shirt/top"
    distill_student(params, STUDENT)
    metrics = ModelMetrics.read(Path(f"metrics/students/{STUDENT}.json"))
    assert 0.05 < metrics.top1 <= 1
    own = ModelCard.read(STUDENT_WEIGHTS.with_name("card.json"))
    assert (own.normalisation.mean, own.normalisation.std) == ((128.0,), (64.0,))
    assert own.int8_phase == INT8_PHASE
    assert metrics.rounded == pytest.approx((own.epochs * (1 - INT8_PHASE), own.epochs))


def test_two_teachers_of_different_sizes_teach_one_student(
    configured: Callable[..., Params],
) -> None:
    zoo = configured().teachers.zoo
    usual = zoo["resnet"].model_dump()
    two = {"resnet": usual, "large": usual | {"input_size": 40}}
    both = {"enabled": ["resnet", "large"], "zoo": two}
    params = configured(teachers=both, distill={"losses": ONLINE})
    teach(params)
    model, card = load_pixels_to_logits(Path("models/teachers/large"))
    assert (card.image_size, card.input_size) == (28, 40)
    seen = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    logits = predict(model, np.load("data/packed/val_images.npy")[:4])
    assert seen[0][2:] == (40, 40) and logits.shape == (4, 10)
    record = TeacherLogitsRecord.read(Path("models/teacher_logits/record.json"))
    assert list(record.teachers) == ["resnet", "large"]
    distill_student(params, STUDENT)
    recorded = ModelMetrics.read(Path(f"metrics/students/{STUDENT}.json"))
    params = configured(teachers=both, distill={"losses": ONLINE}, teacher_logits={"record": False})
    record_teacher_logits(params)
    distill_student(params, STUDENT)
    online = ModelMetrics.read(Path(f"metrics/students/{STUDENT}.json"))
    assert online.top1 == pytest.approx(recorded.top1, abs=0.02)


def test_images_without_labels_teach_in_every_stage(
    configured: Callable[..., Params], fashion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = configured()
    Path("data").unlink()  # the link to what all tests share
    few = {"labels": 5, "limit": 300, "calibration_images": 32}
    manifest = prepare(params.data.model_copy(update=few), 1, fashion / "data/raw")
    assert (manifest.size("train"), manifest.unlabelled) == (50, 250)
    teach(params)
    assert TeacherLogitsRecord.read(Path("models/teacher_logits/record.json")).samples == 300
    distill_student(params, STUDENT)
    told = capsys.readouterr().out
    assert "resnet: 500 images (250 of them unlabelled) at 28 px" in told
    assert f"{STUDENT}: 300 images (250 of them unlabelled) at 28 px" in told
    assert 0.05 < ModelMetrics.read(Path(f"metrics/students/{STUDENT}.json")).top1 <= 1


def test_a_student_with_a_recipe_of_its_own_ignores_those_of_all(
    configured: Callable[..., Params],
) -> None:
    losses = [{"name": "mse", "weight": 1.0}]
    recipe = {"epochs": 1, "losses": losses, "int8_phase": 0, "training": {"lr": 0.001}}
    own = configured().students.zoo[STUDENT].model_dump() | {"recipe": recipe}
    zoo = {STUDENT: own, "other": own | {"recipe": {}}}
    params = configured(students={"enabled": [STUDENT], "zoo": zoo}, views={"epochs": 2})
    teach(params)
    distill_student(params, STUDENT)
    card = ModelCard.read(STUDENT_WEIGHTS.with_name("card.json"))
    assert (card.epochs, card.int8_phase, card.recipe["lr"]) == (1, 0, 0.001)
    distill_student(params, "other")
    usual = ModelCard.read(Path("models/students/other/card.json"))
    assert (usual.epochs, usual.int8_phase) == (2, INT8_PHASE)
    alone = configured(
        students={"enabled": [STUDENT], "zoo": {STUDENT: own | {"recipe": {}}}},
        distill={
            "losses": losses, "int8_phase": 0, "training": {"lr": 0.001, "batch_size": 50}
        },
        views={"epochs": 1}, teacher_logits={"epochs": 2},
    )  # fmt: skip
    distill_student(alone, STUDENT)
    assert ModelCard.read(STUDENT_WEIGHTS.with_name("card.json")).weights_digest == (
        card.weights_digest
    )


def test_a_student_alone_needs_no_teacher(configured: Callable[..., Params]) -> None:
    params = configured(
        distill={"losses": [{"name": "cross_entropy", "weight": 1.0}]},
        teacher_logits={"record": False},
    )
    distill_student(params, STUDENT)
    assert STUDENT_WEIGHTS.exists() and not TEACHER_WEIGHTS.exists()


def test_a_stage_that_is_killed_again_and_again_ends_with_the_same_bits(
    configured: Callable[..., Params],
) -> None:
    params = configured(
        views={"epochs": 3}, distill={"losses": ONLINE, "training": {
            **configured().distill.training.model_dump(), "ema": 0.9, "batch_size": 25}}
    )  # fmt: skip
    teach(params)
    undisturbed = stage(*DISTILL)
    said, _ = undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0, said
    expected, metrics = sha256(STUDENT_WEIGHTS), Path(f"metrics/students/{STUDENT}.json")
    curve = Path(f"metrics/curves/{STUDENT}/plots/metrics/val_loss.tsv").read_text()
    STUDENT_WEIGHTS.unlink()
    metrics.unlink()
    for checkpoints_seen in (2, 5, 3):  # in the first epoch, then across its end, and later
        disturbed = stage(*DISTILL, EDGESTILL_CHECKPOINT_SECONDS="0")
        seen: set[int] = set()
        end = time.monotonic() + 60
        while len(seen) < checkpoints_seen and time.monotonic() < end:
            seen |= {file.stat().st_mtime_ns for file in Path(".work/checkpoints").glob("*.pt")}
            assert disturbed.poll() is None, disturbed.communicate()
        disturbed.send_signal(signal.SIGKILL)
        disturbed.wait()
        assert not STUDENT_WEIGHTS.exists() and not metrics.exists()
    last = stage(*DISTILL)
    said, _ = last.communicate(timeout=120)
    assert last.returncode == 0, said
    assert sha256(STUDENT_WEIGHTS) == expected and metrics.exists()
    assert Path(f"metrics/curves/{STUDENT}/plots/metrics/val_loss.tsv").read_text() == curve
    assert not list(Path(".work/checkpoints").iterdir())


ABSENT = (
    "dvc",
    "onnx",
    "openvino",
    "nncf",
    "litert",
    "ai_edge",
    "tensorrt",
    "matplotlib",
    "jinja2",
)


def test_training_needs_neither_dvc_nor_any_runtime(
    configured: Callable[..., Params], folder: Path
) -> None:
    """The stages on a machine for training: all packages are found but those of later stages."""
    configured()
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.lower().startswith(ABSENT):
            (packages / entry.name).symlink_to(entry)
    for command in (
        ("stages.train_teacher", "--teacher", "resnet"),
        ("stages.record_teacher",),
        ("stages.distill", "--student", STUDENT),
    ):
        done = stage("-S", "-m", *command, PYTHONPATH=f"{ROOT}:{packages}")
        said, _ = done.communicate(timeout=120)
        assert done.returncode == 0, said
    assert "DVCLive is not installed" in said
    assert STUDENT_WEIGHTS.exists()
    assert Path(f"metrics/curves/{STUDENT}/plots/metrics/val_top1.tsv").exists()
