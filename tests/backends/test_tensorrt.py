from __future__ import annotations

import ctypes.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from pipeline.accuracy.metrics import agreement, top1
from pipeline.backends.base.job import Compiled, Job
from pipeline.backends.base.qdq import quantize
from pipeline.backends.tensorrt import compile as tensorrt
from pipeline.backends.tensorrt.compile import (
    Network,
)
from pipeline.backends.tensorrt.spec import TensorRT
from pipeline.core.errors import PipelineError

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]
Jobs = Callable[[str], Job]

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(scope="module", params=["fp16", "int8"])
def compiled(
    request: pytest.FixtureRequest, job: Jobs, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Compiled, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, TensorRT().compile(job(request.param), folder), folder


def test_nvidias_parser_reads_the_precision_that_was_asked(
    compiled: tuple[str, Compiled, Path], macs: int
) -> None:
    precision, result, _ = compiled
    int8 = precision == "int8"
    assert (result.execution.macs, result.execution.int8_mac_share) == (macs, float(int8))
    assert result.execution.per_channel is (True if int8 else None)
    assert result.execution.partitions is None
    assert (result.execution.input_type, result.execution.output_type) == ("uint8", "float32")


def test_nvidias_builder_makes_an_engine_of_it(compiled: tuple[str, Compiled, Path]) -> None:
    assert len(Network(compiled[2] / "model.onnx").build()) > 10_000


def test_the_portable_model_keeps_the_answers(
    compiled: tuple[str, Compiled, Path], test_images: Split, torch_logits: NDArray[np.float32]
) -> None:
    precision, result, folder = compiled
    images, labels = test_images
    logits = TensorRT().load(folder / result.model_file, 1)(images)
    assert logits.dtype == np.float32
    assert agreement(logits, torch_logits) > {"fp16": 0.99, "int8": 0.95}[precision]
    assert top1(logits, labels) > top1(torch_logits, labels) - 0.02


def test_the_portable_model_is_valid_onnx_with_the_contract(
    compiled: tuple[str, Compiled, Path],
) -> None:
    model = onnx.load(compiled[2] / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)
    assert {entry.key for entry in model.metadata_props} == {"classes", "input", "output"}


def test_the_same_job_gives_the_same_portable_bytes(
    compiled: tuple[str, Compiled, Path], job: Jobs, tmp_path: Path
) -> None:
    TensorRT().compile(job(compiled[0]), tmp_path)
    again = (tmp_path / "model.onnx").read_bytes()
    assert again == (compiled[2] / "model.onnx").read_bytes()


def test_int8_weights_are_stored_in_8_bits(compiled: tuple[str, Compiled, Path]) -> None:
    precision, _, folder = compiled
    floats = 4 * sum(
        int(np.prod(tensor.dims))
        for tensor in onnx.load(folder / "model.onnx").graph.initializer
        if len(tensor.dims) > 1
    )
    share = (folder / "model.onnx").stat().st_size / floats
    assert share < {"fp16": 0.8, "int8": 0.8}[precision]


def test_a_zero_point_other_than_zero_is_refused(job: Jobs, tmp_path: Path) -> None:
    """The check by NVIDIA's parser can fail, and its words reach the user."""
    made = quantize(job("int8"), "int8 symmetric")
    model, front = made.model, made.front
    (node,) = (node for node in model.graph.node if front.tensor in node.input)
    (zero,) = (tensor for tensor in model.graph.initializer if tensor.name == node.input[2])
    zero.CopyFrom(numpy_helper.from_array(np.array(1, np.int8), zero.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(PipelineError, match=r"refuses QuantizeLinear .*zero point"):
        Network(tmp_path / "model.onnx")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(PipelineError, match="refuses"):
        Network(tmp_path / "model.onnx")


@without_gpu
def test_without_a_gpu_the_record_says_so(compiled: tuple[str, Compiled, Path]) -> None:
    _, result, folder = compiled
    assert [file.name for file in folder.iterdir()] == ["model.onnx"]
    assert any("no engine was built" in note for note in result.notes)
    assert TensorRT().unmeasurable() == "no NVIDIA GPU here"
    assert TensorRT().evaluator().startswith("onnxruntime ")
    assert TensorRT().evaluator().endswith("on the same graph (no NVIDIA GPU here)")


@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="there is a driver")
def test_that_there_is_no_driver_is_told_without_torch() -> None:
    code = (
        "import sys; from pipeline.backends.tensorrt import TensorRT; "
        "print(TensorRT().unmeasurable(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.stdout == "no NVIDIA GPU here False\n", done.stderr


@pytest.mark.parametrize(
    ("capability", "served"),
    [
        ((7, 5), True),
        ((8, 6), True),
        ((8, 7), False),
        ((9, 0), False),
        ((12, 0), True),
        ((13, 0), True),
    ],
)
def test_tensorrt_for_rtx_serves_what_it_names(capability: tuple[int, int], served: bool) -> None:
    assert tensorrt._serves(pytest.importorskip("tensorrt_rtx"), capability) is served


def test_a_gpu_that_is_not_served_gets_the_portable_artifact(
    monkeypatch: pytest.MonkeyPatch, job: Jobs, tmp_path: Path, test_images: Split
) -> None:
    """The GPU is claimed, all else is real."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(tensorrt, "_MODULES", {"tensorrt-rtx-cu13": "tensorrt_rtx"})
    monkeypatch.setattr(tensorrt, "_gpu", lambda: tensorrt._Gpu("NVIDIA H100", (9, 0)))
    result = TensorRT().compile(job("fp16"), tmp_path)
    assert result.model_file == "model.onnx"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    reason = TensorRT().unmeasurable() or ""
    assert "NVIDIA H100, of compute capability 9.0: install tensorrt" in reason
    assert any(f"no engine was built: {reason}" in note for note in result.notes)
    assert TensorRT().evaluator().endswith(f" on the same graph ({reason})")
    logits = TensorRT().load(tmp_path / result.model_file, 1)(test_images[0])
    assert len(logits) == len(test_images[0])


def test_without_its_package_the_error_names_it(
    monkeypatch: pytest.MonkeyPatch, job: Jobs, tmp_path: Path
) -> None:
    monkeypatch.setattr(tensorrt, "_MODULES", {"tensorrt": "module_that_is_not_there"})
    with pytest.raises(PipelineError, match="neither tensorrt nor tensorrt-rtx is installed"):
        TensorRT().compile(job("fp16"), tmp_path)
