"""The torch networks and runtimes whose maps are made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.attribution.params import AttributionParams
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ARTIFACT_FILE, ArtifactRecord
from pipeline.backends.base.registry import backend
from pipeline.core.errors import PipelineError
from pipeline.data.batches import images_per_call
from pipeline.data.records import Manifest
from pipeline.export.evaluate import Runner
from pipeline.networks.build import build_network
from pipeline.networks.inference import predict, training_device
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits
from pipeline.networks.weights import check_card, load_pixels_to_logits

RANDOM_STUDENTS = 3
_IMAGES = 64
"""From which the batch norms of a student with random weights learn their statistics."""


def load_network(folder: Path, manifest: Manifest) -> PixelsToLogits:
    """A teacher or student on the device that trains; `PipelineError` where it is of other data."""
    model, card = load_pixels_to_logits(folder)
    check_card(card, manifest, folder)
    return model.to(training_device())


def runner(model: PixelsToLogits) -> Runner:
    """A torch network as any runtime: raw pixels in, logits out."""

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = predict(model, pixels).numpy()
        return logits

    return run


def random_students(
    folder: Path, calibration: NDArray[np.uint8], seed: int
) -> Iterator[PixelsToLogits]:
    """The student's architecture with random weights, `RANDOM_STUDENTS` times.

    Batch norms take their statistics from calibration images: with those of timm, 0 and 1, an
    untrained network hardly tells one image from another.

    Args:
        folder: of the student.
        calibration: images uint8 [N, H, W, C].
        seed: of the weights.
    """
    trained, card = load_pixels_to_logits(folder)
    given = {"arch", "args", "stem_stride", "stem_pool", "hard_swish"}
    count = max(2, images_per_call(_IMAGES, *calibration.shape[1:3]))
    pixels = torch.from_numpy(calibration[:count])
    for draw in range(RANDOM_STUDENTS):
        torch.manual_seed(seed + 1 + draw)
        network = build_network(
            Network(**card.model_dump(include=given)),
            classes=len(card.classes),
            channels=card.channels,
            image_size=card.input_size,
            shapes=card.shapes,
        )
        for module in network.modules() if card.shapes else ():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()  # what was cut has no random weights yet
        model = PixelsToLogits(network, card.normalisation, trained.input_size)
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = None  # a plain mean over all passes, here of one
        with torch.no_grad():
            model.train()(pixels)
        yield model.eval().to(training_device())


def asked_artifacts(params: AttributionParams, student: str) -> dict[Artifact, ArtifactRecord]:
    """The artifacts of a student that params.yaml asks for, with their checked records.

    Raises:
        PipelineError: where none is asked for or none is compiled, and for one that is missing,
            damaged or of another run.
    """
    asked = params.backends.artifacts((student,))
    if not any((artifact.folder / ARTIFACT_FILE).exists() for artifact in asked):
        raise PipelineError(
            f"no artifact of `{student}` is compiled",
            where="models/compiled",
            fix="name it in students.enabled, name precisions in backends, and run "
            "`dvc repro compile`",
        )
    return {artifact: ArtifactRecord.read_whole(artifact.folder) for artifact in asked}


def cannot_run(artifact: Artifact) -> str | None:
    """Why no runtime here gives an artifact's logits; None where one does."""
    spec = backend(artifact.backend)
    return None if spec.evaluator() else f"cannot run here: {spec.unmeasurable()}"


def open_artifact(artifact: Artifact, record: ArtifactRecord) -> Runner:
    """An artifact in its own runtime, on all cores, as `compile` evaluates it."""
    model = artifact.folder / record.model_file
    return backend(artifact.backend).load(model, os.cpu_count() or 1)
