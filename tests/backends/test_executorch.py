"""What is particular to ExecuTorch's artifacts, through ExecuTorch itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.backends.base.job import Compiled, Job
from pipeline.backends.base.records import Partitions
from pipeline.core.errors import PipelineError
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.weights import load_pixels_to_logits

pytest.importorskip("executorch", reason="no ExecuTorch: pip install '.[executorch]'")

from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.exir import to_edge_transform_and_lower
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from pipeline.backends.executorch.compile import Compiler
from pipeline.backends.executorch.inspect import in_float, inspect, layer_outputs
from pipeline.backends.executorch.lower import convert, quantized
from pipeline.backends.executorch.program import Graph, Program
from pipeline.backends.executorch.reader import trace
from pipeline.backends.executorch.run import load
from pipeline.backends.executorch.spec import Settings
from pipeline.cli.inspect.report import report_on

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]
Made = Callable[[str, str], tuple[Path, Compiled]]
CAST_ALONE = Partitions(delegated=1, builtin={"_to_dim_order_copy uint8": 1})


def only_graph(content: bytes) -> Graph:
    (graph,) = Program(content).graphs
    return graph


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_xnnpack_runs_everything_but_the_cast_of_the_pixels(made: Made, precision: str) -> None:
    assert made("executorch", precision)[1].execution.partitions == CAST_ALONE


def test_pixels_are_quantized_exactly_though_calibration_lacks_the_darkest(made: Made) -> None:
    graph = only_graph(made("executorch", "int8")[0].read_bytes())
    first = next(node for kind, node in graph.nodes() if kind == "Convert")
    value = graph.values[first.outputId]
    assert (value.dtype, value.scale, value.zero_point) == ("qint8", 1 / 64, 0)


def test_a_program_taken_apart_and_written_again_gives_the_same_logits(
    made: Made, test_images: Images
) -> None:
    content, images = made("executorch", "int8")[0].read_bytes(), test_images[0][:8]
    again = Program(content).content()
    np.testing.assert_array_equal(load(again, 1)(images), load(content, 1)(images))


def test_any_memory_layout_of_pixels_is_taken(made: Made, test_images: Images) -> None:
    run, images = load(str(made("executorch", "int8")[0]), 1), test_images[0][:2]
    other = np.ascontiguousarray(images.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(run(other), run(images))


def test_programs_outlive_a_change_of_threads(made: Made, test_images: Images) -> None:
    """All share one pool of threads, which another number of them replaces."""
    file, images = str(made("executorch", "int8")[0]), test_images[0][:4]
    first = load(file, 1)
    expected = first(images)
    for threads in (2, 1):
        another = load(file, threads)
        np.testing.assert_array_equal(another(images), expected)
        np.testing.assert_array_equal(first(images), expected)


def test_a_clamp_behind_a_layer_bounds_its_range(job: Callable[..., Job]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        conv.weight *= 30  # far beyond 6
    network = nn.Sequential(conv, nn.ReLU6(inplace=True), nn.Flatten(), nn.Linear(8 * 26 * 26, 3))
    plain = replace(job("int8", "executorch"), rounded=True)  # ranges span all images
    model = PixelsToLogits(quantized(network.eval(), plain), student_normalisation(3))
    content = convert(model, torch.tensor(plain.calibration[:1]))
    graph = only_graph(content)
    node = next(node for kind, node in graph.nodes() if kind == "Conv2d")
    value = graph.values[node.outputId]
    assert value.scale == pytest.approx(6 / 255, rel=1e-5) and value.zero_point == -128
    assert inspect(content).int8_mac_share == 1


def test_a_hard_sigmoid_adds_no_cast_of_a_constant() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Hardsigmoid(inplace=True), nn.Hardswish(True))
    model = PixelsToLogits(network, student_normalisation(1)).eval()
    pixels = torch.randint(0, 256, (1, 9, 9, 1), dtype=torch.uint8)
    content = convert(model, pixels)
    assert inspect(content).partitions == CAST_ALONE
    with torch.no_grad():
        expected = model(pixels).numpy()
    np.testing.assert_allclose(load(content, 1)(pixels.numpy()), expected, atol=1e-5)


class Signs(nn.Module):
    """An operator that XNNPACK has not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sign(x) * x


def test_layers_are_read_from_every_part_of_a_program() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(12, 7), nn.Linear(7, 5)
    network = nn.Sequential(nn.Flatten(), first, Signs(), nn.Linear(7, 7), Signs(), last)
    model = PixelsToLogits(network, student_normalisation(3)).eval()
    images = torch.randint(0, 256, (6, 2, 2, 3), dtype=torch.uint8)
    content = convert(model, images[:1])
    partitions = inspect(content).partitions
    assert partitions and partitions.delegated > 1
    found = layer_outputs(content, images.numpy())
    with torch.no_grad():
        expected = model(images).numpy()
    np.testing.assert_allclose(found["2"], expected, atol=1e-5)


@pytest.mark.parametrize(("size", "parts"), [(13, 1), (14, 2)])
def test_pools_that_stay_within_the_image_do_not_cut_the_program(size: int, parts: int) -> None:
    """With `ceil_mode` the last of them would reach over the border of maps of odd sizes."""
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    network = nn.Sequential(nn.Conv2d(3, 4, 2), pool, nn.Conv2d(4, 4, 1))
    model = PixelsToLogits(network, student_normalisation(3)).eval()
    content = convert(model, torch.zeros(1, size, size, 3, dtype=torch.uint8))
    partitions = inspect(content).partitions
    assert partitions and partitions.delegated == parts


def test_a_program_that_is_lowered_but_does_not_run_is_refused(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 10 * 10, 3))
    model = PixelsToLogits(network, student_normalisation(3)).eval()
    small = convert(model, torch.zeros(1, 12, 12, 3, dtype=torch.uint8))
    monkeypatch.setattr("pipeline.backends.executorch.compile._lowered", lambda _: small)
    with pytest.raises(PipelineError, match="ExecuTorch refuses the network: method->"):
        Compiler(Settings(precisions=("fp32",))).compile(job("fp32", "executorch"), tmp_path)


def test_a_program_that_takes_no_pixels_is_refused(made: Made, tmp_path: Path) -> None:
    program = Program(made("executorch", "int8")[0].read_bytes())
    program.feed_normalised()
    file = tmp_path / "model.pte"
    file.write_bytes(program.content())
    with pytest.raises(PipelineError, match="reads its pixels in an unknown way"):
        Compiler(Settings(precisions=("int8",))).float_fed(file)


def test_operators_that_stay_in_float_are_told(made: Made, job: Callable[..., Job]) -> None:
    model, _ = load_pixels_to_logits(job("int8").weights)
    swishes = sum(isinstance(module, nn.Hardswish) for module in model.modules())
    file, compiled = made("executorch", "int8")
    found = in_float(file.read_bytes())
    assert found.get("Hardswish", 0) == swishes
    told = "".join(compiled.notes)
    assert all(f"{count} {kind}" in told for kind, count in found.items())
    assert bool(told) == bool(found)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_inspect_finds_what_the_artifacts_record_says(made: Made, precision: str) -> None:
    file, compiled = made("executorch", precision)
    found = report_on(file, {})
    assert found.macs == compiled.execution.macs
    assert found.int8_executed == found.int8_written == compiled.execution.int8_mac_share
    assert found.weights == ("per channel" if precision == "int8" else None)
    assert [port.shape for port in found.anatomy.inputs] == [(1, 28, 28, 3)]


def test_a_trace_ends_in_the_logits(made: Made, test_images: Images) -> None:
    file, images = made("executorch", "int8")[0], test_images[0][:4]
    found = trace(file, {"input_0": images})
    np.testing.assert_array_equal(found.outputs["output_0"], load(str(file), 1)(images))
    assert len(found.layers) == len(report_on(file, {}).layers)


def lowered(network: nn.Module, example: torch.Tensor, *, delegate: bool) -> bytes:
    """By ExecuTorch's own defaults, as anybody lowers a network."""
    parts = [XnnpackPartitioner()] if delegate else []
    edge = to_edge_transform_and_lower(torch.export.export(network, (example,)), partitioner=parts)
    return bytes(edge.to_executorch().buffer)


def test_programs_of_others_are_told_apart(tmp_path: Path) -> None:
    network, example = nn.Sequential(nn.Linear(32, 8), nn.ReLU()).eval(), torch.randn(2, 32)
    graph = torch.export.export(network, (example,)).module()
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    prepared = prepare_pt2e(graph, XNNPACKQuantizer().set_global(config))
    prepared(example)
    anew = convert_pt2e(prepared)
    for name, content, precision, others in (
        ("plain", lowered(network, example, delegate=True), "float32", False),
        ("portable", lowered(network, example, delegate=False), "float32", True),
        ("dynamic", lowered(anew, example, delegate=True), "dynamic int8", False),
    ):
        file = tmp_path / f"{name}.pte"
        file.write_bytes(content)
        found = report_on(file, {})
        assert found.shares(executed=True) == {precision: 1.0}, name
        assert found.macs == 2 * 32 * 8 and found.int8_executed == 0
        assert found.anatomy.parameters >= 32 * 8
        assert (found.anatomy.cut or "").startswith("XnnpackBackend takes 0") == others


@pytest.mark.parametrize("size", [0, 20, 3000])
def test_a_truncated_program_is_told(made: Made, tmp_path: Path, size: int) -> None:
    file = tmp_path / "cut.pte"
    file.write_bytes(made("executorch", "fp32")[0].read_bytes()[:size])
    with pytest.raises(PipelineError, match="is damaged"):
        report_on(file, {})
