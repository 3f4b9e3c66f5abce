"""OpenVINO as the other rooms see it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from pipeline.backends.base.spec import FLOAT32, INT8, Backend, BackendSettings


class Settings(BackendSettings):
    """`backends.openvino` of params.yaml: what is compiled for OpenVINO."""

    precisions: tuple[Literal["fp32", "int8"], ...] = Field(min_length=1)


class OpenVino(Backend):
    """OpenVINO on Intel CPUs: its intermediate representation, quantized by NNCF."""

    name = "openvino"
    title = "OpenVINO"
    colour = "#a371f7"
    packages = ("openvino", "nncf")
    runtimes = ("openvino",)
    settings = Settings
    tolerances: ClassVar = {"fp32": FLOAT32, "int8": INT8}
    hub_library = "openvino"
    reads = (".xml",)


BACKEND = OpenVino()
