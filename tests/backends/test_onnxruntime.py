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
from onnx import TensorProto, helper, numpy_helper

from pipeline.backends.base.job import Compiled, Job
from pipeline.backends.base.qdq import quantize
from pipeline.backends.onnxruntime.inspect import inspect
from pipeline.core.errors import PipelineError
from pipeline.export.session import load

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]
Jobs = Callable[..., Job]
Made = Callable[[str, str], tuple[Path, Compiled]]


@pytest.fixture
def int8(made: Made) -> Path:
    return made("onnxruntime", "int8")[0]


def test_fp32_is_the_exported_file(made: Made, job: Jobs) -> None:
    assert made("onnxruntime", "fp32")[0].read_bytes() == job("fp32").onnx.read_bytes()


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


def test_a_float_layer_is_named_as_the_exported_file_names_it(
    int8: Path, job: Jobs, macs: int, tmp_path: Path
) -> None:
    head = with_float_constants(int8, "Gemm", 0, tmp_path / "mixed.onnx")
    assert head.name in {node.name for node in onnx.load(job("fp32").onnx).graph.node}
    execution = inspect(tmp_path / "mixed.onnx")
    (layer,) = execution.in_float
    assert layer.name == head.name
    assert 0 < layer.macs == round((1 - execution.int8_mac_share) * macs)


def test_a_float_convolution_between_int8_ones_stays_float(int8: Path, tmp_path: Path) -> None:
    """Unless it is told not to, the runtime rounds it per tensor when it opens the file."""
    with_float_constants(int8, "Conv", 1, tmp_path / "mixed.onnx")
    execution = inspect(tmp_path / "mixed.onnx")
    assert len(execution.in_float) == 1 and execution.per_channel


def test_an_int8_logit_is_finer_than_8_bits(int8: Path, test_images: Split) -> None:
    assert len(np.unique(load(str(int8), 1)(test_images[0]))) > 256


def test_pixels_are_the_int8_input(
    int8: Path, job: Jobs, test_images: Split, tmp_path: Path
) -> None:
    """Feeding bytes gives the very logits of casting, normalising and quantizing them."""
    graph = onnx.load(int8).graph
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
    assert (load(str(literal), 1)(images) == load(str(int8), 1)(images)).all()


@pytest.mark.parametrize(
    ("name", "precision"), [("onnxruntime", "int8"), ("tensorrt", "fp16"), ("tensorrt", "int8")]
)
def test_the_contract_travels_with_an_onnx_file(made: Made, name: str, precision: str) -> None:
    model = onnx.load(made(name, precision)[0].with_name("model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key for entry in model.metadata_props} == {"classes", "input", "output"}
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)


def test_a_process_with_other_hashes_gives_the_same_bytes(
    int8: Path, tmp_path: Path, job: Jobs
) -> None:
    """Its sets are ordered otherwise."""
    np.save(tmp_path / "calibration.npy", job("int8").calibration)
    script = """if True:
        import sys, pathlib, numpy
        from pipeline.backends.base.artifact import Artifact
        from pipeline.backends.base.job import Job
        from pipeline.backends.onnxruntime.compile import Compiler
        onnx, folder = map(pathlib.Path, sys.argv[1:])
        images = numpy.load(folder / "calibration.npy")
        job = Job(Artifact("tiny", "onnxruntime", "int8"), onnx, folder, images, None)
        Compiler(None).compile(job, folder)
    """
    subprocess.run(
        [sys.executable, "-c", script, str(job("int8").onnx), str(tmp_path)],
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        check=True,
    )
    assert (tmp_path / "model.onnx").read_bytes() == int8.read_bytes()


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


def test_a_batch_norm_that_is_executed_as_a_convolution_is_no_layer(tmp_path: Path) -> None:
    """ONNX Runtime writes one that it cannot fold as a convolution in its blocked layout."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "stem"], ["made"], "stem"),
        helper.make_node("Relu", ["made"], ["positive"]),
        helper.make_node("BatchNormalization", ["positive", *["ones"] * 4], ["normed"], "norm"),
        helper.make_node("Conv", ["positive", "kernel"], ["mixed"], "conv"),
        helper.make_node("Add", ["normed", "mixed"], ["both"]),
        helper.make_node("ReduceMean", ["both", "axes"], ["logits"], keepdims=0),
    ]
    values = {
        "stem": np.ones((16, 3, 1, 1), np.float32),
        "kernel": np.ones((16, 16, 1, 1), np.float32),
        "ones": np.ones(16, np.float32),
        "axes": np.array([2, 3]),
    }
    graph = helper.make_graph(
        nodes, "normed",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 16])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    report = inspect(tmp_path / "model.onnx")
    assert {layer.name: layer.macs for layer in report.in_float} == {
        "stem": 64 * 16 * 3, "conv": 64 * 16 * 16,
    }  # fmt: skip
