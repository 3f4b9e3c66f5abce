"""What is recorded about the robustness of a student and of its artifacts."""

from __future__ import annotations

import base64
import binascii
import zlib
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.backends.base.artifact import ArtifactKey
from pipeline.core.params import Name
from pipeline.core.records import METRICS, DetailRecord, Record
from pipeline.robustness.statistics import Estimate

ROBUSTNESS = METRICS / "robustness"

STUDENT = "student"
"""The float student among the references of `Measured.mce`; teachers go by their names."""

FGSM, PGD, AUTOATTACK = "fgsm", "pgd", "autoattack"
"""Attacks by name, in the order of tables."""

Accuracy = Annotated[float, Field(ge=0, le=1)]


def record_file(student: str) -> Path:
    """The `RobustnessRecord` of a student."""
    return ROBUSTNESS / f"{student}.json"


def packed(counts: NDArray[np.integer]) -> str:
    """Counts [N] of at most 255 as text: base64 of zlib of a byte each."""
    return base64.b64encode(zlib.compress(counts.astype(np.uint8).tobytes(), 9)).decode()


def unpacked(text: str, images: int) -> NDArray[np.int64]:
    """The counts [N] in a text of `packed`; `ValueError` for any other text."""
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), images + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"not a byte per image, compressed, as base64: {error}") from None
    if len(content) != images:
        raise ValueError(f"not a byte for each of {images} images")
    return np.frombuffer(content, np.uint8).astype(np.int64)


class Limited(Record):
    """A figure with its 95% limits."""

    value: float
    interval: tuple[float, float] | None = Field(
        None, description="bootstrap over images; null where a resample has no such figure"
    )

    @classmethod
    def of(cls, estimate: Estimate) -> Self:
        """The record of an estimate."""
        if estimate.low is None or estimate.high is None:
            return cls(value=estimate.value)
        return cls(value=estimate.value, interval=(estimate.low, estimate.high))


class Protocol(Record):
    """How robustness was measured; figures of two protocols cannot be compared."""

    seed: int
    strengths: tuple[int, ...] = Field(min_length=1)
    corruptions: tuple[str, ...] = Field(min_length=1)
    epsilon: float = Field(description="of all attacks, in pixel values: 8 is 8/255")
    steps: int = Field(description="of PGD")
    step_size: float = Field(description="of PGD, in pixel values")
    restarts: int = Field(description="of PGD")


class Measured(Record):
    """A network's answers to corrupted and to adversarial images."""

    clean: Accuracy
    corrupted: dict[str, tuple[Accuracy, ...]] = Field(
        description="accuracy by corruption, at each strength"
    )
    mean_corrupted: Limited = Field(description="accuracy over all corruptions and strengths")
    mce: dict[str, Limited | None] = Field(
        description="mean corruption error by reference, the float student or a teacher; null "
        "where the reference makes no error under some corruption"
    )
    attacked: dict[str, Accuracy] = Field(
        description="accuracy on the uint8 images that an attack on the float student made"
    )
    right: str = Field(
        description="right answers to each image under all corruptions and strengths: `packed`"
    )
    withstood: str = Field(description="whether each image under PGD is answered right: `packed`")


class ArtifactRow(Record):
    """The robustness of an artifact, or why it is not known."""

    status: Literal["measured", "not_measured", "failed"]
    reason: str | None = Field(None, description="why it was not measured, or how it failed")
    evaluated_with: str | None = Field(
        None, description="the runtime and version that gave the answers"
    )
    digests: dict[str, str] = Field(description="SHA-256 of every file of the artifact")
    measured: Measured | None = None


class RobustnessRecord(DetailRecord):
    """metrics/robustness/S.json: one split, corrupted and attacked, through every network."""

    line_per_entry = ("teachers", "artifacts")

    test_digest: str = Field(description="SHA-256 over the digests of the split's arrays")
    images: int = Field(ge=1, description="that were drawn from the split")
    of_images: int = Field(ge=1, description="in the split")
    protocol: Protocol
    autoattack: tuple[str, ...] = Field((), description="its attacks; none: it was not run")
    versions: dict[str, str] = Field(description="of what made the images")
    unrounded: dict[str, Accuracy] = Field(
        description="of the float student, on each attack's images before they become uint8"
    )
    student: Measured
    teachers: dict[Name, Measured]
    artifacts: dict[ArtifactKey, ArtifactRow]

    @model_validator(mode="after")
    def _the_same_of_every_network(self) -> Self:
        rows = [row.measured for row in self.artifacts.values() if row.measured]
        its = self.protocol
        sizes = dict.fromkeys(its.corruptions, len(its.strengths))
        for measured in (self.student, *self.teachers.values(), *rows):
            if {name: len(found) for name, found in measured.corrupted.items()} != sizes:
                raise ValueError("`corrupted` has not every corruption at every strength")
            if PGD not in measured.attacked or measured.attacked.keys() != self.unrounded.keys():
                raise ValueError("`attacked` has not the attacks of `unrounded`, PGD among them")
            for text in (measured.right, measured.withstood):
                unpacked(text, self.images)
        return self
