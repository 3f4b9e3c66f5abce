"""A small real student that knows its ten classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.export.onnx import export_onnx
from pipeline.networks.build import build_network
from pipeline.networks.layers import list_layers
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.records import Layers, ModelCard
from pipeline.networks.weights import load_pixels_to_logits, save_model
from tests.sharing import made_once

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


def student_folder(act: str, factory: pytest.TempPathFactory) -> Path:
    """Like models/students/S/ and models/onnx/S/ in one folder."""

    def make(folder: Path) -> None:
        save_model(folder, *train(act))
        model, card = load_pixels_to_logits(folder)
        export_onnx(model, card, opset=20, file=folder / "model.onnx")
        layers = list_layers(model, SIZE, CHANNELS)
        Layers(layers=layers).write(folder / "layers.json")

    return made_once(factory, act, make)
