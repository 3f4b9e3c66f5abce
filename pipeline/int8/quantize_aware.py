"""Quantization-aware training: a finished student goes on learning under int8's rounding."""

from __future__ import annotations

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256, whole_folder
from pipeline.data.records import PACKED, Manifest, load_calibration
from pipeline.distill.recording import recorded_plan
from pipeline.distill.records import TEACHER_LOGITS
from pipeline.distill.student import lessons
from pipeline.export.onnx import export_onnx
from pipeline.int8.fake_quantization import calibrate, fake_quantization
from pipeline.int8.records import (
    METRICS_FOLDER,
    QUANTIZE_AWARE,
    STATUS,
    QuantizeAwareMetrics,
    QuantizeAwareStatus,
)
from pipeline.int8.stage import QuantizeAwareParams, record_untrained
from pipeline.networks.inference import set_up_torch
from pipeline.networks.records import STUDENTS, ModelCard
from pipeline.networks.weights import check_card, load_pixels_to_logits, save_model
from pipeline.training.auto import facts, plan_recipe
from pipeline.training.checkpoints import forget_checkpoint, run_key
from pipeline.training.devices import launch
from pipeline.training.objective import DivergedError
from pipeline.training.params import Recipe
from pipeline.training.task import Task, fit_task, model_card


def train(params: QuantizeAwareParams, name: str) -> float | str:
    """Train models/students/`name` under int8's rounding into models/quantize_aware/`name`.

    The losses, views and recorded teacher logits are the student's, of the first
    `quantize_aware.epochs` epochs; adapters of feature losses are initialised again. The
    calibration set fixes the ranges of all inputs before the first step. The epoch is chosen on val
    under the rounding. The test split is not read.

    Returns:
        Top-1 on val under the rounding, a fraction; where training diverged, what happened. There
        are no weights then, and the student's int8 artifacts are made without them.

    Raises:
        PipelineError: for a student or a teacher that was made from other data, and for a
            recording of other teacher logits.
    """
    folder = QUANTIZE_AWARE / name
    fabric = launch(params.distill.training)
    manifest = Manifest.read(PACKED / "manifest.json")
    set_up_torch(params.seed)
    model, card = load_pixels_to_logits(STUDENTS / name)
    check_card(card, manifest, STUDENTS / name)
    network = params.students.zoo[name]
    grids = calibrate(model.to(fabric.device), load_calibration(manifest))
    most = recorded_plan(params, manifest).epochs
    if params.quantize_aware.epochs > most:
        raise PipelineError(
            f"{params.quantize_aware.epochs} epochs are more than the {most} of recorded views, "
            "the first of which are used again",
            where="params.yaml: quantize_aware.epochs",
        )
    recipe = rounded(params, card, manifest)
    taught = lessons(params, network, recipe, model, fabric, manifest, TEACHER_LOGITS)
    task = Task(
        name=f"{name} in int8",
        kind="quantize_aware",
        folder=folder,
        network=network,
        input_size=card.input_size,
        training=recipe,
        epochs=params.quantize_aware.epochs,
        seed=params.seed,
        settings=(*taught.settings, card.weights_digest, grids),
        curves=False,
    )
    key = run_key(task, manifest.digests)
    try:
        with fake_quantization(model.network, grids):
            fitted = fit_task(fabric, task, key, taught.objective, taught.views, taught.recorded)
    except DivergedError as error:  # on all ranks at the same step
        reason = f"training diverged: {error.what}; quantize_aware.lr may be too high"
        if fabric.is_global_zero:
            record_untrained(name, reason)
            forget_checkpoint(key)
        fabric.barrier()
        return reason
    if fabric.is_global_zero:
        with whole_folder(folder) as scratch:
            save_model(scratch, model.network, model_card(task, manifest, model, fitted))
            plain, card = load_pixels_to_logits(scratch)
            export_onnx(plain, card, params.export.opset, scratch / "model.onnx")
            status = QuantizeAwareStatus(trained=True, onnx_digest=sha256(scratch / "model.onnx"))
            status.write(scratch / STATUS)
            QuantizeAwareMetrics(val_top1=fitted.val_top1).write(METRICS_FOLDER / f"{name}.json")
        forget_checkpoint(key)
    fabric.barrier()
    return fitted.val_top1


def rounded(params: QuantizeAwareParams, card: ModelCard, manifest: Manifest) -> Recipe:
    """The student's recipe with another learning rate, which falls from the first step on."""
    update = {
        "lr": params.quantize_aware.lr,
        "schedule": "cosine",
        "schedule_options": {},
        "warmup": 0.0,
        "freeze": "none",
    }
    about = facts(manifest, manifest.image_size, params.views, card.started_from)
    return plan_recipe(params.distill.training, about, "students").model_copy(update=update)
