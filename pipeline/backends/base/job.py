"""What a compiler is given and gives back: a job, an artifact's files and what they execute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ExecutionReport, MicroReport
from pipeline.core.errors import PipelineError, refusals
from pipeline.data.records import Manifest
from pipeline.networks.records import Layer

if TYPE_CHECKING:
    from pipeline.backends.base.spec import BackendSettings

T = TypeVar("T")

FloatRunner = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Normalised pixels float32 [N, H, W, C] in, logits float32 [N, classes] out, any N >= 1."""

LayerOutputs = dict[str, NDArray[np.float32]]
"""By name of a conv or linear layer, float32 [N, elements], channels first."""


@dataclass(frozen=True)
class Recipe:
    """How int8 is made. The plain recipe leaves everything to the backend's defaults."""

    ranges: str | None = None
    """Which of the compiler's `ranges` estimates activation ranges; null: its default."""
    bias_correction: bool = False
    """Full bias correction, where the backend has it."""
    float_layers: tuple[str, ...] = ()
    """Conv and linear layers that stay in float, by module path in the student."""

    def __str__(self) -> str:
        parts = [f"{self.ranges} ranges"] if self.ranges else []
        parts += ["full bias correction"] if self.bias_correction else []
        parts += [f"in float: {', '.join(self.float_layers)}"] if self.float_layers else []
        return "; ".join(parts) or "the backend's defaults"


@dataclass(frozen=True)
class Job:
    """One artifact to be compiled into an empty folder, and what it is made from."""

    artifact: Artifact
    onnx: Path
    """The exported student."""
    weights: Path
    """The folder of the student's weights and card."""
    calibration: NDArray[np.uint8]
    """Raw pixels [N, H, W, C]."""
    manifest: Manifest
    layers: tuple[Layer, ...] = ()
    """The student's conv and linear layers, in order of execution."""
    recipe: Recipe = Recipe()
    rounded: bool = False
    """Whether the student learnt under int8's rounding, to ranges that span the calibration set:
    such ranges suit it, and its biases need no correction."""

    def refusals(
        self, tool: str, kinds: tuple[type[Exception], ...] = (Exception,)
    ) -> AbstractContextManager[None]:
        """Encloses the calls of a converter: see `core.errors.refusals`."""
        return refusals(
            tool,
            kinds,
            where=f"compile of {self.artifact}",
            fix=f"leave `{self.artifact.backend}` out of `backends.enabled`, "
            "or choose another student",
        )

    def kept_float(self, layers: Sequence[T]) -> tuple[T, ...]:
        """Those of a graph's conv and linear `layers` that the recipe keeps in float.

        Args:
            layers: all of them, in the order in which the student executes them.

        Raises:
            PipelineError: where their number differs from the student's.
        """
        if self.recipe.float_layers and len(layers) != len(self.layers):
            raise PipelineError(
                f"layers cannot be kept in float: the student has {len(self.layers)} conv and "
                f"linear layers, the graph {len(layers)}",
                where=str(self.artifact),
            )
        places = {layer.name: place for place, layer in enumerate(self.layers)}
        return tuple(layers[places[name]] for name in self.recipe.float_layers)


@dataclass(frozen=True)
class Compiled:
    """What a compiler made."""

    model_file: str
    """The file in the job's folder that the runtime opens."""
    quantizer: str | None
    """Tool and setting; null for float precisions."""
    execution: ExecutionReport
    """Read back from what the runtime executes."""
    notes: tuple[str, ...] = ()
    """What a user of the artifact should know."""
    kept_float: tuple[str, ...] = ()
    """Runtime names of the layers that the recipe left in float."""
    micro: MicroReport | None = None
    """Where the backend's settings target a microcontroller."""


class Compiler(Protocol):
    """Makes and inspects the artifacts of one backend. The class `Compiler` of its `compile.py`."""

    ranges: ClassVar[tuple[str, ...]] = ()
    """Estimators of activation ranges that a recipe may name, beside the default one."""
    bias_correction: ClassVar[bool] = False
    """Whether a recipe may ask for full bias correction, beside the default one."""

    def __init__(self, settings: BackendSettings) -> None:
        """A compiler with the backend's settings in params.yaml."""

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write the runtime's own file(s) into the empty `folder` and inspect them.

        The same job gives the same bytes, but for engines that are built for a GPU.
        """

    def in_float(self, job: Job, folder: Path) -> Path:
        """The float model that int8 is made from, where it lies or in the empty `folder`."""

    def layer_outputs(self, model: Path, images: NDArray[np.uint8]) -> LayerOutputs:
        """The output of each conv and linear layer of `model` for raw pixels [N, H, W, C].

        Outputs are taken as the next layer reads them: behind a fused ReLU, and rounded. The
        float model lists them in order of execution, by the names that its int8 model has, too.
        """

    def float_fed(self, model: Path) -> FloatRunner:
        """An int8 `model` that takes (x - 128) / 64 in float and quantizes it by itself.

        Raises:
            PipelineError: for a graph that begins in an unknown way.
        """


def opened_bytes(model: Path) -> int:
    """Bytes that the runtime opens: the model, which may be a folder of files, as for Core ML, and
    the weights that OpenVINO puts beside it."""
    if model.is_dir():
        return sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
    weights = model.with_suffix(".bin")
    return model.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)


def flat(values: NDArray[Any]) -> NDArray[np.float32]:
    """A layer's output [N, channels, ...] as float32 [N, elements]."""
    return np.asarray(values, np.float32).reshape(len(values), -1)
