"""OpenVINO on the CPU, with the settings under which this model was measured."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from common import Runner

# OpenVINO reports its use to its makers, unless this package cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def load(model: str, threads: int, batch: int = 1) -> Runner:
    """`model` for `batch` images of fixed shape, in one stream on `threads` threads.

    Layers that are not int8 compute in float32: left alone, OpenVINO takes bfloat16 where the
    CPU has it, and gives other logits than those of the lab.
    """
    import openvino

    core = openvino.Core()
    network = core.read_model(model)
    network.reshape([batch, *list(network.input().partial_shape)[1:]])
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(network, "CPU", properties).create_infer_request()
    # Bound once: handing an array over with each call costs more than a small network computes.
    pixels = np.empty(tuple(network.input().get_shape()), np.uint8)
    request.set_input_tensor(openvino.Tensor(pixels, shared_memory=True))
    logits = request.get_output_tensor().data

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        np.copyto(pixels, images)
        request.infer(share_outputs=True)
        copied: np.ndarray[Any, Any] = logits.copy()
        return copied

    return run


def versions() -> dict[str, str]:
    import openvino

    return {"openvino": openvino.get_version().split("-")[0]}
