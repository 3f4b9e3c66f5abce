"""The group `attribution` of params.yaml, and what the stage `attribution` reads."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from pipeline.backends.base.params import ArtifactParams
from pipeline.core.params import Count, Fraction, Group, Names, Real, Seed, Whole, among
from pipeline.networks.params import PrunedStudents
from pipeline.training.params import Teachers


class Attribution(Group):
    """For which students maps are made, and how."""

    enabled: Names = Field((), description="students; none: the stage does not exist")
    images: Count = Field(500, le=1_000_000, description="of the test split at most, by class")
    grid: Annotated[Whole, Field(ge=4, le=32)] = Field(
        8, description="positions of the hidden patch along each side"
    )
    patch: Annotated[Real, Field(gt=0, le=1)] = Field(
        0.25, description="side of the hidden patch, as a share of the image's"
    )
    other_reason: Fraction = Field(
        0.5, description="maps whose Pearson correlation is lower tell of another reason"
    )
    steps: Annotated[Whole, Field(ge=2, le=100)] = Field(
        10, description="in which pixels are deleted and inserted"
    )
    examples: Annotated[Whole, Field(ge=0, le=24)] = Field(
        6, description="pictures in the report of each kind at most"
    )

    @model_validator(mode="after")
    def _patches_cover_the_image(self) -> Self:
        if self.patch * self.grid < 1 - 1e-9:
            raise ValueError(
                f"{self.grid} patches of {self.patch:g} of a side do not cover it: `patch` times "
                "`grid` is at least 1"
            )
        return self


class AttributionParams(ArtifactParams):
    """What the stage `attribution` reads."""

    seed: Seed
    teachers: Teachers
    attribution: Attribution
    prune: PrunedStudents = PrunedStudents()

    @model_validator(mode="after")
    def _explained_students_are_made(self) -> Self:
        among(self.attribution.enabled, self.students.enabled, "attribution", "students.enabled")
        return self
