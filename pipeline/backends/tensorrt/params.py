"""The settings `backends.tensorrt` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.backends.base.spec import BackendSettings


class Settings(BackendSettings):
    """What is compiled for TensorRT."""

    precisions: tuple[Literal["fp16", "int8"], ...] = Field(min_length=1)
