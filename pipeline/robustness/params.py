"""The group `robustness` of params.yaml, and what the stage `robustness` reads."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from pipeline.backends.base.params import ArtifactParams
from pipeline.core.params import Count, Group, Names, Real, Seed, Switch, Whole, among, differ
from pipeline.networks.params import PrunedStudents

Strength = Annotated[Whole, Field(ge=1, le=5)]
Change = Annotated[Real, Field(le=255)]


class Attack(Group):
    """FGSM and PGD on the float student. Changes are in pixel values: 8 is 8/255."""

    epsilon: Annotated[Change, Field(ge=1)] = Field(
        8.0, description="largest change of a pixel; below 1 no uint8 pixel can change"
    )
    steps: Annotated[Whole, Field(ge=1, le=10_000)] = Field(20, description="of PGD")
    step_size: Annotated[Change, Field(gt=0)] = Field(2.0, description="of PGD")
    restarts: Annotated[Whole, Field(ge=1, le=1000)] = Field(
        1, description="of PGD, each from its own random start; the strongest counts"
    )

    @model_validator(mode="after")
    def _can_reach_the_limit(self) -> Self:
        if self.steps * self.step_size < self.epsilon:
            raise ValueError(
                f"{self.steps} `steps` of {self.step_size:g} cannot go as far as `epsilon`, "
                f"{self.epsilon:g}: raise `steps` or `step_size`"
            )
        return self


class Robustness(Group):
    """Of which students, and how, accuracy is measured on corrupted and attacked images."""

    enabled: Names = Field((), description="of the enabled students; none: nothing is measured")
    images: Count | None = Field(
        1000, description="of the test split, drawn by the seed; null: all"
    )
    strengths: Annotated[tuple[Strength, ...], AfterValidator(differ)] = Field(
        (1, 3, 5), min_length=1, description="of each corruption"
    )
    attack: Attack = Attack()
    autoattack: Switch = Field(
        False, description="also AutoAttack, on as many images; of the extra `robust`"
    )


class WithRobustness(ArtifactParams):
    """The artifacts, and the students among them whose robustness is measured."""

    robustness: Robustness = Robustness()
    prune: PrunedStudents = PrunedStudents()

    @model_validator(mode="after")
    def _robust_students_are_enabled(self) -> Self:
        among(self.robustness.enabled, self.students.enabled, "robustness", "students.enabled")
        return self


class Teachers(Group):
    """Which teachers there are; other stages check the rest of the group."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    enabled: Names


class RobustnessParams(WithRobustness):
    """What the stage `robustness` reads."""

    seed: Seed
    teachers: Teachers
