"""Stage `distill`: a student that learns from labels and teachers."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.contracts import PACKED, SIGNALS, STUDENTS, Manifest
from pipeline.distill.devices import launch
from pipeline.distill.objective import Distillation, needed_for_features, needs_logits
from pipeline.distill.signals import Signals, student_views, wanted
from pipeline.distill.stage import Job, train_and_write
from pipeline.distill.teachers import load_teacher, teacher_digest
from pipeline.networks.build import PixelsToLogits, build_network, student_normalisation
from pipeline.networks.inference import seed_everything
from pipeline.params import Params


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
    job = Job(
        name=run_as or name,
        kind="students",
        folder=STUDENTS / (run_as or name),
        network=network,
        input_size=manifest.image_size,
        training=distill.training,
        epochs=params.views.epochs,
        seed=params.seed,
        settings=(distill, params.teachers, digests, expected, params.views),
    )
    train_and_write(fabric, job, manifest, objective, views, recorded)
