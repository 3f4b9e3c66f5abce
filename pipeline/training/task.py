"""What the stages that train have in common: fit, evaluate, write."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256, whole_folder
from pipeline.core.records import METRICS, Record
from pipeline.data.recall import Recall, interval
from pipeline.data.records import Manifest, load_calibration, load_split
from pipeline.data.views import Views
from pipeline.networks.build import parameter_count, tool_versions
from pipeline.networks.inference import predict
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits
from pipeline.networks.records import ModelCard, Shapes, StartedFrom
from pipeline.networks.weights import save_model
from pipeline.training.checkpoints import forget_checkpoint, run_key
from pipeline.training.loop import fit
from pipeline.training.objective import Fitted, Objective, Recording, Run
from pipeline.training.params import Recipe
from pipeline.training.records import ModelMetrics, curve_files
from pipeline.training.rounding import Int8Phase

CHECKPOINT_SECONDS = "EDGESTILL_CHECKPOINT_SECONDS"
"""Environment variable: seconds of work that an interruption may cost, 60 by default.

Results do not depend on it, so it is not in params.yaml.
"""


@dataclass(frozen=True)
class Task:
    """One network to train and where it is written."""

    name: str
    kind: str
    """`teachers` or `students`: the folder of its metrics."""
    folder: Path
    network: Network
    input_size: int
    training: Recipe
    epochs: int
    seed: int
    settings: object
    """Everything else that decides the result; with all fields above it makes the run's key."""
    int8_phase: float = 0.0
    """Share of all steps, the last ones, that compute under int8's rounding."""
    started_from: StartedFrom | None = None
    robust: dict[str, Any] | None = None
    """Changed views that it learns from, too, as in params.yaml. The last epoch is then kept."""
    shapes: Shapes | None = None
    """Of a pruned network."""
    suffix: str = ""
    """What the name of its metrics and curves has behind its own."""


def checkpoint_seconds() -> float:
    """The value of `EDGESTILL_CHECKPOINT_SECONDS`; `PipelineError` unless it is at least 0."""
    text = os.environ.get(CHECKPOINT_SECONDS, "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise PipelineError(f"`{text}` is not a number of seconds", where=CHECKPOINT_SECONDS)
    return seconds


def train_and_write(
    fabric: Fabric,
    task: Task,
    manifest: Manifest,
    objective: Objective,
    views: Views,
    recorded: Recording | None = None,
    beside: Callable[[NDArray[np.float32], NDArray[np.int64]], Mapping[str, Record]] | None = None,
) -> None:
    """Fit on `views`, keep an epoch, evaluate on `manifest.final` once, write all files.

    Args:
        fabric: launched.
        task: what is trained.
        manifest: of the packed data.
        objective: the loss around the network.
        views: the train images.
        recorded: teacher logits for `views`, if there are any.
        beside: gives further records by their names in the task's folder, from the logits and
            labels of `manifest.final`.
    """
    key = run_key(task, manifest.digests, manifest.calibration_digest)
    objective.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    int8 = Int8Phase(task.int8_phase, load_calibration(manifest)) if task.int8_phase else None
    shown, seconds = task.name + task.suffix, checkpoint_seconds()
    run = Run(
        shown, key, task.seed, task.training, task.epochs, seconds, int8,
        keep_last=task.robust is not None,
    )  # fmt: skip
    fitted = fit(fabric, objective, views, load_split("val"), run, recorded)
    if fabric.is_global_zero:
        model = objective.model
        card = _card(task, manifest, model, fitted)
        images, labels = load_split(manifest.final)
        logits = predict(model, images).numpy()
        recall = Recall.of(logits, labels)
        with whole_folder(task.folder) as scratch:
            save_model(scratch, model.network, card)
            for name, record in beside(logits, labels).items() if beside else ():
                record.write(scratch / name)
        metrics = ModelMetrics(
            val_top1=fitted.val_top1,
            top1=recall.top1,
            recall=recall,
            parameters=card.parameters,
            curves=tuple(sha256(file) for file in curve_files(shown).values()),
            rounded=(task.epochs * (1 - task.int8_phase), task.epochs) if task.int8_phase else (),
        )
        metrics.write(METRICS / task.kind / f"{shown}.json")
        limits = interval(recall.top1, recall.total)
        print(
            f"{shown}: {card.parameters:,} parameters, {manifest.final} top-1 "
            f"{recall.top1:.4f} ({limits}), balanced {recall.balanced:.4f}"
        )
        forget_checkpoint(key)
    fabric.barrier()


def _card(task: Task, manifest: Manifest, model: PixelsToLogits, fitted: Fitted) -> ModelCard:
    """The card of the network that `task` trained."""
    robust = {"robust": task.robust} if task.robust and fitted.best_epoch else {}
    return ModelCard(
        arch=task.network.arch,
        args=task.network.args,
        stem_stride=task.network.stem_stride,
        stem_pool=task.network.stem_pool,
        hard_swish=task.network.hard_swish,
        image_size=manifest.image_size,
        input_size=task.input_size,
        channels=manifest.channels,
        classes=manifest.classes,
        normalisation=model.normalisation,
        parameters=parameter_count(model),
        seed=task.seed,
        epochs=task.epochs,
        recipe=task.training.model_dump() | robust,
        int8_phase=task.int8_phase if fitted.best_epoch else 0.0,
        best_epoch=fitted.best_epoch,
        val_top1=fitted.val_top1,
        data_digest=manifest.digests["train_images.npy"],
        started_from=task.started_from,
        shapes=task.shapes,
        versions=tool_versions(),
    )
