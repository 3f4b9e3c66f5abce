"""What is recorded about a compiled artifact, and how it is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field

from pipeline.core.files import checked
from pipeline.core.records import Record

ARTIFACT_FILE = "artifact.json"
"""In an artifact's folder: an `ArtifactRecord`."""


class FloatLayer(Record):
    """A conv or linear layer that is not computed in int8."""

    name: str = Field(description="the runtime's own")
    macs: int

    def __str__(self) -> str:
        """The end of the name, where long ones differ, and the multiply-accumulates."""
        name = self.name if len(self.name) <= 60 else f"…{self.name[-59:]}"
        return f"{name} ({self.macs:,} MACs)"


class Partitions(Record):
    """How a runtime divides a graph between a delegate and its own, built-in kernels."""

    delegated: int = Field(description="partitions that the delegate runs")
    builtin: dict[str, int] = Field(description="operators left to built-in kernels, by kind")

    def __str__(self) -> str:
        rest = ", ".join(f"{count} {kind}" for kind, count in self.builtin.items())
        return f"{self.delegated} delegated; built-in kernels: {rest or 'none'}"


class ExecutionReport(Record):
    """How an artifact computes one image, read from what its runtime executes.

    Multiply-accumulates (MACs) are counted in convolutions and matrix products alone: output
    elements times the kernel elements of one output channel, or times the inner dimension.
    """

    macs: int
    in_float: tuple[FloatLayer, ...] = Field(description="the largest first")
    per_channel: bool | None = Field(
        description="all int8 weights have a scale per output channel; null without such weights"
    )
    partitions: Partitions | None = Field(description="null where the runtime has none")
    input_type: str
    output_type: str

    @property
    def int8_mac_share(self) -> float:
        """Share of multiply-accumulates in int8; 0 for a network without any."""
        in_float = sum(layer.macs for layer in self.in_float)
        return (self.macs - in_float) / self.macs if self.macs else 0.0


class MicroReport(Record):
    """What TFLite Micro, the interpreter for microcontrollers, makes of an artifact."""

    runtime: str = Field(description="the package and its version")
    arena_bytes: int = Field(
        description="the smallest tensor arena that works, by bisection on a 64-bit machine; "
        "pointers of 32 bits need less, scratch memory of optimized kernels comes on top"
    )
    operators: dict[str, int] = Field(description="how many, by LiteRT's name")
    images: int = Field(description="calibration images that both of the following compare")
    max_steps: float = Field(
        description="largest difference of a logit from LiteRT's reference kernels, in int8 steps"
    )
    same_class: int = Field(description="images with the class that LiteRT gives on the CPU")

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        return (
            f"{self.runtime} needs a tensor arena of {self.arena_bytes:,} bytes (on a 64-bit "
            f"machine) and the operators {kinds}; on {self.images} images its logits are within "
            f"{self.max_steps:g} int8 steps of LiteRT's reference kernels, and {self.same_class} "
            "have the class that LiteRT gives on the CPU"
        )


class ArtifactRecord(Record):
    """models/compiled/B/S/P/artifact.json."""

    student: str
    backend: str
    precision: str
    model_file: str = Field(description="the file that `load` opens, in the same folder")
    quantizer: str | None = Field(description="tool and setting; null for float precisions")
    weights_digest: str = Field(description="SHA-256 of the weights that it was compiled from")
    calibration_digest: str | None
    input: str = "image: uint8 [N, H, W, C], raw pixels in [0, 255]"
    output: str = "logits: float32 [N, classes]"
    image_size: int
    stored_size: int = Field(description="see Manifest")
    channels: int
    classes: tuple[str, ...]
    execution: ExecutionReport
    exact_input_images: int | None = Field(
        None,
        description="images whose logits are the same bits for pixels x and for (x - 128) / 64 in "
        "float; null for float precisions",
    )
    micro: MicroReport | None = Field(None, description="null where no microcontroller is targeted")
    versions: dict[str, str]
    digests: dict[str, str] = Field(description="SHA-256 of every other file in the folder")
    notes: tuple[str, ...] = ()

    @classmethod
    def read_whole(cls, folder: Path) -> Self:
        """The record in a compiled folder whose files all have the recorded digests.

        Raises:
            PipelineError: for a missing record, and a file that is missing, damaged or of another
                run.
        """
        artifact = cls.read(folder / ARTIFACT_FILE)
        for file, digest in artifact.digests.items():
            checked(folder / file, digest)
        return artifact
