"""The one place that opens ONNX Runtime, with the settings that every artifact is run with.

Bundles carry a copy of this file: it needs NumPy and ONNX Runtime, and nothing of this package.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable

import numpy as np

if TYPE_CHECKING:
    import onnxruntime


Runner = Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]
"""Raw pixels uint8 [N, H, W, C] in, logits float32 [N, classes] out."""


def open_session(
    model: str | bytes,
    threads: int,
    *,
    int8_kernels: bool = True,
    optimized: str | None = None,
    level: str = "ENABLE_ALL",
) -> onnxruntime.InferenceSession:
    """A session on the CPU whose threads sleep when they have no work.

    Float layers of a Q/DQ model stay in float: the optimizer `WeightBiasQuantization` would round
    those between int8 layers to int8, with one scale for all channels, and is disabled.

    Args:
        model: path of an ONNX file, or its content.
        threads: of one inference.
        int8_kernels: False computes each Q/DQ pair as the rounding it stands for, and everything
            between in float32.
        optimized: path to which the optimized graph is written.
        level: ENABLE_ALL, ENABLE_EXTENDED or DISABLE_ALL: what the graph optimizer may do.
    """
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # it warns whenever an optimized graph is written
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = getattr(levels, f"ORT_{level}")
    if optimized is not None:
        options.optimized_model_filepath = optimized
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Exact int8 sums on x86 without VNNI, where the faster kernels overflow.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.disable_quant_qdq", "0" if int8_kernels else "1")
    session: onnxruntime.InferenceSession = runtime.InferenceSession(
        model,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"],
    )
    return session


def load(model: str, threads: int, batch: int = 0, *, int8_kernels: bool = True) -> Runner:
    """A function of raw pixels uint8 [N, H, W, C] to logits float32 [N, classes].

    Args:
        model: path of an ONNX file with the input `image` and the output `logits`.
        threads: of one inference.
        batch: images per call; a session takes any number.
        int8_kernels: see `open_session`.
    """
    del batch
    session = open_session(model, threads, int8_kernels=int8_kernels)

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        feed = {"image": np.ascontiguousarray(images)}
        logits: np.ndarray[Any, Any] = session.run(["logits"], feed)[0]
        return logits

    return run


def versions() -> dict[str, str]:
    """The version of ONNX Runtime by its package name."""
    return {"onnxruntime": _onnxruntime().__version__}


def _onnxruntime() -> Any:
    """The module, which reports nothing.

    Since 1.32 it reports to its maker from its import on, and keeps an identifier and a database
    in the user's home, unless this variable is set before.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime
