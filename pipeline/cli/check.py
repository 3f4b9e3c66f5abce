"""Find mistakes in params.yaml before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch
import yaml
from torch import nn
from voluptuous import Invalid

from pipeline.attribution.gradcam import require_captum
from pipeline.attribution.places import strips
from pipeline.backends.base.registry import backend
from pipeline.cli.params import Params
from pipeline.compile.ladder import find_rung
from pipeline.compile.untrained import Shape
from pipeline.core.errors import PipelineError
from pipeline.data.sources import find_source
from pipeline.data.unlabelled import list_unlabelled
from pipeline.distill.losses.registry import WHERE as LOSSES
from pipeline.distill.losses.registry import find_loss
from pipeline.distill.objective import Distillation
from pipeline.distill.robust import WHERE as ROBUST
from pipeline.networks.build import build_network
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.pretrained import start_from
from pipeline.prune.cost import check_goal
from pipeline.prune.coupling import library
from pipeline.prune.steps import check_prunable
from pipeline.robustness.autoattack import require_autoattack
from pipeline.training.auto import Facts, plan_recipe
from pipeline.training.few_labels import check_unmixed
from pipeline.training.recipe import check_recipe

_CLASSES, _SIZE, _CHANNELS, _IMAGES = 10, 64, 3, 10_000  # stand-ins for what the data decides


def shape_of(params: Params) -> Shape:
    """What params.yaml says about images and logits, and stand-ins for what the data decides."""
    data = params.data
    return Shape(
        image_size=_SIZE if data.image_size == "auto" else data.image_size,
        channels=_CHANNELS if data.channels == "auto" else data.channels,
        classes=_CLASSES,
    )


def check_lock(file: Path = Path("dvc.lock"), running: Path = Path(".dvc/tmp/rwlock")) -> None:
    """Raise `PipelineError` for a file that DVC was killed in the middle of writing.

    DVC 3.67 writes both in place, and then refuses what it left half-written.

    Args:
        file: of what has been run. A YAML document of DVC's schema.
        running: of what is being read and written. JSON.
    """
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA  # type: ignore[import-untyped]

    told = "is half-written: DVC was killed while it wrote the file"
    with suppress(FileNotFoundError):
        try:
            COMPILED_LOCKFILE_SCHEMA(yaml.load(file.read_text(), yaml.CSafeLoader))
        except (yaml.YAMLError, UnicodeDecodeError, Invalid):
            fix = (
                f"`git checkout {file}` (without git: delete it), then run the same command again; "
                "finished stages come back from DVC's run cache"
            )
            raise PipelineError(told, where=str(file), fix=fix) from None
    with suppress(FileNotFoundError):
        try:
            json.loads(running.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError):
            fix = "delete it while no other DVC runs here, then run the same command again"
            raise PipelineError(told, where=str(running), fix=fix) from None


def check(params: Params) -> None:
    """Check that this machine can do what params.yaml asks for.

    Builds every enabled network with its weights, taps and losses, after `check_settings`, and
    tries whether those of `prune.enabled` can lose channels.

    Raises:
        PipelineError: for the first mistake.
    """
    check_settings(params)
    unlabelled = list_unlabelled(params.data.unlabelled)
    share = 0.5 if unlabelled or params.data.labels is not None else 1.0
    shape = shape_of(params)
    size, channels = shape.image_size, shape.channels
    build = partial(build_network, classes=shape.classes, channels=channels)
    pixels = torch.zeros(1, size, size, channels, dtype=torch.uint8)
    normalisation = student_normalisation(channels)
    teachers = {}
    for name in params.teachers.enabled:
        teacher = params.teachers.zoo[name]
        own = size if teacher.input_size == "auto" else teacher.input_size
        network = build(teacher.network, image_size=own)
        _check_weights(network, teacher.network, params, channels)
        teachers[name] = PixelsToLogits(network, normalisation, own)
        if share < 1 and teacher.views.unlabelled != 0:
            check_unmixed(teacher.views.augment, name)
    for name in params.students.enabled:
        student = params.students.zoo[name]
        network = build(student, image_size=size)
        _check_weights(network, student, params, channels)
        model = PixelsToLogits(network, normalisation)
        distill, _ = params.own(name)
        with _own_losses(name, params):
            Distillation(
                model, teachers, distill.losses, student.taps, params.teachers, pixels,
                labelled_share=1.0 if params.views.unlabelled == 0 else share,
                accumulate=distill.training.accumulate, robust=distill.robust,
            )  # fmt: skip
        if name in params.prune.enabled:
            known = "auto" not in (params.data.image_size, params.data.channels)
            check_prunable(params, name, shape, network, known=known)


def check_settings(params: Params) -> None:
    """What can be checked without a network.

    The source, the losses with their options, the rungs, the packages of every enabled backend, of
    pruning, attribution and AutoAttack, pruning's goal, and each optimizer with its schedule.

    Raises:
        PipelineError: for the first mistake.
    """
    for name in params.backends.enabled:
        backend(name).check(params.backends.settings(name))
    for rung in params.quantize.rungs:
        find_rung(rung)
    if params.robustness.enabled and params.robustness.autoattack:
        require_autoattack()
    find_source(params.data).check(params.data)
    if params.prune.enabled:
        library()
        check_goal(params)
    size = shape_of(params).image_size
    if params.attribution.enabled:
        require_captum()
        if params.data.image_size != "auto":
            strips(size, params.attribution.grid, params.attribution.patch)
    for name in params.teachers.enabled:
        teacher = params.teachers.zoo[name]
        own = size if teacher.input_size == "auto" else teacher.input_size
        about = Facts(_IMAGES, own, teacher.network.pretrained)
        check_recipe(plan_recipe(teacher.training, about, "teachers"), f"teachers.zoo.{name}")
    for name in params.students.enabled:
        about = Facts(_IMAGES, size, params.students.zoo[name].pretrained)
        distill, _ = params.own(name)
        with _own_losses(name, params):
            for term in distill.losses:
                find_loss(term)
        recipe = plan_recipe(distill.training, about, "students")
        check_recipe(recipe, f"distill.training for the student {name}")


@contextmanager
def _own_losses(name: str, params: Params) -> Iterator[None]:
    """Within this, what is wrong with a part of `distill` that the student has of its own is told
    of its recipe."""
    try:
        yield
    except PipelineError as error:
        part = str(error.where).removeprefix("distill.")
        own = error.where in (LOSSES, ROBUST) and part in params.students.zoo[name].recipe
        if not own:
            raise
        where = f"students.zoo.{name}.recipe.{part}"
        raise PipelineError(error.what, where=where, fix=error.fix) from None


def _check_weights(network: nn.Module, settings: Network, params: Params, channels: int) -> None:
    """Load a weights file for trial; those of timm are fetched when training starts."""
    if settings.weights_file(params.checkpoints) is not None:
        start_from(network, settings, params.checkpoints, (), channels)
