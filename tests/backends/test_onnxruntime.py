from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from pipeline.backends.base import Compiled, Job
from pipeline.backends.onnxruntime import OnnxRuntime, executed_operators, open_session
from pipeline.backends.qdq import quantize
from pipeline.errors import PipelineError
from pipeline.measure.accuracy import agreement, top1

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]
Jobs = Callable[[str], Job]


@pytest.fixture(scope="module")
def int8(job: Jobs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Compiled, Path]:
    folder = tmp_path_factory.mktemp("int8")
    compiled = OnnxRuntime().compile(job("int8"), folder)
    return compiled, folder / compiled.model_file


def test_fp32_is_the_exported_file_and_gives_the_logits_of_torch(
    job: Jobs, tmp_path: Path, test_images: Split, torch_logits: NDArray[np.float32]
) -> None:
    compiled = OnnxRuntime().compile(job("fp32"), tmp_path)
    assert (tmp_path / compiled.model_file).read_bytes() == job("fp32").onnx.read_bytes()
    assert compiled.int8_op_share == 0
    logits = OnnxRuntime().load(tmp_path / compiled.model_file, 1)(test_images[0])
    np.testing.assert_allclose(logits, torch_logits, atol=1e-3)


def test_int8_executes_every_convolution_and_product_in_integers(
    int8: tuple[Compiled, Path],
) -> None:
    compiled, _ = int8
    assert compiled.int8_op_share == 1
    assert compiled.operators["QLinearConv"] > 5
    assert compiled.operators["QGemm"] == 1


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
    onnx.save(quantize(job("int8").onnx, job("int8").calibration, "uint8")[0], literal)
    assert {"Cast", "Sub"} <= set(executed_operators(literal))
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
        quantize(tmp_path / "other.onnx", job("int8").calibration, "uint8")


@pytest.mark.parametrize("images", [1, 7, 61])
def test_any_number_of_calibration_images_will_do(job: Jobs, images: int) -> None:
    model, _ = quantize(job("int8").onnx, job("int8").calibration[:images], "uint8")
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
