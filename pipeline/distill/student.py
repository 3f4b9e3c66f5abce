"""Stage `distill`: a student that learns from labels and teachers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric

from pipeline.contracts import PACKED, SIGNALS, STUDENTS, Manifest
from pipeline.data.views import Views
from pipeline.distill.devices import launch
from pipeline.distill.objective import Distillation, needed_for_features, needs_logits
from pipeline.distill.signals import Signals, student_views, wanted
from pipeline.distill.stage import Job, train_and_write
from pipeline.distill.teachers import load_teacher, teacher_digest
from pipeline.networks.build import PixelsToLogits, build_network, student_normalisation
from pipeline.networks.inference import seed_everything
from pipeline.params import Network, Params


@dataclass(frozen=True)
class Lessons:
    """What a student learns from; `settings` are all things that decide it."""

    objective: Distillation
    views: Views
    recorded: Signals | None
    settings: tuple[object, ...]


def distill_student(
    params: Params, name: str, *, signals: Path = SIGNALS, run_as: str | None = None
) -> None:
    """Stage `distill@S`: models/students/S/, metrics/students/S.json, metrics/curves/S/.

    With `signals.record` the teachers' logits come from their recording, and a teacher runs
    only where its features are compared. `signals` is where the recording lies, `run_as` what
    the results are called where they are to have another name than the student's.
    """
    distill, network = params.distill, params.students.zoo[name]
    fabric = launch(distill.training)
    manifest = Manifest.read(PACKED / "manifest.json")
    seed_everything(params.seed)
    model = PixelsToLogits(
        build_network(
            network,
            classes=len(manifest.classes),
            channels=manifest.channels,
            image_size=manifest.image_size,
        ),
        student_normalisation(manifest.channels),
    )
    taught = lessons(params, network, model, fabric, manifest, signals)
    job = Job(
        name=run_as or name,
        kind="students",
        folder=STUDENTS / (run_as or name),
        network=network,
        input_size=manifest.image_size,
        training=distill.training,
        epochs=params.views.epochs,
        seed=params.seed,
        settings=taught.settings,
    )
    train_and_write(fabric, job, manifest, taught.objective, taught.views, taught.recorded)


def lessons(
    params: Params,
    network: Network,
    model: PixelsToLogits,
    fabric: Fabric,
    manifest: Manifest,
    signals: Path,
) -> Lessons:
    """The losses of `distill` around the student `model`, and the views and logits they take."""
    distill = params.distill
    running = needed_for_features(distill.losses, params.teachers)
    recorded, expected = None, None
    if needs_logits(distill.losses):
        expected = wanted(params, manifest)
        recorded = Signals(expected, signals) if expected.teachers else None
        running = running if recorded else params.teachers.enabled
    views = student_views(params, manifest)
    objective = Distillation(
        model.to(fabric.device),
        {teacher: load_teacher(teacher, manifest).to(fabric.device) for teacher in running},
        distill.losses,
        network.taps,
        params.teachers,
        torch.from_numpy(views.images[:1].copy()).to(fabric.device),
        distill.training.label_smoothing,
    )
    digests = {teacher: teacher_digest(teacher) for teacher in running}
    return Lessons(
        objective, views, recorded, (distill, params.teachers, digests, expected, params.views)
    )
