"""Untrained students through export and every backend: what a runtime cannot do shows at once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.job import Compiled, Compiler, Job
from pipeline.backends.base.params import Backends
from pipeline.backends.base.registry import backend
from pipeline.compile.inside import look_inside
from pipeline.compile.params import CompileParams
from pipeline.compile.student import check_execution
from pipeline.core.errors import PipelineError
from pipeline.data.records import Manifest
from pipeline.export.onnx import export_onnx
from pipeline.networks.branches import fuse_branches
from pipeline.networks.build import build_network
from pipeline.networks.inference import predict, set_up_torch
from pipeline.networks.layers import list_layers
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.records import ModelCard, Shapes
from pipeline.networks.weights import save_model

IMAGES = 16
"""Random images that calibrate int8; the first ones are compared in float and int8."""


@dataclass(frozen=True)
class Shape:
    """What the data decides about a student."""

    image_size: int
    channels: int
    classes: int


@dataclass(frozen=True)
class Rehearsed:
    """An untrained student, exported into a folder."""

    job: Job
    """For any artifact of it."""
    logits: NDArray[np.float32]
    """torch's, [IMAGES, classes], of the job's calibration images."""


def rehearse(params: CompileParams, opset: int, shape: Shape) -> Iterator[str | PipelineError]:
    """Export every enabled student and compile it for every enabled backend.

    The weights are untrained and the images random. Everything is made in a temporary folder.

    Args:
        params: students, backends, their precisions and `quantize.min_int8_share` are read.
        opset: of the ONNX files.
        shape: of the images and logits.

    Yields:
        A line before each step, and an error for each step that fails: one for a student that
        cannot be exported, else one per backend.
    """
    least = params.quantize.min_int8_share
    for name in params.students.enabled:
        with tempfile.TemporaryDirectory() as scratch:
            yield f"{name}: export"
            try:
                network = params.students.zoo[name]
                student = untrained(name, network, shape, opset, Path(scratch))
            except PipelineError as error:
                yield error
                continue
            for its in params.backends.enabled:
                precisions = params.backends.settings(its).precisions
                yield f"{name}: {backend(its).title}, {', '.join(precisions)}"
                try:
                    compile_untrained(student, params.backends, its, least)
                except PipelineError as error:
                    yield error


def untrained(name: str, network: Network, shape: Shape, opset: int, folder: Path) -> Rehearsed:
    """Export an untrained student, whose batch norms know the statistics of random images.

    Args:
        name: of the student.
        network: of it.
        shape: of its images and logits.
        opset: of the ONNX file.
        folder: an empty one.

    Raises:
        PipelineError: where it cannot be built or exported.
    """
    set_up_torch(0)
    size, channels = shape.image_size, shape.channels
    built = build_network(network, classes=shape.classes, channels=channels, image_size=size)
    return with_random_statistics(name, network, built, shape, opset, folder)


def with_random_statistics(
    name: str,
    network: Network,
    built: nn.Module,
    shape: Shape,
    opset: int,
    folder: Path,
    shapes: Shapes | None = None,
) -> Rehearsed:
    """Export a network after its batch norms have taken the statistics of random images.

    Args:
        name: of the student.
        network: of it.
        built: the same as a module; is changed.
        shape: of its images and logits.
        opset: of the ONNX file.
        folder: an empty one.
        shapes: of a pruned network.

    Raises:
        PipelineError: where it cannot be exported.
    """
    size, channels = shape.image_size, shape.channels
    images = _blocks(size, channels)
    normalisation = student_normalisation(channels)
    model = PixelsToLogits(built.to(memory_format=torch.channels_last), normalisation)  # type: ignore[call-overload]
    for module in built.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None  # statistics are the plain mean over all passes, here of one
    with torch.no_grad():
        model.train()(torch.from_numpy(images))
    classes = tuple(f"class {i}" for i in range(shape.classes))
    card = ModelCard(
        **network.model_dump(exclude={"recipe", "taps", "weights", "normalisation"}),
        image_size=size, input_size=size, channels=channels, classes=classes,
        normalisation=normalisation, parameters=0, seed=0, epochs=0, best_epoch=0, val_top1=0.0,
        data_digest="", versions={}, shapes=shapes,
    )  # fmt: skip
    manifest = Manifest(
        source="random", licence="none", classes=classes, image_size=size,
        stored_size=size, channels=channels,
        counts={}, digests={}, calibration_digest="", mean=normalisation.mean,
        std=normalisation.std, rejected=(),
    )  # fmt: skip
    save_model(folder, built, card)
    fuse_branches(built.eval())
    file = folder / "model.onnx"
    export_onnx(model.eval(), card, opset, file)
    artifact = Artifact(name, "any", "any")
    job = Job(artifact, file, folder, images, manifest, list_layers(model, size, channels))
    return Rehearsed(job, predict(model, images).numpy())


def _blocks(size: int, channels: int) -> NDArray[np.uint8]:
    """Images [IMAGES, size, size, channels] of 4 x 4 blocks of random colours.

    An untrained network hardly tells one image of noise from another.
    """
    colours = np.random.default_rng(0).integers(0, 256, (IMAGES, 4, 4, channels), np.uint8)
    blocks = np.arange(size) * 4 // size
    return colours[:, blocks][:, :, blocks]


def compile_untrained(
    student: Rehearsed, backends: Backends, name: str, least: float
) -> dict[str, NDArray[np.float32]]:
    """Compile a student for the backend `name` and check each artifact as the stage does.

    Args:
        student: what `untrained` gave.
        backends: their settings.
        name: of the backend.
        least: see `quantize.min_int8_share`.

    Returns:
        By precision, logits [IMAGES, classes] of the job's calibration images.

    Raises:
        PipelineError: for the first precision that the backend cannot do.
    """
    settings = backends.settings(name)
    compiler = backend(name).compiler(settings)
    logits = {}
    for precision in settings.precisions:
        with tempfile.TemporaryDirectory() as scratch:
            made = compile_one(student, name, compiler, precision, least, Path(scratch))
            logits[precision] = made[1]
    return logits


def compile_one(
    student: Rehearsed, name: str, compiler: Compiler, precision: str, least: float, folder: Path
) -> tuple[Compiled, NDArray[np.float32]]:
    """Compile a student at one precision of the backend `name`, and check it as the stage does.

    Args:
        student: what `untrained` gave.
        name: of the backend.
        compiler: of it.
        precision: one of its own.
        least: see `quantize.min_int8_share`.
        folder: an empty one, for the artifact.

    Returns:
        What was compiled, and its logits [IMAGES, classes] of the job's calibration images.

    Raises:
        PipelineError: where the backend cannot do it.
    """
    spec, artifact = backend(name), Artifact(student.job.artifact.student, name, precision)
    job = replace(student.job, artifact=artifact)
    compiled = compiler.compile(job, folder)
    check_execution(job, compiled, least)
    file = folder / compiled.model_file
    logits = spec.load(file, threads=1)(job.calibration)
    if artifact.int8:
        look_inside(spec, compiler, job, file, job.calibration)
    if not np.isfinite(logits).all():
        raise PipelineError("some logits are not finite numbers", where=f"compile of {artifact}")
    return compiled, logits
