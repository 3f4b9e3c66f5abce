"""The execution report of every backend against closed forms."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from pipeline.backends.base.executed import ExecutedLayer, execution_report, matrix_macs
from pipeline.backends.base.records import ExecutionReport, Partitions
from pipeline.backends.base.registry import backend, backend_names
from pipeline.backends.onnxruntime.inspect import inspect as inspect_onnx
from pipeline.backends.openvino import compile as openvino
from pipeline.backends.tensorrt.inspect import inspect as inspect_tensorrt
from pipeline.backends.tensorrt.run import Network
from pipeline.backends.tensorrt.spec import lab_module
from pipeline.backends.tflite.convert import convert
from pipeline.backends.tflite.inspect import inspect as inspect_tflite
from pipeline.backends.tflite.run import open_interpreter
from pipeline.export.onnx import export_onnx
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.records import ModelCard


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
    card = ModelCard(
        arch="", args={}, stem_stride="auto", stem_pool="auto", image_size=8, input_size=8,
        channels=3, classes=tuple("abcdefghij"), normalisation=student_normalisation(3),
        parameters=0, seed=0, epochs=0, best_epoch=0, val_top1=0.0, data_digest="", versions={},
    )  # fmt: skip
    export_onnx(model, card, opset=20, file=file)
    return model, file


def report_of(name: str, model: PixelsToLogits, file: Path, folder: Path) -> ExecutionReport:
    """What the backend's inspection reads from a float model."""
    if name == "onnxruntime":
        return inspect_onnx(file)
    if name == "tensorrt":
        trt = lab_module()
        network = Network(trt, file)
        return inspect_tensorrt(trt, network.network)
    if name == "openvino":
        openvino._save(openvino._convert(file), folder / "model.xml")
        return openvino.inspect(folder / "model.xml")
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    if name == "executorch":
        lower, its = (backend(name).module(module) for module in ("lower", "inspect"))
        report: ExecutionReport = its.inspect(lower.convert(model, pixels[:1]))
        return report
    if name == "coreml":
        its = {module: backend(name).module(module) for module in ("convert", "inspect", "mil")}
        package = folder / "model.mlpackage"
        its["convert"].write(its["convert"].program_of(model, (8, 8, 3), "fp32", "iOS17"), package)
        found: ExecutionReport = its["inspect"].inspect(its["mil"].Program(package))
        return found
    return inspect_tflite(open_interpreter(convert(model, pixels)))


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.parametrize("name", backend_names())
def test_macs_have_their_closed_form(
    odd: tuple[PixelsToLogits, Path], name: str, tmp_path: Path
) -> None:
    execution = report_of(name, *odd, tmp_path)
    assert execution.macs == sum(ODD)
    assert [layer.macs for layer in execution.in_float] == sorted(ODD, reverse=True)


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.parametrize("name", backend_names())
def test_every_float_layer_has_a_name_of_its_own(
    odd: tuple[PixelsToLogits, Path], name: str, tmp_path: Path
) -> None:
    names = [layer.name for layer in report_of(name, *odd, tmp_path).in_float]
    assert all(names) and len(set(names)) == len(ODD)


def test_onnx_names_are_those_of_the_file(odd: tuple[PixelsToLogits, Path], tmp_path: Path) -> None:
    """Whatever a runtime calls a layer after fusing it, the quantizer knows it by these."""
    nodes = {node.name for node in onnx.load(odd[1]).graph.node}
    for name in ("onnxruntime", "tensorrt"):
        assert {layer.name for layer in report_of(name, *odd, tmp_path).in_float} <= nodes


@pytest.mark.parametrize("left", [(3, 5, 7), (3, 7, 5)])
def test_a_transposed_left_operand_has_the_same_macs(left: tuple[int, ...]) -> None:
    assert matrix_macs(left, (3, 5, 11)) == 3 * 5 * 7 * 11


def test_a_report_weighs_layers_by_their_macs() -> None:
    layers = [
        ExecutedLayer("small", 10, int8=False, per_channel=None),
        ExecutedLayer("big", 960, int8=True, per_channel=True),
        ExecutedLayer("medium", 30, int8=False, per_channel=None),
    ]
    parts = Partitions(delegated=2, builtin={"CAST uint8": 1})
    execution = execution_report(layers, "uint8", "float32", parts)
    assert (execution.macs, execution.int8_mac_share, execution.per_channel) == (1000, 0.96, True)
    assert [layer.name for layer in execution.in_float] == ["medium", "small"]
    assert execution.partitions == parts
    tensorwise = ExecutedLayer("tensorwise", 5, int8=True, per_channel=False)
    assert execution_report([*layers, tensorwise], "uint8", "float32").per_channel is False


def test_a_network_without_conv_and_linear_layers_is_not_int8() -> None:
    assert execution_report([], "uint8", "float32").int8_mac_share == 0
