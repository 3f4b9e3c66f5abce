"""The group `benchmark` of params.yaml."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.backends.base.params import ArtifactParams
from pipeline.core.params import Count, Group, Positive, Seed


class Benchmark(Group):
    """How latency and throughput are measured."""

    overridable: ClassVar[bool] = True

    threads: Count
    rounds: Annotated[int, Field(ge=2)]
    extra_rounds: Annotated[int, Field(ge=0)] = Field(
        5, description="at most, in place of spoiled rounds"
    )
    min_runs: Count = Field(description="inferences per artifact and round, at least")
    min_seconds: Positive = Field(description="duration per artifact and round, at least")
    batch: Annotated[int, Field(ge=0)] = Field(
        32, description="images per call for the throughput on all cores; 0: not measured"
    )


class BenchmarkParams(ArtifactParams):
    """What the stage `benchmark` reads."""

    seed: Seed
    benchmark: Benchmark
