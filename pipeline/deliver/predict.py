"""Classes with probabilities for image files, from a compiled artifact by its own runtime."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from pipeline.backends.registry import NAMES, backend
from pipeline.contracts import Artifact, artifact_folder
from pipeline.data.images import load_image
from pipeline.errors import PipelineError
from pipeline.measure.accuracy import probabilities
from pipeline.measure.compile import precisions
from pipeline.params import load_params


def predict(
    images: list[Path], student: str, backend_name: str, precision: str, top: int = 3
) -> dict[str, Any]:
    """The `top` likeliest classes of each image, likeliest first, by the runtime named.

    `{"student", "backend", "precision", "runtime", "images": [{"image", "classes": [{"class",
    "probability"}]}]}`. Raises `PipelineError` for a name that is not known, an artifact that
    is not compiled or was changed, a runtime that is not installed, and an image that can't be
    read.
    """
    _known(student, load_params().students.zoo, "student")
    _known(backend_name, NAMES, "backend")
    _known(precision, precisions(backend_name), f"precision of {backend_name}")
    folder = artifact_folder(student, backend_name, precision)
    if not (folder / "artifact.json").exists():
        raise PipelineError(
            f"{student} is not compiled for {backend_name} at {precision} yet",
            where=str(folder),
            fix="name it in params.yaml (students.enabled, backends) and run `dvc repro`",
        )
    artifact = Artifact.read_whole(folder)
    runtime = backend(backend_name)
    used = runtime.evaluator()
    if used is None:
        raise PipelineError(
            f"{backend_name} is not installed",
            fix="`python -m pipeline doctor` prints the command that installs it",
        )
    pixels = [load_image(image, artifact.image_size, artifact.channels) for image in images]
    run = runtime.load(folder / artifact.model_file, threads=1)
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


def _known(name: str, known: Iterable[str], what: str) -> None:
    names = list(known)
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(names)}"
    raise PipelineError(f"there is no {what} `{name}`; {hint}")
