"""The group `gate` of params.yaml."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.core.params import Amount, Fraction, Group, Positive, Real, Whole
from pipeline.report.params import ReportParams


class Gate(Group):
    """The thresholds of `python -m pipeline gate`."""

    overridable: ClassVar[bool] = True

    max_top1_loss: Fraction = Field(0.005, description="of top-1, against the baseline")
    max_recall_loss: Positive = Field(
        0.1, le=1, description="a class whose recall fell by less is never a regression"
    )
    max_corruption_loss: Fraction = Field(
        0.02, description="of accuracy on corrupted images; less is never a regression"
    )
    max_pgd_loss: Fraction = Field(0.02, description="of accuracy under PGD, likewise")
    max_slowdown: Positive = Field(
        0.05, le=100, description="of a latency, relative to the baseline"
    )
    max_slowdown_ms: Amount = Field(
        0.01, le=1e6, description="a smaller excess in ms is never a regression"
    )
    between_runs: Amount = Field(
        0.02,
        le=10,
        description="standard deviation of a log latency ratio between runs, beside that of rounds",
    )
    rerun_rounds: Annotated[Whole, Field(ge=3, le=10_000)] = Field(
        60, description="interleaved rounds of `gate --rerun`"
    )
    max_size_growth: Amount = Field(0.02, le=1000, description="relative to the baseline")
    max_attribution_loss: Positive = Field(
        0.02,
        le=2,
        description="of the mean correlation of an artifact's maps with the float student's",
    )
    false_alarms: Annotated[Real, Field(gt=0, le=0.2)] = Field(
        0.01, description="probability that a gate run reports a regression where there is none"
    )
    misses: Annotated[Real, Field(gt=0, le=0.2)] = Field(
        0.05, description="probability that a slow-down of just `max_slowdown` passes"
    )
    inconclusive: Literal["pass", "fail"] = Field("fail", description="exit code 0 or 3")


class GateParams(ReportParams):
    """What `python -m pipeline gate` reads."""

    gate: Gate
