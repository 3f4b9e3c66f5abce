from __future__ import annotations

import ctypes.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from pipeline.backends.base.job import Compiled, Job
from pipeline.backends.base.qdq import quantize
from pipeline.backends.tensorrt import compile as tensorrt
from pipeline.backends.tensorrt import spec
from pipeline.backends.tensorrt.run import Network, refusal
from pipeline.backends.tensorrt.spec import BACKEND, Settings
from pipeline.core.errors import PipelineError, refusals

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]
Jobs = Callable[..., Job]
Made = Callable[[str, str], tuple[Path, Compiled]]
FP16 = Settings(precisions=("fp16",))


def network(file: Path) -> Network:
    """As the compiler reads it."""
    with refusals("TensorRT", (RuntimeError,), where=str(file), fix=""):
        return Network(spec.lab_module(), file)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_nvidias_builder_makes_an_engine_of_it(made: Made, precision: str) -> None:
    model = made("tensorrt", precision)[0].with_name("model.onnx")
    assert len(network(model).build(8)) > 10_000
    tensors = [tensor for tensor in onnx.load(model).graph.initializer if len(tensor.dims) > 1]
    floats = 4 * sum(int(np.prod(tensor.dims)) for tensor in tensors)
    assert model.stat().st_size < 0.8 * floats, "weights are not stored in 16 or 8 bits"


def test_a_zero_point_other_than_zero_is_refused(job: Jobs, tmp_path: Path) -> None:
    """The check by NVIDIA's parser can fail, and its words reach the user."""
    made = quantize(job("int8"), "int8 symmetric")
    model, front = made.model, made.front
    (node,) = (node for node in model.graph.node if front.tensor in node.input)
    (zero,) = (tensor for tensor in model.graph.initializer if tensor.name == node.input[2])
    zero.CopyFrom(numpy_helper.from_array(np.array(1, np.int8), zero.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(PipelineError, match=r"refuses QuantizeLinear .*zero point"):
        network(tmp_path / "model.onnx")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(PipelineError, match="refuses"):
        network(tmp_path / "model.onnx")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_record_says_so(made: Made) -> None:
    model, result = made("tensorrt", "int8")
    assert [file.name for file in model.parent.iterdir()] == ["model.onnx"]
    assert any("no engine was built" in note for note in result.notes)
    assert BACKEND.unmeasurable() == "no NVIDIA GPU here"
    assert BACKEND.evaluator().startswith("onnxruntime ")
    assert BACKEND.evaluator().endswith("on the same graph (no NVIDIA GPU here)")


@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="there is a driver")
def test_that_there_is_no_driver_is_told_without_torch() -> None:
    code = (
        "import sys; from pipeline.backends.tensorrt.spec import BACKEND; "
        "print(BACKEND.unmeasurable(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.stdout == "no NVIDIA GPU here False\n", done.stderr


@pytest.mark.parametrize(
    ("capability", "served"),
    [((7, 5), 1), ((8, 6), 1), ((8, 7), 0), ((9, 0), 0), ((12, 0), 1), ((13, 0), 1)],
)
def test_tensorrt_for_rtx_serves_what_it_names(capability: tuple[int, int], served: int) -> None:
    reason = refusal(pytest.importorskip("tensorrt_rtx"), "NVIDIA GPU", capability)
    assert (reason is None) == served


def test_a_gpu_that_is_not_served_gets_the_portable_artifact(
    monkeypatch: pytest.MonkeyPatch, job: Jobs, tmp_path: Path, test_images: Split
) -> None:
    """The GPU is claimed, all else is real."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(spec, "MODULES", {"tensorrt-rtx-cu13": "tensorrt_rtx"})
    gpu = SimpleNamespace(name="NVIDIA H100", capability=(9, 0))
    monkeypatch.setattr(spec, "find_gpu", lambda: gpu)
    result = tensorrt.Compiler(FP16).compile(job("fp16"), tmp_path)
    assert result.model_file == "model.onnx"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    reason = BACKEND.unmeasurable() or ""
    assert "NVIDIA H100, of compute capability 9.0: install tensorrt" in reason
    assert any(f"no engine was built: {reason}" in note for note in result.notes)
    assert BACKEND.evaluator().endswith(f" on the same graph ({reason})")
    logits = BACKEND.load(tmp_path / result.model_file, 1)(test_images[0])
    assert len(logits) == len(test_images[0])


def test_without_its_package_the_error_names_it(
    monkeypatch: pytest.MonkeyPatch, job: Jobs, tmp_path: Path
) -> None:
    monkeypatch.setattr(spec, "MODULES", {"tensorrt": "module_that_is_not_there"})
    with pytest.raises(PipelineError, match="neither tensorrt nor tensorrt-rtx is installed"):
        tensorrt.Compiler(FP16).compile(job("fp16"), tmp_path)
