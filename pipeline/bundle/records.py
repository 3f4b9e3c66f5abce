"""The records inside a bundle, for its scripts and for whoever ships it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.core.records import Record


class Preprocessing(Record):
    """models/bundles/S-B-P/preprocess.json: from an image file to the model's input."""

    size: int = Field(description="height and width in pixels")
    resize: int = Field(description="what the shorter side becomes before the centre is cut out")
    channels: int
    colour: Literal["RGB", "grey"]
    layout: Literal["NHWC"] = "NHWC"
    dtype: Literal["uint8"] = "uint8"
    range: tuple[int, int] = (0, 255)
    steps: tuple[str, ...] = Field(description="in this order; pixels.py does them with Pillow")
    normalisation: str = "inside the model: give raw pixels, never normalised ones"


class Tolerances(Record):
    """How far a device's logits may differ from the golden ones, in units of the logits."""

    min_same_argmax: float = Field(description="share of the golden images with the same argmax")
    max_logit_error: float
    mean_logit_error: float
    reason: str


class Golden(Record):
    """How the logits of golden.npz were computed."""

    images: int
    answered_by: str = Field(description="the runtime and version that gave the logits")
    cpu: str = Field(description="of the machine where it gave them")


class Bundle(Record):
    """models/bundles/S-B-P/bundle.json: an artifact as it is shipped."""

    student: str
    backend: str
    precision: str
    model_file: str = Field(description="the file that runtime.py opens")
    input: str
    output: str
    image_size: int
    stored_size: int = Field(description="what the shorter side of a larger image is resized to")
    channels: int
    classes: tuple[str, ...]
    install: dict[str, tuple[str, ...]] = Field(
        description="by script module that needs a runtime: commands, any of which installs it"
    )
    proven: dict[str, str] = Field(
        description="by Python's version: what these commands install there, NAME==VERSION, and "
        "what bundles of this kind were verified with; of TensorRT the graph"
    )
    quantizer: str | None
    calibration_digest: str | None
    versions: dict[str, str] = Field(description="of the tools that compiled the artifact")
    digests: dict[str, str] = Field(description="SHA-256 of the model's files")
    top1: float = Field(description="on the whole test split")
    top1_drop: float = Field(description="top-1 of the float student, minus `top1`")
    test_images: int
    evaluated_with: str
    golden: Golden
    tolerances: Tolerances
