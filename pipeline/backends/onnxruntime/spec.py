"""ONNX Runtime as the other rooms see it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.backends.base.spec import FLOAT32, INT8, ONNX_RUNTIME, Backend, BackendSettings
from pipeline.export import session


class Settings(BackendSettings):
    """`backends.onnxruntime` of params.yaml: what is compiled for ONNX Runtime."""

    precisions: tuple[Literal["fp32", "int8"], ...] = Field(min_length=1)


class OnnxRuntime(Backend):
    """ONNX Runtime on CPUs: the exported model as it is, or quantized by its own quantizer."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    colour = "#2f81f7"
    packages = ("onnxruntime", "onnx")
    runtimes = ("onnxruntime",)
    settings = Settings
    tolerances: ClassVar = {"fp32": FLOAT32, "int8": INT8}
    proven: ClassVar = ONNX_RUNTIME
    hub_library = "onnx"
    reads = (".onnx",)

    def bundle_files(self) -> dict[str, Path]:
        return super().bundle_files() | {"session.py": Path(session.__file__)}


BACKEND = OnnxRuntime()
