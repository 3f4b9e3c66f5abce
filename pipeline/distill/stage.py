"""What a teacher's and a student's stage have in common: fit, evaluate, write."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric

from pipeline.contracts import METRICS, Manifest, ModelCard, ModelMetrics, load_split
from pipeline.data.views import Views
from pipeline.distill.checkpoints import forget_checkpoint, run_key
from pipeline.distill.training import Fitted, Objective, Recording, Run, fit
from pipeline.errors import PipelineError
from pipeline.files import whole_folder
from pipeline.networks.build import PixelsToLogits, parameter_count, save_model, tool_versions
from pipeline.networks.inference import evaluate
from pipeline.params import Network, Training

CHECKPOINT_SECONDS = "EDGESTILL_CHECKPOINT_SECONDS"
"""How much work a stop may cost, for machines that are taken away. Results do not depend on
it, so it is no parameter."""


@dataclass(frozen=True)
class Job:
    """One network to train and where it goes; `settings` are all other things that decide it."""

    name: str
    kind: str
    folder: Path
    network: Network
    input_size: int
    training: Training
    epochs: int
    seed: int
    settings: object
    quantization_aware: bool = False


def checkpoint_seconds() -> float:
    text = os.environ.get(CHECKPOINT_SECONDS, "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise PipelineError(f"`{text}` is no number of seconds", where=CHECKPOINT_SECONDS)
    return seconds


def train_and_write(
    fabric: Fabric,
    job: Job,
    manifest: Manifest,
    objective: Objective,
    views: Views,
    recorded: Recording | None = None,
) -> None:
    """Fit on `views`, choose on val, look at test once, and write the folder and its metrics."""
    key = run_key(job, manifest.digests)
    fitted = fit_job(fabric, job, key, objective, views, recorded)
    if fabric.is_global_zero:
        model = objective.model
        card = model_card(job, manifest, model, fitted)
        _, test_top1 = evaluate(model, *load_split("test"))
        with whole_folder(job.folder) as scratch:
            save_model(scratch, model.network, card)
        metrics = ModelMetrics(
            val_top1=fitted.val_top1, test_top1=test_top1, parameters=card.parameters
        )
        metrics.write(METRICS / job.kind / f"{job.name}.json")
        print(f"{job.name}: {card.parameters:,} parameters, test top-1 {test_top1:.4f}")
        forget_checkpoint(key)
    fabric.barrier()


def fit_job(
    fabric: Fabric,
    job: Job,
    key: str,
    objective: Objective,
    views: Views,
    recorded: Recording | None = None,
) -> Fitted:
    """Fit on `views` and choose on val; the caller forgets the checkpoint `key` in the end."""
    objective.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    curves = not job.quantization_aware
    run = Run(job.name, key, job.seed, job.training, job.epochs, checkpoint_seconds(), curves)
    return fit(fabric, objective, views, load_split("val"), run, recorded)


def model_card(job: Job, manifest: Manifest, model: PixelsToLogits, fitted: Fitted) -> ModelCard:
    """What is to be known about the network that `job` made."""
    return ModelCard(
        arch=job.network.arch,
        args=job.network.args,
        stem_stride=job.network.stem_stride,
        stem_pool=job.network.stem_pool,
        hard_swish=job.network.hard_swish,
        image_size=manifest.image_size,
        input_size=job.input_size,
        channels=manifest.channels,
        classes=manifest.classes,
        normalisation=model.normalisation,
        parameters=parameter_count(model),
        seed=job.seed,
        epochs=job.epochs,
        best_epoch=fitted.best_epoch,
        val_top1=fitted.val_top1,
        quantization_aware=job.quantization_aware,
        data_digest=manifest.digests["train_images.npy"],
        versions=tool_versions(),
    )
