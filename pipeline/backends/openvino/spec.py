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
    proven: ClassVar = {
        "3.8": "openvino==2024.4.0",
        "3.9": "openvino==2025.3.0",
        "3.10": "openvino==2026.4.1",
        "3.11": "openvino==2026.4.1",
        "3.12": "openvino==2026.4.1",
        "3.13": "openvino==2026.4.1",
    }
    int8_note = (
        "that is so on x86 CPUs alone: on others, Arm for example, runtime.py has OpenVINO compute "
        "each rounding in float32 (`LP_TRANSFORMS_MODE=NO`). The answers are the same but for "
        "single int8 steps, the files as small, and nothing is faster than in float; the fp32 "
        "bundle or LiteRT suits these CPUs better"
    )
    hub_library = "openvino"
    reads = (".xml",)


BACKEND = OpenVino()
