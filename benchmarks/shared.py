"""What the benchmarks share; for those of training one student, one teacher and one loss."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import nn

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ArtifactRecord
from pipeline.cli.params import Params, load_params
from pipeline.core.errors import PipelineError
from pipeline.data.params import Augment
from pipeline.data.records import PACKED, Manifest, load_split
from pipeline.data.views import Views
from pipeline.distill.objective import Distillation
from pipeline.distill.params import LossTerm
from pipeline.distill.records import TeacherLogitsRecord
from pipeline.latency.benchmark import write_test_images
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.latency.workers import Target
from pipeline.networks.build import build_network
from pipeline.networks.inference import set_up_torch
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.records import Normalisation
from pipeline.training.auto import Facts, plan_recipe
from pipeline.training.devices import launch
from pipeline.training.params import Recipe, Training

AUGMENT = Augment(flip=True, shift=1)
TEMPERATURE, KL_WEIGHT, LABEL_WEIGHT = 4.0, 0.9, 0.1
TERMS = (
    LossTerm(name="kl", weight=KL_WEIGHT, options={"temperature": TEMPERATURE}),
    LossTerm(name="cross_entropy", weight=LABEL_WEIGHT),
)
LR, MOMENTUM = 0.01, 0.9
SGD = "momentum"
"""Plain SGD with momentum by its name in timm's factory, whose `sgd` is Nesterov's."""


@dataclass(frozen=True)
class Task:
    """What is trained on what: `images` uint8 [N, H, W, C], memory-mapped; `labels` int64 [N]."""

    params: Params
    manifest: Manifest
    student: str
    teacher: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    batch: int
    optimizer: str = SGD

    def network(self) -> nn.Module:
        """The student with the same initial weights in every call, channels-last as in a stage."""
        torch.manual_seed(self.params.seed)
        return self._build(self.params.students.zoo[self.student])

    def teacher_model(self) -> PixelsToLogits:
        """An untrained teacher, which is as fast as a trained one."""
        torch.manual_seed(self.params.seed + 1)
        network = self._build(self.params.teachers.zoo[self.teacher].network)
        statistics = Normalisation(mean=self.manifest.mean, std=self.manifest.std)
        return PixelsToLogits(network, statistics).eval().requires_grad_(False)

    def objective(self, teachers: dict[str, PixelsToLogits]) -> Distillation:
        """KL and cross entropy; without `teachers` it needs recorded logits."""
        model = PixelsToLogits(self.network(), student_normalisation(self.manifest.channels))
        zoo = {self.teacher: self.params.teachers.zoo[self.teacher]}
        alone = {"enabled": (self.teacher,), "zoo": zoo, "weights": {}}
        settings = self.params.teachers.model_copy(update=alone)
        pixels = torch.tensor(self.images[:1])
        return Distillation(model, teachers, TERMS, {}, settings, pixels)

    def training(self) -> Recipe:
        """The recipe that ships, or plain SGD with momentum."""
        if self.optimizer == SGD:
            return Recipe(
                batch_size=self.batch, optimizer=SGD, lr=LR, momentum=MOMENTUM, weight_decay=0.0
            )
        about = Facts(len(self.labels), self.images.shape[1], pretrained=False)
        shipped = Training.model_validate({"batch_size": self.batch})
        return plan_recipe(shipped, about, "students")

    def views(self) -> Views:
        """Mirrored and shifted train images."""
        classes = len(self.manifest.classes)
        return Views(self.images, self.labels, AUGMENT, classes=classes, seed=self.params.seed)

    def logits_record(self, epochs: int) -> TeacherLogitsRecord:
        """The record of the teacher's logits for `epochs` of these images."""
        return TeacherLogitsRecord(
            teachers={self.teacher: "not trained"},
            views="benchmark",
            epochs=epochs,
            samples=len(self.labels),
            classes=len(self.manifest.classes),
            top_k=None,
        )

    def _build(self, network: Network) -> nn.Module:
        built = build_network(
            network,
            classes=len(self.manifest.classes),
            channels=self.manifest.channels,
            image_size=self.manifest.image_size,
        )
        built.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return built


def parser(description: str) -> argparse.ArgumentParser:
    """The options that the training benchmarks share."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--batch", type=count, default=128, help="images per step")
    made.add_argument("--threads", type=count, help="torch's own choice by default")
    made.add_argument("--student", help="in params.yaml; the first enabled one by default")
    made.add_argument("--teacher", help="in params.yaml; the first enabled one by default")
    made.add_argument("--packed", type=Path, default=PACKED, help="the folder of `prepare`")
    return made


def count(text: str) -> int:
    """A positive integer from the command line."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def open_task(arguments: argparse.Namespace, images: int | None = None) -> Task:
    """The task with the first `images` of train, or all of them.

    Raises:
        PipelineError: for unknown names, missing or too few images.
    """
    params, folder = load_params(), arguments.packed
    if not (folder / "manifest.json").exists():
        raise PipelineError(
            "there are no packed images", where=str(folder), fix="run `dvc repro prepare`"
        )
    student = arguments.student or params.students.enabled[0]
    teacher = arguments.teacher or params.teachers.enabled[0]
    for name, zoo in ((student, params.students.zoo), (teacher, params.teachers.zoo)):
        if name not in zoo:
            raise PipelineError(f"there is no `{name}`; known are {', '.join(zoo)}")
    if params.teachers.zoo[teacher].input_size != "auto":
        raise PipelineError(
            f"`{teacher}` resizes its images, which the other tools cannot do",
            fix="choose a teacher with `input_size: auto`",
        )
    pixels, labels = load_split("train", folder)
    if images is not None and images > len(labels):
        raise PipelineError(f"{images} images are asked for, {len(labels)} are here")
    manifest = Manifest.read(folder / "manifest.json")
    return Task(params, manifest, student, teacher, pixels[:images], labels[:images],
                arguments.batch)  # fmt: skip


def artifact_target(artifact: Artifact, scratch: Path) -> Target:
    """A compiled artifact with test images, which are written to `scratch`."""
    record = ArtifactRecord.read_whole(artifact.folder)
    model = artifact.folder / record.model_file
    return Target(artifact.key, artifact.backend, model, write_test_images(scratch))


def one_device(threads: int | None, training: Recipe | None = None) -> Fabric:
    """The device, set up as a stage that trains so; torch is deterministic from here on."""
    fabric = launch(training)
    if fabric.world_size > 1:
        raise PipelineError("the benchmarks run on a single device", fix="unset EDGESTILL_DEVICES")
    if threads is not None:
        torch.set_num_threads(threads)
    set_up_torch(0)
    return fabric


def circumstances(task: Task, fabric: Fabric, packages: tuple[str, ...]) -> dict[str, Any]:
    """Machine, device, versions and task, which belong to every result."""
    found = ("torch", "timm", "lightning-fabric", "numpy", *packages)
    versions = {name: importlib.metadata.version(name) for name in found}
    return {
        "machine": read_fingerprint().model_dump(mode="json", exclude={"runtimes"}),
        "device": str(fabric.device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | versions,
        "student": task.student,
        "teacher": task.teacher,
        "image": [*task.images.shape[1:]],
        "batch": task.batch,
    }
