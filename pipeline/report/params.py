"""The group `limits` of params.yaml."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pipeline.attribution.params import Attribution
from pipeline.compile.params import Quantize
from pipeline.core.params import Fraction, Group, Positive, Text
from pipeline.latency.params import BenchmarkParams
from pipeline.networks.params import PrunedStudents
from pipeline.robustness.params import WithRobustness
from pipeline.training.params import Teachers


class Limits(Group):
    """What an artifact must keep to be shipped; the report recommends none that breaks one."""

    overridable: ClassVar[bool] = True

    max_top1_drop: Fraction = Field(description="of top-1, against the float student")
    min_agreement: Fraction = Field(description="share of its float student's answers")
    min_top1: Fraction | None = Field(None, description="on test, whatever the student reaches")
    max_p50_ms: Positive | None = Field(
        None, description="of one image; broken by an artifact that is not measured"
    )
    max_kb: Positive | None = Field(None, description="size in 1000 bytes of what a runtime opens")


class ReportParams(WithRobustness, BenchmarkParams):
    """What the stage `report` reads."""

    profile: Text
    teachers: Teachers
    quantize: Quantize
    limits: Limits
    attribution: Attribution
    prune: PrunedStudents = PrunedStudents()
