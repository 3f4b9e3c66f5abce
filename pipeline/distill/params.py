"""The groups `teacher_logits` and `distill` of params.yaml."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from pipeline.core.params import (
    Amount,
    Count,
    Fraction,
    Group,
    Location,
    Name,
    Positive,
    Real,
    Seed,
    Selection,
    Share,
    Switch,
    Text,
    Whole,
    invalid,
    nearest,
)
from pipeline.core.text import show
from pipeline.data.params import Epochs, Views
from pipeline.networks.params import Student, Students
from pipeline.training.params import Auto, Teachers, Training


def _one_of_a_loss(value: Any) -> Any:
    if not isinstance(value, bool | int | float) or 1e6 < abs(value) < math.inf:
        raise ValueError("input should be true, false or a number in [-1e6, 1e6]")
    return value


G = TypeVar("G", bound=Group)

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
    temperature: Annotated[Positive, Field(ge=0.1, le=100)] = Field(
        4.0, description="at which the probabilities of the classes in `top_k` are exact"
    )


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


class Rslad(Group):
    """Robust soft label adversarial distillation (RSLAD, arXiv 2108.07969)."""

    method: Literal["rslad"]
    epsilon: Annotated[Positive, Field(le=255)] = Field(
        8.0, description="that a pixel may change by, of 255"
    )
    steps: Annotated[Whole, Field(ge=1, le=1000)] = Field(10, description="of the attack")
    step_size: Annotated[Positive, Field(le=255)] = Field(
        2.0, description="by which a step of the attack changes a pixel, of 255"
    )
    share: Annotated[Real, Field(gt=0, le=1)] = Field(
        5 / 6, description="of each loss that attacked images have; clean ones have the rest"
    )

    def __str__(self) -> str:
        """What a student learns, for whoever reads the output of a stage or a model card."""
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        return (
            f"RSLAD: {self.share:.0%} of its losses are on images attacked by {steps} of PGD, "
            f"{self.step_size:g} of 255 each, within {self.epsilon:g} of 255"
        )


class Augmix(Group):
    """AugMix (arXiv 1912.02781), with the teachers' logits of the clean view as the target."""

    method: Literal["augmix"]
    mixes: Annotated[Whole, Field(ge=1, le=4)] = Field(1, description="of every view")
    severity: Annotated[Whole, Field(ge=1, le=10)] = Field(
        10, description="of the strongest operation; 10: rotates by 30 degrees"
    )
    chains: Annotated[Whole, Field(ge=1, le=8)] = Field(3, description="mixed, of operations")
    depth: Annotated[Whole, Field(ge=1, le=8)] = Field(
        3, description="of the longest chain, whose length is drawn for each"
    )
    share: Share = Field(
        0.15, description="of each loss that mixes have together; the clean view has the rest"
    )
    consistency: Annotated[Amount, Field(le=1e6)] = Field(
        0.25, description="weight of the Jensen-Shannon divergence between the views of an image"
    )

    def __str__(self) -> str:
        """What a student learns, for whoever reads the output of a stage or a model card."""
        mixes = "1 mix" if self.mixes == 1 else f"{self.mixes} mixes"
        return (
            f"AugMix: {self.share:.0%} of its losses are on {mixes} of every view at severity "
            f"{self.severity}, and {self.consistency:g} x Jensen-Shannon divergence is added"
        )


METHODS = ("rslad", "augmix")


def _known_method(value: Any) -> Any:
    """A message for readers, where pydantic speaks of tags."""
    if isinstance(value, Group):
        return value
    if not isinstance(value, dict) or "method" not in value:
        raise ValueError(f"expected null, or a mapping with `method`{nearest('', METHODS)}")
    method = value["method"]
    if method not in METHODS:
        close = nearest(method if isinstance(method, str) else "", METHODS)
        raise ValueError(f"there is no `method` {show(method)}{close}")
    return value


Robust = Annotated[
    Annotated[Rslad | Augmix, Field(discriminator="method")], BeforeValidator(_known_method)
]
"""What students learn from beside clean views: see docs/robust-distillation.md."""


def read_robust(recorded: dict[str, Any]) -> Robust:
    """`robust` as the recipe in a student's card has it."""
    found: Robust = TypeAdapter(Robust).validate_python(recorded)
    return found


class Distill(Group):
    """The loss of the students, and the recipe of their training."""

    overridable: ClassVar[bool] = True

    losses: tuple[LossTerm, ...] = Field(min_length=1, max_length=100)
    robust: Robust | None = Field(None, description="changed views that they learn from, too")
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

    @model_validator(mode="after")
    def _robust_layers_learn(self) -> Self:
        if self.robust is not None and self.training.freeze == "backbone":
            raise ValueError(
                "`robust` changes how all layers learn, and with `training.freeze: backbone` none "
                "but the classifier does; remove one of them"
            )
        return self


class OwnRecipe(Group):
    """`students.zoo.S.recipe`: what a student has in place of `views.epochs` and of `distill`."""

    epochs: Auto | Epochs | None = Field(
        None, description="of its training, in place of `views.epochs`"
    )
    losses: tuple[LossTerm, ...] | None = Field(None, min_length=1, max_length=100)
    robust: Robust | None = Field(None, description="an explicit null is none for this student")
    int8_phase: Auto | Fraction | None = None
    training: dict[Text, Any] = Field({}, description="changes single values of distill.training")


def own_recipe(name: str, student: Student, distill: Distill) -> tuple[Distill, OwnRecipe]:
    """What a student minimises, and how it is trained, where `distill` counts for all of them.

    Args:
        name: of the student.
        student: whose `recipe` changes `distill`.
        distill: of all students.

    Raises:
        ValueError: for a recipe that is none.
    """

    def read(kind: type[G], tree: dict[str, Any]) -> G:
        try:
            return kind.model_validate(tree)
        except ValidationError as error:
            where = f"students.zoo.{name}.recipe"
            raise ValueError(invalid(error, kind, "", where).what) from None

    own, tree = read(OwnRecipe, student.recipe), distill.model_dump()
    tree |= own.model_dump(exclude={"epochs", "training", "robust"}, exclude_none=True)
    if "robust" in own.model_fields_set:
        tree["robust"] = own.robust
    tree["training"] |= own.training
    return read(Distill, tree), own


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
        found = {"distill": self.distill}
        found |= {f"students.zoo.{name}.recipe": self.own(name)[0] for name in self.students.zoo}
        for where, its in found.items():
            for term in its.losses:
                if term.teacher is not None and term.teacher not in self.teachers.enabled:
                    raise ValueError(
                        f"{where}.losses names the teacher `{term.teacher}`"
                        f"{nearest(term.teacher, self.teachers.enabled)}"
                    )
        return self

    def own(self, student: str) -> tuple[Distill, Views]:
        """`distill` and `views` as a student of the zoo has them: see `own_recipe`."""
        distill, recipe = own_recipe(student, self.students.zoo[student], self.distill)
        epochs = {} if recipe.epochs is None else {"epochs": recipe.epochs}
        return distill, self.views.model_copy(update=epochs)
