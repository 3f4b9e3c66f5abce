"""Projects in which a student is compiled, of any data and networks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from pipeline.attribution.params import AttributionParams
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.job import Job
from pipeline.backends.base.registry import backend
from pipeline.compile.inside import Inside
from pipeline.compile.student import _record
from pipeline.compile.untrained import Shape, untrained
from pipeline.core.params import load
from pipeline.data.records import CALIBRATION, PACKED, Manifest
from pipeline.networks.build import build_network
from pipeline.networks.params import Network, Student
from pipeline.networks.records import STUDENTS, TEACHERS, Layers, ModelCard
from pipeline.networks.weights import save_model
from tests.sharing import describe
from tests.students import draw, student_folder

ROOT = Path(__file__).parents[2]
PUPIL, MASTER = "pupil", "master"
Images = tuple[NDArray[np.uint8], NDArray[np.int64]]


def write_project(
    student: Path, teacher: Path, test: Images, calibration: NDArray[np.uint8], **settings: Any
) -> AttributionParams:
    """Fill the current folder: data, networks, ONNX Runtime's fp32 and int8, params.yaml.

    Args:
        student: a folder like models/students/S and models/onnx/S in one.
        teacher: likewise.
        test: the test split.
        calibration: images.
        settings: of the group `attribution`.
    """
    for folder, source, name in ((STUDENTS, student, PUPIL), (TEACHERS, teacher, MASTER)):
        shutil.copytree(source, folder / name)
    card = ModelCard.read_beside(STUDENTS / PUPIL)
    for folder in (PACKED, CALIBRATION):
        folder.mkdir(parents=True)
    np.save(PACKED / "test_images.npy", test[0])
    np.save(PACKED / "test_labels.npy", test[1])
    np.save(PACKED / "train_images.npy", calibration[:1])
    np.save(CALIBRATION / "images.npy", calibration)
    sizes = np.bincount(test[1], minlength=len(card.classes)).tolist()
    Manifest(
        source="drawn", licence="none", classes=card.classes, image_size=card.image_size,
        stored_size=card.image_size, channels=card.channels,
        counts={"test": dict(zip(card.classes, sizes, strict=True))}, digests={},
        calibration_digest="", mean=(0.0,) * card.channels, std=(1.0,) * card.channels, rejected=(),
    ).write(PACKED / "manifest.json")  # fmt: skip
    describe()
    manifest = Manifest.read(PACKED / "manifest.json")
    for folder in (STUDENTS / PUPIL, TEACHERS / MASTER):
        own = ModelCard.read_beside(folder)
        digest = manifest.digests["train_images.npy"]
        own.model_copy(update={"data_digest": digest}).write(folder / "card.json")
    spec = backend("onnxruntime")
    compiler = spec.compiler(spec.settings(precisions=("fp32", "int8")))
    layers = Layers.read(student / "layers.json").layers
    for precision in ("fp32", "int8"):
        artifact = Artifact(PUPIL, spec.name, precision)
        job = Job(artifact, student / "model.onnx", STUDENTS / PUPIL, calibration, manifest, layers)
        artifact.folder.mkdir(parents=True)
        compiled = compiler.compile(job, artifact.folder)
        _record(job, compiled, Inside(), {}, artifact.folder)
    return write_params(**settings)


def write_params(**settings: Any) -> AttributionParams:
    """params.yaml that asks for the student's and the teacher's maps."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["students"] = {"enabled": [PUPIL], "zoo": {PUPIL: {"arch": "any"}}}
    tree["teachers"]["zoo"][MASTER] = tree["teachers"]["zoo"]["resnet"]
    tree["teachers"]["enabled"] = [MASTER]
    tree["backends"] = {"enabled": ["onnxruntime"], "onnxruntime": {"precisions": ["fp32", "int8"]}}
    tree["attribution"] |= {"enabled": [PUPIL], "examples": 2} | settings
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    return load(AttributionParams)


def student_of(folder: Path, shape: Shape, network: dict[str, Any]) -> ModelCard:
    """An untrained, exported network as `write_project` takes it."""
    folder.mkdir()
    made = untrained("any", Student(**network), shape, 20, folder)
    Layers(layers=made.job.layers).write(folder / "layers.json")
    return ModelCard.read_beside(folder)


def teacher_of(folder: Path, shape: Shape, network: dict[str, Any], like: ModelCard) -> None:
    """An untrained network for the data of a student's card."""
    folder.mkdir()
    torch.manual_seed(1)
    model = build_network(
        Network(**network),
        classes=shape.classes,
        channels=shape.channels,
        image_size=shape.image_size,
    )
    save_model(folder, model, like.model_copy(update=network))


@pytest.fixture
def untrained_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AttributionParams]:
    """Makes a project of untrained networks and random images in the current folder."""

    def make(
        shape: Shape, student: dict[str, Any], teacher: dict[str, Any], **settings: Any
    ) -> AttributionParams:
        (tmp_path / "project").mkdir()
        monkeypatch.chdir(tmp_path / "project")
        folders = tmp_path / "student", tmp_path / "teacher"
        card = student_of(folders[0], shape, student)
        teacher_of(folders[1], shape, teacher, card)
        random = np.random.default_rng(0)
        size = (12, shape.image_size, shape.image_size, shape.channels)
        images = random.integers(0, 256, size).astype(np.uint8)
        labels = np.arange(12) % shape.classes
        return write_project(*folders, (images, labels), images[:8], **settings)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose student and teacher know their ten classes."""
    folder = tmp_path_factory.mktemp("trained")
    student, teacher = (student_folder(act, tmp_path_factory) for act in ("relu", "hard_swish"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_project(student, teacher, draw(120, seed=2), draw(64, seed=3)[0], images=40)
    return folder


@pytest.fixture
def project(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AttributionParams:
    """A copy of `trained` as the current folder."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return load(AttributionParams)
