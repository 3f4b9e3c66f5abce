"""What every backend tells about its artifact's arithmetic, against torch and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pipeline.backends import (
    onnxruntime,
    openvino,
    tensorrt,
    tflite,
    tflite_convert,
    tflite_inspect,
)
from pipeline.backends.base import Job, Product, matrix_macs, prove
from pipeline.backends.registry import NAMES, backend
from pipeline.contracts import Manifest, ModelCard, Partitions, Proof
from pipeline.export.onnx import export_onnx
from pipeline.networks.build import (
    PixelsToLogits,
    build_network,
    load_pixels_to_logits,
    save_model,
    student_normalisation,
)
from pipeline.params import load_params

Count = Callable[[nn.Module, tuple[int, ...]], list[int]]
ROOT = Path(__file__).parents[2]
FLOAT = {"tensorrt": "fp16"}
SIDE = 28


def card_of(channels: int, side: int, **known: object) -> ModelCard:
    values = {
        "arch": "", "args": {}, "stem_stride": "auto", "stem_pool": "auto", "image_size": side,
        "input_size": side, "channels": channels, "classes": tuple("abcdefghij"),
        "normalisation": student_normalisation(channels), "parameters": 0, "seed": 0, "epochs": 0,
        "best_epoch": 0, "val_top1": 0.0, "data_digest": "", "versions": {},
    }  # fmt: skip
    return ModelCard.model_validate(values | known)


@pytest.fixture(scope="module", params=["mnv4_small_050", "mnv3_small_050"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A student of params.yaml on grey images of 28 x 28, as it begins training."""
    torch.manual_seed(0)
    network = load_params(ROOT / "params.yaml").students.zoo[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    card = card_of(1, SIDE, arch=network.arch, args=network.args)
    save_model(folder, build_network(network, classes=10, channels=1, image_size=SIDE), card)
    export_onnx(*load_pixels_to_logits(folder), opset=20, file=folder / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (16, SIDE, SIDE, 1), np.uint8)
    manifest = Manifest(
        source="", licence="", classes=card.classes, image_size=SIDE, channels=1, counts={},
        digests={}, calibration_digest="", mean=(0.0,), std=(1.0,), rejected=(),
    )  # fmt: skip
    return Job(request.param, "", folder / "model.onnx", folder, images, manifest)


@pytest.mark.parametrize("name", NAMES)
def test_a_real_student_has_the_macs_that_torch_counts(
    real: Job, name: str, torch_macs: Count, tmp_path: Path
) -> None:
    job = Job(**{**vars(real), "precision": FLOAT.get(name, "fp32")})
    proof = backend(name).compile(job, tmp_path).proof
    expected = torch_macs(load_pixels_to_logits(real.student_folder)[0], (SIDE, SIDE, 1))
    assert proof.macs == sum(expected)
    assert sorted(p.macs for p in proof.float_products) == sorted(expected)
    assert (proof.int8_mac_share, proof.per_channel) == (0, None)
    assert (proof.input_type, proof.output_type) == ("uint8", "float32")


class Odd(nn.Module):
    """Channels that fill no vector register, a grouped convolution and an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.grouped = nn.Conv2d(12, 20, 1, groups=4)
        self.head = nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(torch.relu(self.depthwise(torch.relu(self.stem(x)))))
        tokens = x.flatten(2).transpose(1, 2)
        mixed = torch.softmax(tokens @ tokens.transpose(1, 2), dim=-1) @ tokens
        return self.head(mixed.mean(1))


# 8 x 8 pixels become 4 x 4 positions, thus 16 tokens of 20 channels
ODD = [12 * 16 * 3 * 9, 12 * 16 * 9, 20 * 16 * 3, 16 * 16 * 20, 16 * 20 * 16, 10 * 20]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[PixelsToLogits, Path]:
    torch.manual_seed(0)
    model = PixelsToLogits(Odd(), student_normalisation(3)).eval()
    file = tmp_path_factory.mktemp("odd") / "model.onnx"
    export_onnx(model, card_of(3, 8), opset=20, file=file)
    return model, file


def proof_of(name: str, model: PixelsToLogits, file: Path, folder: Path) -> Proof:
    """What the backend's inspection says of a float model."""
    if name == "onnxruntime":
        return onnxruntime._inspect(file)
    if name == "tensorrt":
        return tensorrt.Network(file).proof()
    if name == "openvino":
        openvino._save(openvino._convert(file), folder / "model.xml")
        return openvino._inspect(folder / "model.xml")
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    (folder / "model.tflite").write_bytes(tflite_convert.convert(model, pixels))
    return tflite_inspect.inspect(tflite._interpreter(folder / "model.tflite", threads=1))


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.parametrize("name", NAMES)
def test_macs_have_their_closed_form(
    odd: tuple[PixelsToLogits, Path], name: str, tmp_path: Path
) -> None:
    proof = proof_of(name, *odd, tmp_path)
    assert proof.macs == sum(ODD)
    assert [p.macs for p in proof.float_products] == sorted(ODD, reverse=True)


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_every_float_product_has_a_name_of_its_own(
    odd: tuple[PixelsToLogits, Path], tmp_path: Path
) -> None:
    for name in NAMES:
        names = [p.name for p in proof_of(name, *odd, tmp_path).float_products]
        assert all(names) and len(set(names)) == len(ODD)


def test_onnx_names_are_those_of_the_file(odd: tuple[PixelsToLogits, Path], tmp_path: Path) -> None:
    """Whatever a runtime calls a layer after fusing it, the quantizer knows it by these."""
    nodes = {node.name for node in onnx.load(odd[1]).graph.node}
    for name in ("onnxruntime", "tensorrt"):
        assert {p.name for p in proof_of(name, *odd, tmp_path).float_products} <= nodes


@pytest.mark.parametrize("left", [(3, 5, 7), (3, 7, 5)])
def test_a_transposed_left_factor_has_the_same_macs(left: tuple[int, ...]) -> None:
    assert matrix_macs(left, (3, 5, 11)) == 3 * 5 * 7 * 11


def test_a_proof_weighs_products_by_their_macs() -> None:
    products = [
        Product("small", 10, int8=False, per_channel=None),
        Product("big", 960, int8=True, per_channel=True),
        Product("medium", 30, int8=False, per_channel=None),
    ]
    parts = Partitions(delegated=2, builtin={"CAST uint8": 1})
    proof = prove(products, "uint8", "float32", parts)
    assert (proof.macs, proof.int8_mac_share, proof.per_channel) == (1000, 0.96, True)
    assert [p.name for p in proof.float_products] == ["medium", "small"]
    assert proof.partitions == parts
    tensorwise = Product("tensorwise", 5, int8=True, per_channel=False)
    assert prove([*products, tensorwise], "uint8", "float32").per_channel is False


def test_a_network_without_products_is_not_int8() -> None:
    assert prove([], "uint8", "float32").int8_mac_share == 0
