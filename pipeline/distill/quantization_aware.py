"""The last rung for int8: a finished student goes on learning under int8's rounding."""

from __future__ import annotations

from pathlib import Path

from pipeline.contracts import CARD, PACKED, SIGNALS, STUDENTS, Manifest, load_calibration
from pipeline.distill.checkpoints import forget_checkpoint, run_key
from pipeline.distill.devices import launch
from pipeline.distill.fake_quantization import calibrate, fake_quantization
from pipeline.distill.stage import Job, fit_job, model_card
from pipeline.distill.student import lessons
from pipeline.distill.teachers import check_classes
from pipeline.files import sha256, whole_folder
from pipeline.networks.build import WEIGHTS, load_pixels_to_logits, save_model
from pipeline.networks.inference import seed_everything
from pipeline.params import Params, Training


def quantization_aware_student(
    params: Params, name: str, folder: Path, *, signals: Path = SIGNALS
) -> None:
    """Write to `folder` what models/students/`name` becomes under int8's rounding.

    It is a student as any other: float weights and card.json, to be exported and quantized.
    The student learns from the same losses, views and recorded signals as before, of the
    first `quantize.training.epochs` epochs, at that group's rate; adapters of feature losses
    start anew. The ranges of its inputs are fixed by the calibration set before the first
    step. The epoch is chosen on val, under the rounding, and `val_top1` in the card is that.
    The test split is not read, and no metrics are written.
    """
    source, settings = STUDENTS / name, params.quantize.training
    training = rounded_training(params)
    fabric = launch(training)
    manifest = Manifest.read(PACKED / "manifest.json")
    seed_everything(params.seed)
    model, card = load_pixels_to_logits(source)
    check_classes(card, manifest, source / CARD)
    network = params.students.zoo[name]
    grids = calibrate(model.to(fabric.device), load_calibration())
    taught = lessons(params, network, model, fabric, manifest, signals)
    job = Job(
        name=f"{name} in int8",
        kind="students",
        folder=folder,
        network=network,
        input_size=card.input_size,
        training=training,
        epochs=settings.epochs,
        seed=params.seed,
        settings=(*taught.settings, sha256(source / WEIGHTS), grids),
        quantization_aware=True,
    )
    key = run_key(job, manifest.digests)
    with fake_quantization(model.network, grids):
        fitted = fit_job(fabric, job, key, taught.objective, taught.views, taught.recorded)
    if fabric.is_global_zero:
        with whole_folder(folder) as scratch:
            save_model(scratch, model.network, model_card(job, manifest, model, fitted))
        forget_checkpoint(key)
    fabric.barrier()


def rounded_training(params: Params) -> Training:
    """The student's recipe at a rate of its own, which falls from the first step on."""
    update = {
        "lr": params.quantize.training.lr,
        "schedule": "cosine",
        "schedule_options": {},
        "warmup": 0.0,
    }
    return params.distill.training.model_copy(update=update)
