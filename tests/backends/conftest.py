"""The small student of `tests.students`, and a job for any backend to compile it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.job import Compiled, Job
from pipeline.backends.base.registry import backend
from pipeline.data.records import Manifest
from pipeline.networks.records import Layers
from pipeline.networks.weights import load_pixels_to_logits
from tests.students import CHANNELS, CLASSES, SIZE, draw, student_folder


def count_macs(model: torch.nn.Module, image: tuple[int, ...]) -> list[int]:
    """Multiply-accumulates of every layer that one image [H, W, C] of bytes meets: torch's view.

    Nothing of it comes from a runtime or an exported file.
    """
    counts: list[int] = []

    def count(module: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        if isinstance(module, torch.nn.Conv2d):
            inner = module.in_channels // module.groups * math.prod(module.kernel_size)
        else:
            assert isinstance(module, torch.nn.Linear)
            inner = module.in_features
        counts.append(output.numel() * inner)

    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model(torch.zeros(1, *image, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    return counts


@pytest.fixture(scope="session")
def macs(student: Path) -> int:
    """All multiply-accumulates of `student` for one image."""
    return sum(count_macs(load_pixels_to_logits(student)[0], (SIZE, SIZE, CHANNELS)))


@pytest.fixture(scope="session")
def test_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return draw(300, seed=2)


@pytest.fixture(scope="session", params=["relu", "hard_swish"])
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like models/students/S/ and models/onnx/S/ in one folder."""
    return student_folder(request.param, tmp_path_factory)


@pytest.fixture(scope="session")
def torch_logits(
    student: Path, test_images: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> NDArray[np.float32]:
    model, _ = load_pixels_to_logits(student)
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.from_numpy(test_images[0])).numpy()
    return logits


@pytest.fixture(scope="session")
def job(student: Path) -> Callable[..., Job]:
    """Makes a job of `student` for a precision, and for a backend where that matters."""
    images, labels = draw(64, seed=3)
    manifest = Manifest(
        source="drawn", licence="none", classes=CLASSES, image_size=SIZE,
        stored_size=SIZE, channels=CHANNELS,
        counts={"train": dict(zip(CLASSES, np.bincount(labels).tolist(), strict=True))},
        digests={"test_images.npy": "1" * 64, "test_labels.npy": "2" * 64},
        calibration_digest="", mean=(0.0,) * 3, std=(1.0,) * 3, rejected=(),
    )  # fmt: skip
    layers = Layers.read(student / "layers.json").layers

    def make(precision: str, backend: str = "onnxruntime") -> Job:
        artifact = Artifact(student.name, backend, precision)
        return Job(artifact, student / "model.onnx", student, images, manifest, layers)

    return make


@pytest.fixture(scope="session")
def made(
    job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Path, Compiled]]:
    """Compiles `student` for a backend at a precision, once: the file that is opened, and more."""

    @cache
    def make(name: str, precision: str) -> tuple[Path, Compiled]:
        folder = tmp_path_factory.mktemp(f"{name}-{precision}")
        its = backend(name)
        settings = its.settings(precisions=its.precisions)
        compiled = its.compiler(settings).compile(job(precision, name), folder)
        return folder / compiled.model_file, compiled

    return make
