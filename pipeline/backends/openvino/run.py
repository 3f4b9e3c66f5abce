"""Opens a model by OpenVINO on the CPU: in the lab and, as runtime.py, in bundles.

Needs NumPy and OpenVINO.
"""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, Any, Callable

import numpy as np

if TYPE_CHECKING:
    import openvino

    Runner = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]

ANY = -1
"""A batch size that is decided with each call."""

X86 = ("x86_64", "amd64", "i386", "i686")
"""CPUs whose int8 kernels compute a quantized network as it stands, by `uname -m` in lower case."""


def load(model: str, threads: int, batch: int = 0) -> Runner:
    """A function of raw pixels uint8 [N, H, W, C] to logits float32 [N, classes].

    Layers that are not int8 compute in float32. By itself OpenVINO would use bfloat16 where the
    CPU has it, and give other logits. On CPUs other than x86 no layer is int8, see `compile_model`.

    Args:
        model: path of the .xml file; its weights lie beside it.
        threads: of one stream.
        batch: images per call, exactly: a network of fixed shape answers sooner. 0: any number.
    """
    network = read(model)
    if batch:
        return _fixed(compile_model(network, threads, batch))
    request = compile_model(network, threads, ANY).create_infer_request()

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        logits: np.ndarray[Any, Any] = request.infer([images])[0].copy()
        return logits

    return run


def read(model: str) -> openvino.Model:
    """The network of an .xml file."""
    return _openvino().Core().read_model(model)


def compile_model(network: openvino.Model, threads: int, batch: int) -> openvino.CompiledModel:
    """`network` on the CPU for a fixed batch size, or for `ANY`; its input is reshaped.

    On Arm OpenVINO's int8 is another network: it leaves two thirds of a MobileNet's layers in
    float and moves the roundings, and without float16 (Cortex-A53, A72) it does not open at all.
    There each rounding is computed as it stands, in float32. It does not hasten anything.
    """
    network.reshape([batch, *list(network.input().partial_shape)[1:]])
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if platform.machine().lower() not in X86:
        properties["LP_TRANSFORMS_MODE"] = "NO"
    return _openvino().Core().compile_model(network, "CPU", properties)


def versions() -> dict[str, str]:
    """The version of OpenVINO by its package name."""
    return {"openvino": _openvino().get_version().split("-")[0]}


def no_telemetry() -> None:
    """Keep OpenVINO 2024 to 2026 and NNCF 2 and 3 from reporting each use to their makers.

    They report unless the package openvino_telemetry cannot be imported.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def _openvino() -> Any:
    no_telemetry()
    import openvino

    return openvino


def _fixed(compiled: openvino.CompiledModel) -> Runner:
    """A request of fixed shape that reads and writes the same memory every time.

    Passing an array with each call would cost more time than a small network needs.
    """
    request = compiled.create_infer_request()
    pixels = np.empty(tuple(compiled.input().get_shape()), np.uint8)
    request.set_input_tensor(_openvino().Tensor(pixels, shared_memory=True))
    logits = request.get_output_tensor().data

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        np.copyto(pixels, images)
        request.infer(share_outputs=True)
        copied: np.ndarray[Any, Any] = logits.copy()
        return copied

    return run
