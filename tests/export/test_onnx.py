"""One ONNX per student: raw pixels in, logits out, any batch, no trace of the machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pipeline.export.onnx import export_onnx
from pipeline.networks.build import build_network
from pipeline.networks.inference import predict, set_up_torch
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.records import ModelCard

CLASSES = ("ankle boot", "bag", "coat")


def exported(folder: Path, arch: str, channels: int, size: int) -> tuple[PixelsToLogits, Path]:
    set_up_torch(1)
    network = build_network(Network(arch=arch), classes=3, channels=channels, image_size=size)
    model = PixelsToLogits(network, student_normalisation(channels)).eval()
    card = ModelCard(
        arch=arch, args={}, stem_stride="auto", stem_pool="auto", image_size=size, input_size=size,
        channels=channels, classes=CLASSES, normalisation=student_normalisation(channels),
        parameters=0, seed=1, epochs=0, best_epoch=0, val_top1=0.0, data_digest="", versions={},
    )  # fmt: skip
    export_onnx(model, card, 20, folder / "model.onnx")
    return model, folder / "model.onnx"


@pytest.mark.parametrize(
    ("arch", "channels", "size"),
    [("test_efficientnet", 1, 28), ("mobilenetv3_small_050", 3, 96)],
)
def test_onnx_runtime_answers_as_torch_does_for_any_batch(
    tmp_path: Path, arch: str, channels: int, size: int
) -> None:
    model, file = exported(tmp_path, arch, channels, size)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    assert (entry.name, entry.type, entry.shape[1:]) == (
        "image", "tensor(uint8)", [size, size, channels],
    )  # fmt: skip
    for n in (1, 7):
        pixels = np.random.default_rng(n).integers(0, 256, (n, size, size, channels), np.uint8)
        (logits,) = session.run(["logits"], {"image": pixels})
        np.testing.assert_allclose(logits, predict(model, pixels).numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("once"), "test_efficientnet", 1, 28)[1]


def test_the_file_carries_its_contract_and_no_trace_of_the_machine(file: Path) -> None:
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["classes"]) == list(CLASSES)
    assert properties["input"].startswith("image: uint8 [N, H, W, C]")
    for trace in (str(Path(__file__).parents[2]).encode(), b"site-packages", b"stack_trace"):
        assert trace not in file.read_bytes()


def test_the_same_student_gives_the_same_bytes(file: Path, tmp_path: Path) -> None:
    again = exported(tmp_path, "test_efficientnet", 1, 28)[1]
    assert again.read_bytes() == file.read_bytes()


def test_the_normalisation_is_exact_on_every_pixel_value() -> None:
    """(x - 128) / 64 is a multiple of 1/64 in [-2, 127/64]: an int8 input at scale 1/64."""
    model = PixelsToLogits(torch.nn.Identity(), student_normalisation(1))
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    scaled = model(pixels).flatten() * 64
    assert torch.equal(scaled, torch.arange(-128.0, 128.0))
