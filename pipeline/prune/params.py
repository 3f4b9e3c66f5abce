"""The group `prune` of params.yaml, and what the stage `prune` reads."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from pipeline.compile.params import CompileParams
from pipeline.core.params import (
    Count,
    Fraction,
    Group,
    Name,
    Real,
    Whole,
    nearest,
)
from pipeline.data.params import Epochs
from pipeline.distill.params import DistillParams
from pipeline.export.params import ExportParams
from pipeline.latency.params import BenchmarkParams
from pipeline.networks.params import PrunedStudents
from pipeline.training.params import Auto

Part = Annotated[Real, Field(gt=0, lt=1)]
Quantity = Literal["macs", "p50", "kb"]


class Goal(Group):
    """The share of the unpruned student's cost that may be left."""

    macs: Part | None = Field(None, description="of its multiply-accumulates")
    p50: Part | None = Field(None, description="of its latency for one image, measured here")
    kb: Part | None = Field(None, description="of its compiled file's size")
    backend: Name | None = Field(None, description="that `p50` or `kb` is measured on")
    precision: Name | None = Field(None, description="of that backend")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = [name for name in ("macs", "p50", "kb") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("a goal has exactly one of `macs`, `p50` and `kb`")
        placed = self.backend is not None and self.precision is not None
        if given == ["macs"] and (self.backend, self.precision) != (None, None):
            raise ValueError("`macs` are the same on every backend: leave out `backend`")
        if given != ["macs"] and not placed:
            raise ValueError(f"`{given[0]}` is measured on a `backend` at a `precision`: name both")
        return self

    @property
    def what(self) -> Quantity:
        """The quantity."""
        if self.macs is not None:
            return "macs"
        return "kb" if self.p50 is None else "p50"

    @property
    def share(self) -> float:
        """What may be left of it."""
        share: float = getattr(self, self.what)
        return share


class Prune(PrunedStudents):
    """How students lose channels after distillation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    to: Goal = Goal(macs=0.6)
    steps: Annotated[Whole, Field(ge=1, le=100)] = Field(
        3, description="in which channels go; after each, the student learns on"
    )
    step_epochs: Auto | Epochs = Field(
        "auto", description="of learning after each step but the last; auto: 1/8 of distillation"
    )
    epochs: Auto | Epochs = Field(
        "auto", description="of learning after the last step; auto: as for distillation"
    )
    importance: Literal["fisher", "magnitude"] = "fisher"
    multiple_of: Annotated[Count, Field(le=1024)] = Field(
        8, description="channels that are left of a layer that loses some"
    )
    min_share: Fraction = Field(0.25, description="of its channels that each layer keeps")


class PruneParams(BenchmarkParams, CompileParams, ExportParams, DistillParams):
    """What the stage `prune` reads."""

    prune: Prune = Prune()

    @model_validator(mode="after")
    def _pruned_are_enabled(self) -> Self:
        for name in self.prune.enabled:
            if name not in self.students.enabled:
                raise ValueError(
                    f"prune.enabled names `{name}`, which students.enabled does not have"
                    f"{nearest(name, self.students.enabled)}"
                )
        return self

    @model_validator(mode="after")
    def _goal_is_compiled_for(self) -> Self:
        goal = self.prune.to
        if not self.prune.enabled or goal.backend is None:
            return self
        if goal.backend not in self.backends.enabled:
            raise ValueError(
                f"prune.to.backend is `{goal.backend}`, which backends.enabled does not have"
                f"{nearest(goal.backend, self.backends.enabled)}"
            )
        precisions = self.backends.settings(goal.backend).precisions
        if goal.precision not in precisions:
            raise ValueError(
                f"prune.to.precision is `{goal.precision}`, and backends.{goal.backend} has "
                f"{', '.join(precisions)}"
            )
        return self
