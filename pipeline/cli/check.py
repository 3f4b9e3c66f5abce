"""Find mistakes in params.yaml before anything is trained."""

from __future__ import annotations

from functools import partial

import torch

from pipeline.backends.base.registry import backend
from pipeline.backends.base.spec import versions
from pipeline.cli.params import Params
from pipeline.cli.rehearsal import Shape
from pipeline.compile.ladder import find_rung
from pipeline.core.errors import PipelineError
from pipeline.data.sources import find_source
from pipeline.distill.objective import Distillation
from pipeline.networks.build import build_network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.training.recipe import check_training

_CLASSES, _SIZE, _CHANNELS = 10, 64, 3  # stand-ins for what the data decides


def shape_of(params: Params) -> Shape:
    """What params.yaml says about images and logits, and stand-ins for what the data decides."""
    data = params.data
    return Shape(
        image_size=_SIZE if data.image_size == "auto" else data.image_size,
        channels=_CHANNELS if data.channels == "auto" else data.channels,
        classes=_CLASSES,
    )


def check(params: Params) -> None:
    """Check that this machine can do what params.yaml asks for.

    Builds every enabled network with its optimizer, schedule, taps and losses. Looks for the
    source, the checkpoints, the rungs and the packages of every enabled backend.

    Raises:
        PipelineError: for the first mistake.
    """
    for name in params.backends.enabled:
        versions(backend(name).packages)
    for rung in params.quantize.rungs:
        find_rung(rung)
    find_source(params.data).check(params.data)
    shape = shape_of(params)
    size, channels = shape.image_size, shape.channels
    build = partial(build_network, classes=shape.classes, channels=channels)
    pixels = torch.zeros(1, size, size, channels, dtype=torch.uint8)
    normalisation = student_normalisation(channels)
    check_training(params.distill.training, "distill")
    teachers = {}
    for name in params.teachers.enabled:
        teacher = params.teachers.zoo[name]
        check_training(teacher.training, f"teachers.zoo.{name}")
        checkpoint = params.teachers.checkpoint_file(name)
        if checkpoint is not None and not checkpoint.is_file():
            raise PipelineError("there is no such checkpoint", where=str(checkpoint))
        own = size if teacher.input_size == "auto" else teacher.input_size
        network = build(teacher.network, image_size=own)
        teachers[name] = PixelsToLogits(network, normalisation, own)
    for name in params.students.enabled:
        student = params.students.zoo[name]
        model = PixelsToLogits(build(student, image_size=size), normalisation)
        losses = params.distill.losses
        Distillation(model, teachers, losses, student.taps, params.teachers, pixels)
