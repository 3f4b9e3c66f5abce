"""Classes with probabilities for image files, from a compiled artifact by its own runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from pipeline.accuracy.metrics import probabilities
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.registry import (
    backend,
)
from pipeline.cli.params import load_params
from pipeline.core.arguments import require
from pipeline.core.errors import PipelineError
from pipeline.data.images import load_image


def predict(
    images: list[Path], student: str, backend_name: str, precision: str, top: int = 3
) -> dict[str, Any]:
    """The `top` likeliest classes of each image, likeliest first, by the runtime named.

    `{"student", "backend", "precision", "runtime", "images": [{"image", "classes": [{"class",
    "probability"}]}]}`. Raises `PipelineError` for a name that is not known, an artifact that
    is not compiled or was changed, a runtime that is not installed, and an image that can't be
    read.
    """
    require(student, load_params().students.zoo, "student", "--student")
    its = backend(backend_name)
    require(precision, its.precisions, f"precision of {its.title}", "--precision")
    folder = Artifact(student, backend_name, precision).folder
    if not (folder / "artifact.json").exists():
        raise PipelineError(
            f"{student} is not compiled for {backend_name} at {precision} yet",
            where=str(folder),
            fix="name it in params.yaml (students.enabled, backends) and run `dvc repro`",
        )
    artifact = ArtifactRecord.read_whole(folder)
    used = its.evaluator()
    if used is None:
        raise PipelineError(
            f"{backend_name} is not installed",
            fix="`python -m pipeline doctor` prints the command that installs it",
        )
    pixels = [load_image(image, artifact.image_size, artifact.channels) for image in images]
    run = its.load(folder / artifact.model_file, threads=1)
    shares = probabilities(np.concatenate([run(image[None]) for image in pixels]))
    return {
        "student": student,
        "backend": backend_name,
        "precision": precision,
        "runtime": used,
        "images": [
            {"image": str(image), "classes": _likeliest(row, artifact.classes, top)}
            for image, row in zip(images, shares, strict=True)
        ],
    }


def predictions_table(answer: dict[str, Any]) -> Table:
    """One row per image, its classes with their probabilities in percent."""
    table = Table("Image", "Classes", header_style="bold")
    for image in answer["images"]:
        classes = [f"{found['class']} {found['probability']:.1%}" for found in image["classes"]]
        table.add_row(Text(image["image"], overflow="fold"), Text(", ".join(classes)))
    return table


def _likeliest(
    row: NDArray[np.float64], classes: tuple[str, ...], top: int
) -> list[dict[str, Any]]:
    order = np.argsort(-row, kind="stable")[:top]
    return [{"class": classes[i], "probability": round(float(row[i]), 6)} for i in order]
