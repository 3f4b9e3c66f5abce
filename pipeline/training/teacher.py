"""Stage `train_teacher`: a network that learns from labels only."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.data.records import PACKED, Manifest, load_split
from pipeline.data.views import Views, seed_of
from pipeline.networks.build import build_network
from pipeline.networks.inference import set_up_torch
from pipeline.networks.pixels import PixelsToLogits, pretrained_normalisation
from pipeline.networks.records import CARD, TEACHERS, ModelCard, Normalisation
from pipeline.networks.weights import check_classes, load_weights
from pipeline.training.devices import launch
from pipeline.training.loop import Objective, Terms
from pipeline.training.params import Teacher, TeacherParams
from pipeline.training.task import Task, train_and_write


class Supervised(Objective):
    """Cross entropy with smoothed labels on raw pixels."""

    def __init__(self, model: PixelsToLogits, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(
        self,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        recorded: torch.Tensor | None = None,  # noqa: ARG002 - students use it
        progress: float = 0.0,  # noqa: ARG002
    ) -> Terms:
        logits = self.model(pixels)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return {"cross_entropy": loss}


def train_teacher(params: TeacherParams, name: str) -> None:
    """Stage `train_teacher@T`: models/teachers/T/, metrics/teachers/T.json, metrics/curves/T/.

    Args:
        params: what the stage reads. The network starts from a seeded initialisation, timm's
            weights or a checkpoint.
        name: the teacher T.
    """
    teacher = params.teachers.zoo[name]
    fabric = launch(teacher.training)
    manifest = Manifest.read(PACKED / "manifest.json")
    size = manifest.image_size if teacher.input_size == "auto" else teacher.input_size
    set_up_torch(params.seed)
    network = build_network(
        teacher.network,
        classes=len(manifest.classes),
        channels=manifest.channels,
        image_size=size,
        pretrained=teacher.source == "pretrained",
    )
    normalisation = Normalisation(mean=manifest.mean, std=manifest.std)
    if teacher.source == "pretrained":
        normalisation = pretrained_normalisation(network, manifest.channels)
    checkpoint = params.teachers.checkpoint_file(name)
    if checkpoint is not None:
        load_weights(network, checkpoint)
        normalisation = _checkpoint_normalisation(teacher, checkpoint, manifest)
    resized = None if size == manifest.image_size else size
    model = PixelsToLogits(network, normalisation, resized)
    views = Views(
        *load_split("train"),
        teacher.views.augment,
        classes=len(manifest.classes),
        seed=seed_of(name, params.seed),
    )
    task = Task(
        name=name,
        kind="teachers",
        folder=TEACHERS / name,
        network=teacher.network,
        input_size=size,
        training=teacher.training,
        epochs=teacher.views.epochs,
        seed=params.seed,
        settings=(teacher, normalisation, checkpoint and sha256(checkpoint)),
    )
    objective = Supervised(model, teacher.training.label_smoothing)
    train_and_write(fabric, task, manifest, objective, views)


def _checkpoint_normalisation(
    teacher: Teacher, checkpoint: Path, manifest: Manifest
) -> Normalisation:
    """From params.yaml, else from the card beside the checkpoint; an error without both."""
    card_file = checkpoint.with_name(CARD)
    card = ModelCard.read(card_file) if card_file.exists() else None
    if card:
        check_classes(card, manifest, card_file)
    given = teacher.normalisation
    if given is not None:
        if len(given.mean) != manifest.channels or len(given.std) != manifest.channels:
            raise PipelineError(
                f"its number of channels is not that of the images, {manifest.channels}",
                where="the teacher's `normalisation`",
                fix="give one mean and one std per channel",
            )
        return Normalisation(mean=given.mean, std=given.std)
    if card is None:
        raise PipelineError(
            "the normalisation that this checkpoint needs is not known",
            where=str(checkpoint),
            fix="set this teacher's `normalisation`, or put the card.json of its folder beside it",
        )
    return card.normalisation
