"""What every runtime offers to the rest: compile, load, inspect."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import Manifest
from pipeline.errors import PipelineError

Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Raw pixels uint8 [N, H, W, C] in, logits float32 [N, classes] out, any N >= 1."""


@dataclass(frozen=True)
class Job:
    """One student at one precision, to be compiled into an empty folder."""

    student: str
    precision: str
    onnx: Path
    student_folder: Path
    calibration: NDArray[np.uint8]
    manifest: Manifest


@dataclass(frozen=True)
class Compiled:
    """What a compiler did. `operators` is read from what the runtime executes."""

    model_file: str
    quantizer: str | None
    operators: dict[str, int]
    int8_op_share: float
    notes: tuple[str, ...] = ()


class Backend(Protocol):
    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    """Distributions that `compile` needs; pyproject.toml pins them in the extra `name`."""

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write the runtime's own file(s) into `folder` and inspect them."""

    def load(self, model: Path, threads: int) -> Runner:
        """Open a compiled file for inference on `threads` CPU threads (or its accelerator)."""

    def evaluator(self) -> str | None:
        """Name and version of the runtime that `load` uses here; null if it cannot run here."""

    def unmeasurable(self) -> str | None:
        """Why latencies cannot be taken here (no package, no GPU); null where they can."""


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
