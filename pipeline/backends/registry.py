"""The runtimes by name. A runtime's packages load when it is used, not when it is named."""

from __future__ import annotations

from pipeline.backends.base import Backend
from pipeline.errors import PipelineError

NAMES = ("onnxruntime", "openvino", "tflite", "tensorrt")


def backend(name: str) -> Backend:
    """The backend called `name`; `PipelineError` for an unknown one."""
    if name == "onnxruntime":
        from pipeline.backends.onnxruntime import OnnxRuntime

        return OnnxRuntime()
    if name == "openvino":
        from pipeline.backends.openvino import OpenVino

        return OpenVino()
    if name == "tflite":
        from pipeline.backends.tflite import TFLite

        return TFLite()
    if name == "tensorrt":
        from pipeline.backends.tensorrt import TensorRT

        return TensorRT()
    raise PipelineError(f"there is no backend `{name}`", fix=f"known are {', '.join(NAMES)}")
