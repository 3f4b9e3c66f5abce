"""The settings `backends.onnxruntime` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.backends.base.spec import BackendSettings


class Settings(BackendSettings):
    """What is compiled for ONNX Runtime."""

    precisions: tuple[Literal["fp32", "int8"], ...] = Field(min_length=1)
