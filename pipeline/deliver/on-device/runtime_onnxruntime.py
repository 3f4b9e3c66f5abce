"""ONNX Runtime on the CPU, with the settings under which this model was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from common import Runner


def load(model: str, threads: int, batch: int = 1) -> Runner:
    """`model` on `threads` threads that sleep when they have no work."""
    import onnxruntime

    del batch  # a session takes any
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # exact int8 products on x86 without VNNI, where the faster ones overflow
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(
        model,
        options,
        providers=["CPUExecutionProvider"],
        # it would round layers that are kept in float between int8 ones
        disabled_optimizers=["WeightBiasQuantization"],
    )

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        logits: np.ndarray[Any, Any] = session.run(["logits"], {"image": images})[0]
        return logits

    return run


def versions() -> dict[str, str]:
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__}
