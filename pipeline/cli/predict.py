"""Classes with probabilities for image files, by a compiled artifact in its own runtime."""

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
from pipeline.backends.base.registry import backend
from pipeline.cli.params import load_params
from pipeline.core.arguments import require
from pipeline.core.errors import PipelineError
from pipeline.data.images import ImageError, load_image


def predict(
    images: list[Path], student: str, backend_name: str, precision: str, top: int = 3
) -> dict[str, Any]:
    """Classify images with one artifact.

    Args:
        images: files, of any size.
        student: in params.yaml.
        backend_name: registered.
        precision: one that the backend has.
        top: number of classes per image.

    Returns:
        `{"student", "backend", "precision", "runtime", "images": [{"image", "classes": [{"class",
        "probability"}]}]}`, the most probable classes first.

    Raises:
        PipelineError: for an unknown name, an artifact that is not compiled or was changed, a
            runtime that is not installed, and an image that cannot be read.
    """
    require(student, load_params().students.zoo, "student", "--student")
    its = backend(backend_name)
    require(precision, its.precisions, "precision", f"--precision for {its.title}")
    folder = Artifact(student, backend_name, precision).folder
    if not (folder / "artifact.json").exists():
        raise PipelineError(
            f"{student} is not compiled for {backend_name} at {precision} yet",
            where=str(folder),
            fix="name it in params.yaml (students.enabled, backends) and run `dvc repro`",
        )
    artifact = ArtifactRecord.read_whole(folder)
    pixels = [_load(image, artifact) for image in images]
    run = its.load(folder / artifact.model_file, threads=1)
    shares = probabilities(np.concatenate([run(image[None]) for image in pixels]))
    return {
        "student": student,
        "backend": backend_name,
        "precision": precision,
        "runtime": its.evaluator(),
        "images": [
            {"image": str(image), "classes": _likeliest(row, artifact.classes, top)}
            for image, row in zip(images, shares, strict=True)
        ],
    }


def predictions_table(answer: dict[str, Any]) -> Table:
    """One row per image with its classes and their probabilities in percent."""
    table = Table("Image", "Classes", header_style="bold")
    for image in answer["images"]:
        classes = [f"{found['class']} {found['probability']:.1%}" for found in image["classes"]]
        table.add_row(Text(image["image"], overflow="fold"), Text(", ".join(classes)))
    return table


def _load(image: Path, artifact: ArtifactRecord) -> NDArray[np.uint8]:
    try:
        return load_image(image, artifact.image_size, artifact.channels, artifact.stored_size)
    except ImageError as error:
        raise PipelineError(str(error), where=str(image)) from None


def _likeliest(
    row: NDArray[np.float64], classes: tuple[str, ...], top: int
) -> list[dict[str, Any]]:
    order = np.argsort(-row, kind="stable")[:top]
    return [{"class": classes[i], "probability": round(float(row[i]), 6)} for i in order]
