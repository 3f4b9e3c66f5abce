from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from pipeline.accuracy.metrics import agreement, top1
from pipeline.backends.base.job import Compiled, Job
from pipeline.backends.base.qdq import quantize
from pipeline.backends.onnxruntime.spec import OnnxRuntime
from pipeline.core.errors import PipelineError
from pipeline.export.session import open_session

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]
Jobs = Callable[[str], Job]


@pytest.fixture(scope="module")
def int8(job: Jobs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Compiled, Path]:
    folder = tmp_path_factory.mktemp("int8")
    compiled = OnnxRuntime().compile(job("int8"), folder)
    return compiled, folder / compiled.model_file


def test_fp32_is_the_exported_file_and_gives_the_logits_of_torch(
    job: Jobs, tmp_path: Path, test_images: Split, torch_logits: NDArray[np.float32], macs: int
) -> None:
    compiled = OnnxRuntime().compile(job("fp32"), tmp_path)
    assert (tmp_path / compiled.model_file).read_bytes() == job("fp32").onnx.read_bytes()
    assert (compiled.execution.macs, compiled.execution.int8_mac_share) == (macs, 0)
    logits = OnnxRuntime().load(tmp_path / compiled.model_file, 1)(test_images[0])
    np.testing.assert_allclose(logits, torch_logits, atol=1e-3)


def test_int8_executes_every_convolution_and_product_in_integers(
    int8: tuple[Compiled, Path], macs: int
) -> None:
    execution = int8[0].execution
    assert (execution.macs, execution.in_float, execution.int8_mac_share) == (macs, (), 1)
    assert execution.per_channel and execution.partitions is None
    assert (execution.input_type, execution.output_type) == ("uint8", "float32")


def with_float_constants(file: Path, kind: str, place: int, result: Path) -> onnx.NodeProto:
    """Write `file` with float weights and bias for its `place`-th node of `kind`; that node."""
    model = onnx.load(file)
    node = [node for node in model.graph.node if node.op_type == kind][place]
    makers = {maker.output[0]: maker for maker in model.graph.node}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for i in (1, 2):
        integers, scales = (values[name] for name in makers[node.input[i]].input[:2])
        floats = integers * scales.reshape(-1, *[1] * (integers.ndim - 1))
        node.input[i] = f"float_{i}"
        model.graph.initializer.append(
            numpy_helper.from_array(floats.astype(np.float32), f"float_{i}")
        )
    onnx.save(model, result)
    return node


def test_a_product_in_float_is_named_as_the_exported_file_names_it(
    int8: tuple[Compiled, Path], job: Jobs, macs: int, tmp_path: Path
) -> None:
    head = with_float_constants(int8[1], "Gemm", 0, tmp_path / "mixed.onnx")
    assert head.name in {node.name for node in onnx.load(job("fp32").onnx).graph.node}
    execution = _inspect(tmp_path / "mixed.onnx")
    (product,) = execution.in_float
    assert product.name == head.name
    assert 0 < product.macs == round((1 - execution.int8_mac_share) * macs)


def test_a_float_convolution_between_int8_ones_stays_float(
    int8: tuple[Compiled, Path], tmp_path: Path
) -> None:
    """Unless it is told not to, the runtime rounds it per tensor when it opens the file."""
    with_float_constants(int8[1], "Conv", 1, tmp_path / "mixed.onnx")
    execution = _inspect(tmp_path / "mixed.onnx")
    assert len(execution.in_float) == 1 and execution.per_channel


def test_int8_keeps_the_accuracy(
    int8: tuple[Compiled, Path], test_images: Split, torch_logits: NDArray[np.float32]
) -> None:
    images, labels = test_images
    logits = OnnxRuntime().load(int8[1], 1)(images)
    assert logits.dtype == np.float32
    assert agreement(logits, torch_logits) > 0.97
    assert top1(logits, labels) > top1(torch_logits, labels) - 0.02


def test_an_int8_logit_is_finer_than_8_bits(
    int8: tuple[Compiled, Path], test_images: Split
) -> None:
    assert len(np.unique(open_session(int8[1], 1)(test_images[0]))) > 256


def test_any_batch_gives_the_same_logits(int8: tuple[Compiled, Path], test_images: Split) -> None:
    run, images = OnnxRuntime().load(int8[1], 2), test_images[0][:5]
    one_by_one = np.concatenate([run(image[None]) for image in images])
    np.testing.assert_allclose(run(images), one_by_one, atol=1e-4)


def test_pixels_are_the_int8_input(
    int8: tuple[Compiled, Path], job: Jobs, test_images: Split, tmp_path: Path
) -> None:
    """Feeding bytes gives the very logits of casting, normalising and quantizing them."""
    graph = onnx.load(int8[1]).graph
    assert not {"Cast", "Sub", "Div"} & {node.op_type for node in graph.node}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pixels = next(node for node in graph.node if "image" in node.input)
    (reader,) = (node for node in graph.node if pixels.output[0] in node.input)
    assert (pixels.op_type, reader.op_type) == ("Transpose", "DequantizeLinear")
    assert values[reader.input[1]] == 1 / 64 and values[reader.input[2]] == 128

    literal = tmp_path / "literal.onnx"
    onnx.save(quantize(job("int8"), "uint8").model, literal)
    assert {"Cast", "Sub"} <= {node.op_type for node in onnx.load(literal).graph.node}
    images = test_images[0]
    assert (open_session(literal, 1)(images) == open_session(int8[1], 1)(images)).all()


def test_the_contract_travels_with_the_int8_model(int8: tuple[Compiled, Path]) -> None:
    model = onnx.load(int8[1])
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key for entry in model.metadata_props} == {"classes", "input", "output"}
    assert [value.name for value in model.graph.input] == ["image"]


def test_the_same_job_gives_the_same_bytes(
    int8: tuple[Compiled, Path], tmp_path: Path, job: Jobs
) -> None:
    """In another process, too, whose sets and dictionaries are ordered otherwise."""
    np.save(tmp_path / "calibration.npy", job("int8").calibration)
    script = """if True:
        import sys, pathlib, numpy
        from pipeline.backends.base import Job
        from pipeline.backends.onnxruntime import OnnxRuntime
        onnx, folder = map(pathlib.Path, sys.argv[1:])
        images = numpy.load(folder / "calibration.npy")
        OnnxRuntime().compile(Job("tiny", "int8", onnx, folder, images, None), folder)
    """
    subprocess.run(
        [sys.executable, "-c", script, str(job("int8").onnx), str(tmp_path)],
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        check=True,
    )
    assert (tmp_path / "model.onnx").read_bytes() == int8[1].read_bytes()


def test_a_student_with_another_normalisation_is_refused(job: Jobs, tmp_path: Path) -> None:
    model = onnx.load(job("int8").onnx)
    for tensor in model.graph.initializer:
        if (numpy_helper.to_array(tensor) == 128).all():
            mean = np.full_like(numpy_helper.to_array(tensor), 120)
            tensor.CopyFrom(numpy_helper.from_array(mean, tensor.name))
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(PipelineError, match="does not begin with"):
        quantize(replace(job("int8"), onnx=tmp_path / "other.onnx"), "uint8")


@pytest.mark.parametrize("images", [1, 7, 61])
def test_any_number_of_calibration_images_will_do(job: Jobs, images: int) -> None:
    few = replace(job("int8"), calibration=job("int8").calibration[:images])
    model = quantize(few, "uint8").model
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
