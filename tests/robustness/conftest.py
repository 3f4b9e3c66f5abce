"""Projects in which a student is compiled, with small networks of any size and classes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.backends.base.artifact import Artifact
from pipeline.compile.params import CompileParams
from pipeline.compile.student import compile_student
from pipeline.core.files import sha256
from pipeline.core.params import load
from pipeline.data.records import CALIBRATION, MANIFEST, PACKED, Manifest
from pipeline.export.onnx import export_student
from pipeline.networks.build import build_network
from pipeline.networks.params import Network
from pipeline.networks.pixels import student_normalisation
from pipeline.networks.records import STUDENTS, TEACHERS, ModelCard
from pipeline.networks.weights import save_model
from pipeline.robustness.params import RobustnessParams
from tests import students as drawn
from tests.sharing import made_once

ROOT = Path(__file__).parents[2]
STUDENT, TEACHER = "tiny", "resnet"
IMAGES = 60

Make = Callable[..., RobustnessParams]


def set_params(**groups: object) -> RobustnessParams:
    """Change groups of params.yaml and load it."""
    file = Path("params.yaml")
    tree = yaml.safe_load(file.read_text())
    for group, values in groups.items():
        tree[group] = tree[group] | values if isinstance(values, dict) else values
    file.write_text(yaml.safe_dump(tree))
    return load(RobustnessParams)


@pytest.fixture
def project(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Make:
    """Makes the current folder one in which `compile` has been run for the student `tiny`.

    The student is trained for the default arguments, else untrained; the teacher is untrained.
    Equal ones are made once.
    """
    monkeypatch.chdir(tmp_path)

    def make(
        size: int = drawn.SIZE, channels: int = drawn.CHANNELS, classes: int = 10,
        **precisions: list[str],
    ) -> RobustnessParams:  # fmt: skip
        asked = precisions or {"onnxruntime": ["fp32"], "tensorrt": ["fp16"]}
        name = "-".join(["robust", str((size, channels, classes)), *map(str, asked.items())])

        def fill(folder: Path) -> None:
            monkeypatch.chdir(folder)
            _make(size, channels, classes, asked)

        made = made_once(tmp_path_factory, hashlib.sha256(name.encode()).hexdigest(), fill)
        monkeypatch.chdir(tmp_path)
        shutil.copytree(made, tmp_path, dirs_exist_ok=True)
        return load(RobustnessParams)

    return make


def _make(size: int, channels: int, classes: int, precisions: dict[str, list[str]]) -> None:
    learnt = (size, channels, classes) == (drawn.SIZE, drawn.CHANNELS, len(drawn.CLASSES))
    images, labels = drawn.draw(IMAGES, seed=6)
    if not learnt:
        rng = np.random.default_rng(5)
        images = rng.integers(0, 256, (IMAGES, size, size, channels), np.uint8)
        labels = np.arange(IMAGES) % classes
    names = drawn.CLASSES[:classes]
    _write_data(images, labels, names)
    digest = Manifest.read(PACKED / MANIFEST).digests["train_images.npy"]
    network = Network(arch="test_efficientnet", args={"act_layer": "relu"}, stem_stride=2)
    for seed, folder in enumerate((STUDENTS / STUDENT, TEACHERS / TEACHER)):
        torch.manual_seed(seed)
        model = build_network(network, classes=classes, channels=channels, image_size=size)
        card = ModelCard(
            arch=network.arch, args=network.args, stem_stride=2, stem_pool="auto",
            image_size=size, input_size=size, channels=channels, classes=names,
            normalisation=student_normalisation(channels), parameters=0, seed=0, epochs=1,
            best_epoch=1, val_top1=0.5, data_digest=digest, versions={},
        )  # fmt: skip
        folder.mkdir(parents=True)
        trained = learnt and folder.parent == STUDENTS
        save_model(folder, drawn.train("relu")[0] if trained else model, card)
    _write_params(precisions)
    export_student(STUDENT, 20)
    for name in precisions:
        list(compile_student(load(CompileParams), name, STUDENT))


def _write_data(images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> None:
    PACKED.mkdir(parents=True)
    CALIBRATION.mkdir(parents=True)
    for split in ("train", "val", "test"):
        np.save(PACKED / f"{split}_images.npy", images)
        np.save(PACKED / f"{split}_labels.npy", labels.astype(np.int64))
    np.save(CALIBRATION / "images.npy", images[:16])
    counts = {name: int((labels == i).sum()) for i, name in enumerate(names)}
    Manifest(
        source="drawn", licence="none", classes=names, image_size=images.shape[1],
        stored_size=images.shape[1], channels=images.shape[3],
        counts={"train": counts, "val": counts, "test": counts},
        digests={file.name: sha256(file) for file in sorted(PACKED.glob("*.npy"))},
        calibration_digest=sha256(CALIBRATION / "images.npy"),
        mean=(128.0,) * images.shape[3], std=(64.0,) * images.shape[3], rejected=(),
    ).write(PACKED / MANIFEST)  # fmt: skip


def _write_params(precisions: dict[str, list[str]]) -> None:
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["students"] = {"enabled": [STUDENT], "zoo": {STUDENT: {"arch": "test_efficientnet"}}}
    tree["backends"] = {"enabled": list(precisions)} | {
        name: tree["backends"][name] | {"precisions": asked} for name, asked in precisions.items()
    }
    tree["robustness"] |= {"enabled": [STUDENT], "images": 40, "strengths": [1, 5]}
    tree["robustness"]["attack"] |= {"steps": 5}
    Path("params.yaml").write_text(yaml.safe_dump(tree))


def artifact(backend: str, precision: str) -> Artifact:
    """Of the student `tiny`."""
    return Artifact(STUDENT, backend, precision)
