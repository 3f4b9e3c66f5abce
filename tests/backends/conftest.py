"""A small real student that knows its ten classes, and a job for any backend to compile it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.backends.base import Job
from pipeline.contracts import Manifest, ModelCard
from pipeline.export.onnx import export_onnx
from pipeline.networks.build import (
    PixelsToLogits,
    build_network,
    load_pixels_to_logits,
    save_model,
    student_normalisation,
)
from pipeline.params import Network

SIZE, CHANNELS, CLASSES = 28, 3, tuple("abcdefghij")


def draw(n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 [n, 28, 28, 3] of noise with a patch whose place and colour is the class.

    No pixel is below 8.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(CLASSES), size=n)
    images = rng.integers(8, 156, (n, SIZE, SIZE, CHANNELS))
    for image, label in zip(images, labels, strict=True):
        row, column = 5 * (label % 5) + rng.integers(3), 12 * (label // 5) + rng.integers(6)
        image[row : row + 5, column : column + 5, label % 3] += 100
    return images.astype(np.uint8), labels


def train(act: str) -> tuple[torch.nn.Module, ModelCard]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them cost more than they give at this size
    network = Network(arch="test_efficientnet", args={"act_layer": act}, stem_stride=2)
    model = build_network(network, classes=10, channels=CHANNELS, image_size=SIZE)
    card = ModelCard(
        arch=network.arch, args=network.args, stem_stride=2, stem_pool="auto",
        image_size=SIZE, input_size=SIZE, channels=CHANNELS, classes=CLASSES,
        normalisation=student_normalisation(CHANNELS),
        parameters=0, seed=0, epochs=1, best_epoch=1, val_top1=1.0, data_digest="", versions={},
    )  # fmt: skip
    images, labels = map(torch.from_numpy, draw(32 * 80, seed=1))
    pixels_to_logits = PixelsToLogits(model, card.normalisation).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in torch.arange(len(images)).split(32):
        loss = torch.nn.functional.cross_entropy(pixels_to_logits(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return model, card


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
def torch_macs() -> Callable[[torch.nn.Module, tuple[int, ...]], list[int]]:
    return count_macs


@pytest.fixture(scope="session")
def macs(student: Path) -> int:
    """All multiply-accumulates of `student` for one image."""
    return sum(count_macs(load_pixels_to_logits(student)[0], (SIZE, SIZE, CHANNELS)))


@pytest.fixture(scope="session")
def test_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return draw(300, seed=2)


@pytest.fixture(scope="session", params=["relu", "hard_swish"])
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like models/students/S/, with `model.onnx` beside the weights."""
    folder = tmp_path_factory.mktemp(request.param)
    save_model(folder, *train(request.param))
    export_onnx(*load_pixels_to_logits(folder), opset=20, file=folder / "model.onnx")
    return folder


@pytest.fixture(scope="session")
def torch_logits(
    student: Path, test_images: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> NDArray[np.float32]:
    model, _ = load_pixels_to_logits(student)
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.from_numpy(test_images[0])).numpy()
    return logits


@pytest.fixture(scope="session")
def job(student: Path) -> Callable[[str], Job]:
    """Makes a job of `student` for a precision."""
    images, labels = draw(64, seed=3)
    manifest = Manifest(
        source="drawn", licence="none", classes=CLASSES, image_size=SIZE, channels=CHANNELS,
        counts={"train": dict(zip(CLASSES, np.bincount(labels).tolist(), strict=True))},
        digests={"test_images.npy": "1" * 64, "test_labels.npy": "2" * 64},
        calibration_digest="", mean=(0.0,) * 3, std=(1.0,) * 3, rejected=(),
    )  # fmt: skip

    def make(precision: str) -> Job:
        return Job("tiny", precision, student / "model.onnx", student, images, manifest)

    return make
