"""What this room's tests share: every loss, an objective, a taught project."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.cli.params import Params
from pipeline.core import plugins
from pipeline.distill.losses.registry import KIND, Loss, loss_names
from pipeline.distill.objective import Distillation
from pipeline.distill.params import LossTerm
from pipeline.distill.recording import record_teacher_logits
from pipeline.networks.pixels import PixelsToLogits
from pipeline.training.params import Teachers
from pipeline.training.teacher import train_teacher
from tests.training.conftest import (  # noqa: F401 - fixtures
    RESNET,
    STUDENT,
    TINY,
    TRAINING,
    configured,
    fashion,
    folder,
    model,
    split,
)

LOSSES: dict[str, Loss] = {name: plugins.find(KIND, name) for name in loss_names()}
DISTILL = ("-m", "stages.distill", "--student", STUDENT)
TERMS = (
    LossTerm(name="kl", weight=0.9, options={"temperature": 4.0}),
    LossTerm(name="cross_entropy", weight=0.1),
    LossTerm(name="hint", weight=0.5, taps=("late",)),
    LossTerm(name="attention_transfer", weight=5.0, taps=("late",)),
    LossTerm(name="review", weight=0.1, taps=("middle", "late")),
)


def teachers(*names: str, **settings: Any) -> Teachers:
    """The settings of teachers that are all `RESNET`."""
    one = {"network": RESNET, "views": {"epochs": 1}, "training": {}}
    names = names or ("resnet",)
    zoo = dict.fromkeys(names, one)
    known = {"enabled": names, "zoo": zoo}
    return Teachers.model_validate(known | settings)


def distillation(
    terms: tuple[LossTerm, ...] = TERMS,
    student: PixelsToLogits | None = None,
    settings: Teachers | None = None,
) -> Distillation:
    settings = settings or teachers()
    known = {name: model(RESNET, seed=8 + i) for i, name in enumerate(settings.enabled)}
    pixels = torch.from_numpy(split(1)[0][:1])
    return Distillation(student or model(), known, terms, TINY.taps, settings, pixels)


def teach(params: Params) -> None:
    """Train all teachers and record their logits."""
    for name in params.teachers.enabled:
        train_teacher(params, name)
    record_teacher_logits(params)
