"""The group `benchmark` of params.yaml."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.backends.base.params import ArtifactParams
from pipeline.core.params import Count, Group, Positive, Seed, Whole


class Benchmark(Group):
    """How latency and throughput are measured."""

    overridable: ClassVar[bool] = True

    threads: Annotated[Count, Field(le=1024)]
    rounds: Annotated[Whole, Field(ge=2, le=10_000)]
    extra_rounds: Annotated[Whole, Field(ge=0, le=10_000)] = Field(
        5, description="at most, in place of spoiled rounds"
    )
    min_runs: Count = Field(le=1_000_000, description="inferences per artifact and round, at least")
    min_seconds: Positive = Field(le=3600, description="duration per artifact and round, at least")
    batch: Annotated[Whole, Field(ge=0, le=65_536)] = Field(
        32, description="images per call for the throughput on all cores; 0: not measured"
    )


class BenchmarkParams(ArtifactParams):
    """What the stage `benchmark` reads."""

    seed: Seed
    benchmark: Benchmark
