"""The group `quantize` of params.yaml, and what the stage `compile` reads."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from pipeline.backends.base.params import ArtifactParams
from pipeline.core.params import Count, Fraction, Group, Names, Share
from pipeline.networks.params import PrunedStudents


class Quantize(Group):
    """The ladder of recipes that are tried while an int8 artifact loses too much accuracy."""

    overridable: ClassVar[bool] = True

    max_drop: Fraction = Field(description="top-1 on val that int8 may lose to the float student")
    significance: Share = Field(
        0.05, description="a loss with a larger p-value on val is taken for chance; 1: none is"
    )
    rungs: Names = Field(min_length=1, description="registered rungs, in this order")
    float_layers: Count = Field(
        le=10_000, description="largest number of layers that stay in float"
    )
    float_share: Share = Field(
        description="their largest share of all multiply-accumulates, and of all weights"
    )
    min_int8_share: Share = Field(
        0.98, description="of all multiply-accumulates of an int8 artifact"
    )

    @model_validator(mode="after")
    def _begin_with_the_default(self) -> Self:
        if self.rungs[0] != "default":
            raise ValueError("`rungs` begin with `default`")
        return self


class CompileParams(ArtifactParams):
    """What the stage `compile` reads."""

    quantize: Quantize
    prune: PrunedStudents = PrunedStudents()
