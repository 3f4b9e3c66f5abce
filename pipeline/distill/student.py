"""Stage `distill`: a student that learns from labels and from teachers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric

from pipeline.data.records import PACKED, Manifest
from pipeline.data.views import Views
from pipeline.distill.objective import Distillation, needed_for_features, needs_logits
from pipeline.distill.params import DistillParams
from pipeline.distill.recording import RecordedLogits, recorded_plan, student_views, wanted
from pipeline.distill.records import TEACHER_LOGITS
from pipeline.distill.teachers import load_teacher, teacher_digest
from pipeline.networks.branches import has_branches
from pipeline.networks.build import build_network
from pipeline.networks.folding import fold_normalisation
from pipeline.networks.inference import set_up_torch
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.pretrained import start_from
from pipeline.networks.records import STUDENTS
from pipeline.training.auto import facts, plan_int8_phase, plan_recipe, plan_views, tell
from pipeline.training.balance import log_prior
from pipeline.training.devices import launch
from pipeline.training.params import Recipe
from pipeline.training.task import Task, train_and_write


@dataclass(frozen=True)
class Lessons:
    """What a student learns from; `settings` is everything that decides it."""

    objective: Distillation
    views: Views
    recorded: RecordedLogits | None
    settings: tuple[object, ...]


def distill_student(
    params: DistillParams,
    name: str,
    *,
    teacher_logits: Path = TEACHER_LOGITS,
    run_as: str | None = None,
    seed: int | None = None,
) -> None:
    """Stage `distill@S`: models/students/S/, metrics/students/S.json, metrics/curves/S/.

    With `teacher_logits.record`, the logits come from the recording; a teacher then runs only if a
    loss compares its features.

    Args:
        params: what the stage reads.
        name: the student S.
        teacher_logits: the folder of the recording.
        run_as: the name of the results, where it is not the student's.
        seed: of initial weights, order and dropout, where it is not that of the views.
    """
    network = params.students.zoo[name]
    distill, shown = params.own(name)
    fabric = launch(distill.training)
    manifest = Manifest.read(PACKED / "manifest.json")
    seed = params.seed if seed is None else seed
    set_up_torch(seed)
    built = build_network(
        network,
        classes=len(manifest.classes),
        channels=manifest.channels,
        image_size=manifest.image_size,
    )
    normalisation = student_normalisation(manifest.channels)
    own, started = start_from(
        built, network, params.checkpoints, manifest.classes, manifest.channels
    ) or (normalisation, None)
    fold_normalisation(built, own, normalisation)
    about = facts(manifest, manifest.image_size, params.views, started)
    recipe = plan_recipe(distill.training, about, "students")
    plan = plan_views(shown, about, "students")
    int8_phase = plan_int8_phase(distill.int8_phase, about, has_branches(built))
    if fabric.is_global_zero:
        tell(name, started, plan, recipe, about, int8_phase)
        if distill.robust is not None:
            print(f"{name}: {distill.robust}")
    model = PixelsToLogits(built, normalisation)
    params = params.model_copy(update={"distill": distill})
    taught = lessons(params, network, recipe, model, fabric, manifest, teacher_logits)
    task = Task(
        name=run_as or name,
        kind="students",
        folder=STUDENTS / (run_as or name),
        network=network,
        input_size=manifest.image_size,
        training=recipe,
        epochs=plan.epochs,
        seed=seed,
        settings=taught.settings,
        int8_phase=int8_phase,
        started_from=started,
        robust=None if distill.robust is None else distill.robust.model_dump(),
    )
    train_and_write(fabric, task, manifest, taught.objective, taught.views, taught.recorded)


def lessons(
    params: DistillParams,
    network: Network,
    recipe: Recipe,
    model: PixelsToLogits,
    fabric: Fabric,
    manifest: Manifest,
    teacher_logits: Path,
) -> Lessons:
    """The losses of `distill` for a student, and the views and teacher logits that they need.

    Args:
        params: what the stage reads.
        network: the student's params.
        recipe: of its training.
        model: the student.
        fabric: whose device is used.
        manifest: of the packed data.
        teacher_logits: the folder of the recording.
    """
    distill = params.distill
    running = needed_for_features(distill.losses, params.teachers)
    recorded, expected = None, None
    if needs_logits(distill.losses):
        expected = wanted(params, manifest)
        recorded = RecordedLogits(expected, teacher_logits) if expected.teachers else None
        running = running if recorded else params.teachers.enabled
    views = student_views(params, manifest, distill.robust)
    plan = recorded_plan(params, manifest)
    objective = Distillation(
        model.to(fabric.device),
        {teacher: load_teacher(teacher, manifest).to(fabric.device) for teacher in running},
        distill.losses,
        network.taps,
        params.teachers,
        torch.from_numpy(views.known[0][:1].copy()).to(fabric.device),
        recipe.label_smoothing,
        log_prior(manifest.counts["train"].values(), recipe.balance),
        views.labelled_share,
        recipe.accumulate,
        distill.robust,
    )
    digests = {teacher: teacher_digest(teacher) for teacher in running}
    return Lessons(objective, views, recorded, (distill, params.teachers, digests, expected, plan))
