"""What the benchmark records: the machine, the conditions and the latencies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.backends.base.artifact import ArtifactKey
from pipeline.core.records import METRICS, DetailRecord, Record

FINGERPRINT = METRICS / "fingerprint.json"

BENCHMARK = METRICS / "benchmark.json"

REFERENCE = "reference"
"""The name of the frozen reference model among the keys of artifacts, `S/B/P`."""

LATENCIES = Path("models/benchmark/latencies.npz")
"""Every inference, by `S/B/P` and `reference`: `KEY/ns`, int64 [n], and `KEY/round`, int32 [n]."""


class Latency(Record):
    """Percentiles of the milliseconds of one inference, from raw pixels to logits."""

    p50: float
    p90: float
    p99: float


class Throughput(Record):
    """Images per second in batches, on all cores."""

    images_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        description="median over rounds"
    )
    batch: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]


class WarmUp(Record):
    """The inferences between the very first one and the first that was timed."""

    inferences: Annotated[int, Field(ge=1)]
    steady: bool = Field(description="whether the medians of the last windows agreed")


class BenchmarkRow(Record):
    """How fast an artifact is, or why that is not known."""

    status: Literal["measured", "not_measured", "failed"]
    reason: str | None = Field(None, description="why it was not measured, or how it failed")
    latency_ms: Latency | None = None
    p90_interval_ms: tuple[float, float] | None = Field(
        None, description="95% limits of p90: bootstrap of whole rounds; null for fewer than five"
    )
    ratio_to_reference: float | None = Field(None, description="median of p50 ratios by round")
    ratio_interval: tuple[float, float] | None = Field(
        None, description="95% limits of the ratio: bootstrap over rounds"
    )
    first_ms: float | None = Field(None, description="the very first inference")
    load_ms: float | None = Field(None, description="to open the model")
    warm_up: WarmUp | None = None
    peak_rss_bytes: int | None = None
    throughput: Throughput | None = None
    throughput_reason: str | None = Field(None, description="why there is none beside a latency")
    threads: int
    cpus: tuple[int, ...] | None = Field(
        None, description="to which its process was pinned; null: the system cannot pin"
    )
    n: int = Field(0, description="inferences that were timed")
    rounds_ms: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        (), description="p50 of each interleaved round, in order; the reference has as many"
    )


class Fingerprint(Record):
    """metrics/fingerprint.json: what latencies depend on, and nothing that varies by itself."""

    cpu: str
    architecture: str
    instruction_sets: tuple[str, ...]
    cores: int
    memory_gib: int
    kernel: str
    governor: str | None
    accelerators: tuple[str, ...]
    runtimes: dict[str, str]


class Conditions(Record):
    """The load of others during one interleaved round; null where the system does not report it."""

    seconds: float
    others: float | None = Field(
        None, description="share of the measuring cores' time that other processes took"
    )
    stolen: float | None = Field(
        None, description="share of the measuring cores' time that the hypervisor took"
    )
    elsewhere: float | None = Field(
        None, description="share of the other usable cores' time that others took"
    )
    mhz: float | None = Field(
        None, description="median clock over the round of the slowest measuring core"
    )
    spoiled: str | None = Field(None, description="why, or null")
    kept: bool = Field(True, description="whether the rows are made of it")


class BenchmarkRecord(DetailRecord):
    """metrics/benchmark.json; rows by `S/B/P`."""

    line_per_entry = ("rows", "conditions")

    fingerprint: Fingerprint
    reference: BenchmarkRow
    reference_digest: str
    latencies_digest: str | None = Field(None, description="SHA-256 of the file of all latencies")
    overhead_ns: int | None = Field(None, description="that the harness itself adds to a latency")
    conditions: tuple[Conditions, ...] = Field(
        (), description="of every round, in order; the kept ones are those of `rounds_ms`"
    )
    repeated_rounds: int = Field(0, description="extra rounds, because others were spoiled")
    rows: dict[ArtifactKey, BenchmarkRow]


class Summary(Record):
    """metrics/summary/S-B-P.json: an artifact's main figures, as `dvc metrics show` prints them."""

    top1: float
    drop: float = Field(description="of top-1, against the float student")
    kb: float = Field(description="1000 bytes that the runtime opens")
    p50_ms: float | None = Field(None, description="latency of one image; null: not measured here")
