"""The settings `backends.tflite` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.backends.base.spec import BackendSettings


class Settings(BackendSettings):
    """What is compiled for LiteRT."""

    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = Field(min_length=1)
    hard_swish: Literal["decomposed", "keep"] = Field(
        "decomposed", description="how int8 computes hard-swish, for which XNNPACK has no kernel"
    )
