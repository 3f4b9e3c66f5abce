"""The groups `teacher_logits` and `distill` of params.yaml."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.core.params import (
    Amount,
    Count,
    Fraction,
    Group,
    Location,
    Name,
    Real,
    Seed,
    Selection,
    Switch,
    Text,
    nearest,
)
from pipeline.data.params import Views
from pipeline.networks.params import Students
from pipeline.training.params import Auto, Teachers, Training


def _one_of_a_loss(value: Any) -> Any:
    if not isinstance(value, bool | int | float) or 1e6 < abs(value) < math.inf:
        raise ValueError("input should be true, false or a number in [-1e6, 1e6]")
    return value


Option = Annotated[bool | float, BeforeValidator(_one_of_a_loss)]
"""Of a loss, whose registration says more about each."""


class TeacherLogits(Group):
    """Whether and how the teachers' logits are recorded."""

    record: Switch = Field(
        True, description="compute them once for all students; false: in every training step"
    )
    epochs: Auto | Count = Field(
        "auto", description="of views that are recorded; a longer training sees them again"
    )
    top_k: Count | None = Field(None, description="logits kept per image; null: all of them")


class LossTerm(Group):
    """One summand of what a student minimises."""

    name: Text
    weight: Annotated[Amount, Field(le=1e6)]
    schedule: Literal["constant", "warmup", "decay"] = Field(
        "constant", description="of the weight: rises from 0 at the start, or falls to 0 at the end"
    )
    span: Annotated[Real, Field(gt=0, le=1)] = Field(
        0.2, description="share of all steps in which the weight rises or falls"
    )
    taps: tuple[Name, ...] = Field((), description="that a feature loss compares")
    teacher: Name | None = Field(None, description="whose taps are compared; the first by default")
    options: dict[Text, Option] = Field({}, description="keyword arguments of the loss")


class Distill(Group):
    """The loss of the students, and the recipe of their training."""

    overridable: ClassVar[bool] = True

    losses: tuple[LossTerm, ...] = Field(min_length=1, max_length=100)
    int8_phase: Auto | Fraction = Field(
        "auto", description="share of all steps, the last ones, that compute under int8's rounding"
    )
    training: Training

    @model_validator(mode="after")
    def _labels_are_used(self) -> Self:
        if any(term.name == "cross_entropy" for term in self.losses):
            return self
        set_in_vain = {
            "label_smoothing": self.training.label_smoothing > 0,
            "balance: logit_adjusted": self.training.balance == "logit_adjusted",
        }
        for name in (name for name, found in set_in_vain.items() if found):
            raise ValueError(
                f"`training.{name}` changes `cross_entropy`, which `losses` does not have"
            )
        return self


class RecordingParams(Selection):
    """What the stage `record_teacher` reads."""

    seed: Seed
    teachers: Teachers
    views: Views
    teacher_logits: TeacherLogits


class DistillParams(RecordingParams):
    """What the stage `distill` reads."""

    checkpoints: Location = Field(description="folder of weights files; DVC notices a change in it")
    students: Students
    distill: Distill

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for name in self.students.enabled:
            if name in self.teachers.enabled:
                raise ValueError(f"`{name}` is both a teacher and a student; rename one")
        return self

    @model_validator(mode="after")
    def _teachers_of_losses_exist(self) -> Self:
        for term in self.distill.losses:
            if term.teacher is not None and term.teacher not in self.teachers.enabled:
                raise ValueError(
                    f"distill.losses names the teacher `{term.teacher}`"
                    f"{nearest(term.teacher, self.teachers.enabled)}"
                )
        return self
