"""What every runtime offers to the rest: compile, load, inspect."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import FloatProduct, Manifest, Partitions, ProductLayer, Proof
from pipeline.errors import PipelineError

T = TypeVar("T")

Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Raw pixels uint8 [N, H, W, C] in, logits float32 [N, classes] out, any N >= 1."""

FloatRunner = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Normalised pixels float32 [N, H, W, C] in, logits float32 [N, classes] out."""

LayerOutputs = dict[str, NDArray[np.float32]]
"""By name of a convolution or product, float32 [N, elements], channels first."""


@dataclass(frozen=True)
class Recipe:
    """How int8 is made; the plain one is the backend's own."""

    ranges: str | None = None
    """Which of the backend's `ranges` estimates activations; null: its default."""
    bias_correction: bool = False
    """Full correction of biases, where the backend has it."""
    float_layers: tuple[str, ...] = ()
    """Convolutions and products that stay in float, by module name in the student."""

    def __str__(self) -> str:
        parts = [f"{self.ranges} ranges"] if self.ranges else []
        parts += ["full bias correction"] if self.bias_correction else []
        parts += [f"in float: {', '.join(self.float_layers)}"] if self.float_layers else []
        return "; ".join(parts) or "as the backend has it"


@dataclass(frozen=True)
class Job:
    """One student at one precision, to be compiled into an empty folder."""

    student: str
    precision: str
    onnx: Path
    student_folder: Path
    calibration: NDArray[np.uint8]
    manifest: Manifest
    layers: tuple[ProductLayer, ...] = ()
    """The student's convolutions and linear layers, in order of execution."""
    recipe: Recipe = Recipe()

    def kept(self, products: Sequence[T]) -> tuple[T, ...]:
        """Those of a graph's convolutions and products that the recipe keeps in float.

        Graphs hold them in the order in which the student executes them. Raises
        `PipelineError` where their number differs.
        """
        if self.recipe.float_layers and len(products) != len(self.layers):
            raise PipelineError(
                f"layers cannot be kept in float: the student has {len(self.layers)} convolutions "
                f"and products, the graph {len(products)}",
                where=self.student,
            )
        places = {layer.name: place for place, layer in enumerate(self.layers)}
        return tuple(products[places[name]] for name in self.recipe.float_layers)


@dataclass(frozen=True)
class Compiled:
    """What a compiler did; `kept_float` names the products that the recipe left in float."""

    model_file: str
    quantizer: str | None
    proof: Proof
    notes: tuple[str, ...] = ()
    kept_float: tuple[str, ...] = ()


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product that a runtime executes for one image.

    `per_channel`: whether its int8 weights have a scale for each output channel; None if it
    has no int8 weights.
    """

    name: str
    macs: int
    int8: bool
    per_channel: bool | None


def matrix_macs(left: Sequence[int], output: Sequence[int]) -> int:
    """Multiply-accumulates of a matrix product [..., M, K] x [..., K, N] = [..., M, N].

    `left` may be transposed, thus [..., K, M].
    """
    inner = left[-2] * left[-1] // output[-2]
    return math.prod(output) * inner


def prove(
    products: Iterable[Product],
    input_type: str,
    output_type: str,
    partitions: Partitions | None = None,
) -> Proof:
    """The record of all `products` that a runtime executes."""
    products = list(products)
    floats = [FloatProduct(name=p.name, macs=p.macs) for p in products if not p.int8]
    weights = [p.per_channel for p in products if p.per_channel is not None]
    return Proof(
        macs=sum(product.macs for product in products),
        float_products=tuple(sorted(floats, key=lambda product: -product.macs)),
        per_channel=all(weights) if weights else None,
        partitions=partitions,
        input_type=input_type,
        output_type=output_type,
    )


class Backend(Protocol):
    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    """Distributions that `compile` needs; pyproject.toml pins them in the extra `name`."""
    ranges: ClassVar[tuple[str, ...]]
    """Estimators of activation ranges that a recipe may ask for beside the default one."""
    bias_correction: ClassVar[bool]
    """Whether a recipe may ask for full bias correction beside the default."""

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write the runtime's own file(s) into `folder` and inspect them."""

    def load(self, model: Path, threads: int) -> Runner:
        """Open a compiled file for inference on `threads` CPU threads (or its accelerator)."""

    def in_float(self, job: Job, folder: Path) -> Path:
        """The model that `compile` quantizes, where it lies or in the empty `folder`."""

    def layer_outputs(self, model: Path, images: NDArray[np.uint8]) -> LayerOutputs:
        """What the convolutions and products of a model give for `images` [N, H, W, C].

        As the next layer reads it, thus after a ReLU that is fused, and after rounding. The
        float model has them in order of execution, under the names that its int8 one has, too.
        """

    def float_fed(self, model: Path) -> FloatRunner:
        """An int8 artifact that takes (x - 128) / 64 in float and quantizes it, not pixels x.

        Raises `PipelineError` for a graph that begins in an unknown way.
        """

    def evaluator(self) -> str | None:
        """Name and version of the runtime that `load` uses here; null if it cannot run here."""

    def unmeasurable(self) -> str | None:
        """Why latencies cannot be taken here (no package, no GPU); null where they can."""


def opened_bytes(model: Path) -> int:
    """Bytes that the runtime opens: the model, and OpenVINO's weights beside it."""
    weights = model.with_suffix(".bin")
    return model.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)


def flat(values: NDArray[Any]) -> NDArray[np.float32]:
    """What a layer gives, channels first, as float32 [N, elements]."""
    return np.asarray(values, np.float32).reshape(len(values), -1)


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Installed versions by distribution name; `PipelineError` names what is missing."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise PipelineError(
                f"the package {package} is not installed",
                fix="`python -m pipeline doctor` prints the command that installs it",
            ) from None
    return found
