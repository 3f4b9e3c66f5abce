"""The two stages of this room: a teacher, and a student distilled from it."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.contracts import (
    METRICS,
    PACKED,
    STUDENTS,
    TEACHER,
    Manifest,
    ModelCard,
    ModelMetrics,
    Normalisation,
    load_split,
)
from pipeline.distill.objective import Distillation, Supervised
from pipeline.distill.training import (
    fit,
    forget_checkpoint,
    run_key,
)
from pipeline.errors import PipelineError
from pipeline.files import sha256, whole_folder
from pipeline.networks.build import (
    CARD,
    WEIGHTS,
    PixelsToLogits,
    build_network,
    load_pixels_to_logits,
    load_weights,
    parameter_count,
    pretrained_normalisation,
    save_model,
    student_normalisation,
    tool_versions,
)
from pipeline.networks.inference import evaluate, seed_everything, training_device
from pipeline.params import Network, Params, Teacher, Training


def train_teacher(params: Params) -> None:
    """Stage `train_teacher`: models/teacher/, metrics/teacher.json, metrics/curves/teacher/.

    The network starts from a seeded initialisation, timm's weights or a checkpoint.
    """
    manifest = Manifest.read(PACKED / "manifest.json")
    teacher = params.teacher
    seed_everything(params.seed)
    network = build_network(
        teacher.network,
        classes=len(manifest.classes),
        channels=manifest.channels,
        image_size=manifest.image_size,
        pretrained=teacher.source == "pretrained",
    )
    normalisation = Normalisation(mean=manifest.mean, std=manifest.std)
    if teacher.source == "pretrained":
        normalisation = pretrained_normalisation(network, manifest.channels)
    if teacher.checkpoint is not None:
        load_weights(network, teacher.checkpoint)
        normalisation = _checkpoint_normalisation(teacher, manifest)
    model = PixelsToLogits(network, normalisation)
    objective = Supervised(model, teacher.training.label_smoothing)
    _train(objective, "teacher", TEACHER, teacher.network, teacher.training, params, teacher)


def distill_student(params: Params, student: str) -> None:
    """Stage `distill@S`: models/students/S/, metrics/students/S.json, metrics/curves/S/."""
    manifest = Manifest.read(PACKED / "manifest.json")
    network = params.students.zoo[student]
    device = training_device()
    teacher, card = load_pixels_to_logits(TEACHER)
    if card.classes != manifest.classes:
        raise PipelineError(
            f"knows {len(card.classes)} classes, the data {len(manifest.classes)}, or other names",
            where=str(TEACHER),
            fix="run `dvc repro`",
        )
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
    objective = Distillation(
        model.to(device),
        teacher.to(device),
        params.distill.losses,
        network.taps,
        params.teacher.network.taps,
        torch.from_numpy(load_split("train")[0][:1].copy()).to(device),
    )
    _train(
        objective,
        student,
        STUDENTS / student,
        network,
        params.distill.training,
        params,
        (params.distill, params.teacher.network.taps, sha256(TEACHER / WEIGHTS)),
    )


def _train(
    objective: Supervised | Distillation,
    name: str,
    folder: Path,
    network: Network,
    training: Training,
    params: Params,
    config: object,
) -> None:
    """Fit, evaluate and write one model; `config` is what decides it beside the common things."""
    manifest = Manifest.read(PACKED / "manifest.json")
    model = objective.model
    objective.to(training_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    key = run_key(name, network, training, config, params.seed, manifest.digests)
    fitted = fit(
        objective,
        load_split("train"),
        load_split("val"),
        training,
        seed=params.seed,
        key=key,
        name=name,
    )
    card = ModelCard(
        arch=network.arch,
        args=network.args,
        stem_stride=network.stem_stride,
        stem_pool=network.stem_pool,
        image_size=manifest.image_size,
        channels=manifest.channels,
        classes=manifest.classes,
        normalisation=model.normalisation,
        parameters=parameter_count(model),
        seed=params.seed,
        epochs=training.epochs,
        best_epoch=fitted.best_epoch,
        val_top1=fitted.val_top1,
        data_digest=manifest.digests["train_images.npy"],
        versions=tool_versions(),
    )
    _, test_top1 = evaluate(model, *load_split("test"))
    with whole_folder(folder) as scratch:
        save_model(scratch, model.network, card)
    metrics = METRICS / ("teacher.json" if folder == TEACHER else f"students/{name}.json")
    ModelMetrics(val_top1=fitted.val_top1, test_top1=test_top1, parameters=card.parameters).write(
        metrics
    )
    print(f"{name}: {card.parameters:,} parameters, test top-1 {test_top1:.4f}")
    forget_checkpoint(key)


def _checkpoint_normalisation(teacher: Teacher, manifest: Manifest) -> Normalisation:
    """From params, else from the card beside the checkpoint; never guessed."""
    assert teacher.checkpoint is not None
    if teacher.normalisation is not None:
        return Normalisation(mean=teacher.normalisation.mean, std=teacher.normalisation.std)
    card_file = teacher.checkpoint.with_name(CARD)
    if not card_file.exists():
        raise PipelineError(
            "how this checkpoint's images were normalised is not known",
            where=str(teacher.checkpoint),
            fix="set teacher.normalisation, or put the card.json of its folder beside it",
        )
    card = ModelCard.read(card_file)
    if card.classes != manifest.classes:
        raise PipelineError(
            f"made for the classes {', '.join(card.classes)}; "
            f"the data has {', '.join(manifest.classes)}",
            where=str(card_file),
            fix="use a checkpoint for these classes, or train a teacher: `source: train`",
        )
    return card.normalisation
