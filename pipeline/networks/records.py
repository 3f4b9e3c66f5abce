"""What is recorded beside the weights of every teacher and student."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from pipeline.core.files import checked
from pipeline.core.records import Record

TEACHERS = Path("models/teachers")
STUDENTS = Path("models/students")
PRUNED = Path("models/pruned")
"""Students that lost channels: see `networks.shipped`."""

WEIGHTS = "model.safetensors"
"""In the folder of every teacher and student."""

CARD = "card.json"
"""Beside the weights: a `ModelCard`."""


class Normalisation(Record):
    """x_normalised = (x - mean) / std per channel, x in [0, 255]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class StartedFrom(Record):
    """The weights that training started from, and how they fit the network."""

    source: str = Field(description="timm, or the name of the file")
    sha256: str | None = Field(description="of the file; null for timm's")
    loaded: int = Field(description="tensors that were taken")
    renamed: int = Field(0, description="of these, under another name")
    new: tuple[str, ...] = Field((), description="tensors of the network that stayed random")
    left_over: tuple[str, ...] = Field((), description="tensors of the file without a place")

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors from {self.source}"]
        parts += [f"{self.renamed} renamed"] if self.renamed else []
        for what, names in (("new", self.new), ("left over", self.left_over)):
            if names:
                more = ", ..." if len(names) > 3 else ""
                parts.append(f"{len(names)} {what}: {', '.join(names[:3])}{more}")
        return "; ".join(parts)


class Shapes(Record):
    """What a pruned network has in place of what its architecture says."""

    tensors: dict[str, tuple[int, ...]] = Field(
        description="shapes of the weights, biases and statistics that lost channels, by name"
    )
    groups: dict[str, int] = Field(
        description="of the convolutions whose number of groups changed, by path: depthwise ones"
    )


class ModelCard(Record):
    """models/teachers/T/card.json and models/students/S/card.json: how a network was made."""

    arch: str
    args: dict[str, Any]
    stem_stride: Literal["auto", 1, 2]
    stem_pool: Literal["auto"] | bool
    hard_swish: Literal["keep", "relu6"] = "keep"
    image_size: int = Field(description="height and width of the data, in pixels")
    input_size: int = Field(description="height and width that images are resized to")
    channels: int
    classes: tuple[str, ...]
    normalisation: Normalisation
    parameters: int
    seed: int
    epochs: int
    best_epoch: int
    val_top1: float
    data_digest: str = Field(description="SHA-256 of the packed train images")
    recipe: dict[str, Any] = Field({}, description="of its training, `auto` replaced")
    int8_phase: float = Field(
        0.0, description="of its steps, the last ones, that computed under int8's rounding"
    )
    started_from: StartedFrom | None = Field(None, description="null: from random weights")
    shapes: Shapes | None = Field(None, description="of a pruned network")
    versions: dict[str, str]
    weights_digest: str = Field("", description="SHA-256 of the weights beside it")

    @classmethod
    def read_beside(cls, folder: Path) -> Self:
        """The card in `folder`, whose weights are those that it describes.

        Raises:
            PipelineError: for a card or weights that are missing, damaged or of another run.
        """
        card = cls.read(folder / CARD)
        checked(folder / WEIGHTS, card.weights_digest)
        return card


class Layer(Record):
    """A convolution or linear layer of a student."""

    name: str = Field(description="path of the module in the network")
    macs: int = Field(description="multiply-accumulates for one image")
    weights: int


class Layers(Record):
    """models/onnx/S/layers.json: a student's convolutions and linear layers."""

    layers: tuple[Layer, ...] = Field(description="in order of execution")
