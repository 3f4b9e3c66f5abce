"""Sessions of ONNX Runtime on the CPU, with the settings that every artifact is run with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.backends.base import Runner


def open_session(model: Path, threads: int, *, int8_kernels: bool = True) -> Runner:
    """`model` on the CPU provider with `threads` threads that sleep when they have no work.

    Without `int8_kernels` each pair of Q/DQ is computed as the rounding that it means, and all
    between them in float32.
    """
    session = new_session(model, session_options(threads, int8_kernels=int8_kernels))

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32]
        (logits,) = session.run(["logits"], {"image": np.ascontiguousarray(images)})
        return logits

    return run


def new_session(
    model: Path | bytes, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    """A session on the CPU provider that leaves float layers of a Q/DQ model in float."""
    # That optimizer would round layers that are kept in float between int8 ones to int8, with
    # one scale for all channels.
    return onnxruntime.InferenceSession(
        model,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"],
    )


def session_options(threads: int, *, int8_kernels: bool = True) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # it warns whenever an optimised graph is saved
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.disable_quant_qdq", "0" if int8_kernels else "1")
    return options
