"""What the benchmark records: the machine, the conditions and the latencies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.core.records import METRICS, DetailRecord, Record

FINGERPRINT = METRICS / "fingerprint.json"

BENCHMARK = METRICS / "benchmark.json"

REFERENCE = "reference"
"""What the frozen reference model is called among the artifacts `S/B/P`."""

LATENCIES = Path("models/benchmark/latencies.npz")
"""Single latencies by `S/B/P` and `reference`: `KEY/ns`, int64 [n], `KEY/round`, int32 [n]."""


class Latency(Record):
    """Milliseconds per single inference, from raw pixels to logits."""

    p50: float
    p90: float
    p99: float


class Throughput(Record):
    """Many images a call, on all cores."""

    images_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        description="median over rounds"
    )
    batch: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]


class WarmUp(Record):
    """What went before the first timed inference, the very first one apart."""

    inferences: Annotated[int, Field(ge=1)]
    steady: bool = Field(description="the medians of its last windows agreed")


class BenchmarkRow(Record):
    status: Literal["measured", "not_measured", "failed"]
    reason: str | None = None
    latency_ms: Latency | None = None
    p90_interval_ms: tuple[float, float] | None = Field(
        None, description="95% limits of p90: bootstrap of whole rounds; null of fewer than five"
    )
    ratio_to_reference: float | None = Field(None, description="median of p50 ratios by round")
    ratio_interval: tuple[float, float] | None = Field(
        None, description="95% limits of the ratio: bootstrap over rounds"
    )
    first_ms: float | None = None
    load_ms: float | None = None
    warm_up: WarmUp | None = None
    peak_rss_bytes: int | None = None
    throughput: Throughput | None = None
    throughput_reason: str | None = Field(None, description="why there is none beside a latency")
    threads: int
    cpus: tuple[int, ...] | None = Field(
        None, description="to which its process was kept; null: the system has no call for it"
    )
    n: int = 0
    rounds_ms: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        (), description="p50 of each interleaved round, in order; the reference's are as many"
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
    """What else went on during one interleaved round; null where the system does not tell."""

    seconds: float
    others: float | None = Field(
        None, description="share of the measuring cores' time that other processes took"
    )
    stolen: float | None = Field(
        None, description="share of the measuring cores' time that the hypervisor gave away"
    )
    elsewhere: float | None = Field(
        None, description="share of the other usable cores' time that others took"
    )
    mhz: float | None = Field(
        None, description="of the slowest measuring core, its median clock over the round"
    )
    spoiled: str | None = Field(None, description="why; null: it is not")
    kept: bool = Field(True, description="it is among the rounds of the rows")


class BenchmarkRecord(DetailRecord):
    """metrics/benchmark.json; rows by `S/B/P`."""

    line_per_entry = ("rows", "conditions")

    fingerprint: Fingerprint
    reference: BenchmarkRow
    reference_digest: str
    overhead_ns: int | None = Field(None, description="what the harness itself adds to a latency")
    conditions: tuple[Conditions, ...] = Field(
        (), description="one for each round, in order; those that are kept make up `rounds_ms`"
    )
    repeated_rounds: int = Field(0, description="measured because others were spoiled")
    rows: dict[str, BenchmarkRow]


class Summary(Record):
    """metrics/summary/S-B-P.json: an artifact's main figures, as `dvc metrics show` prints them."""

    top1: float
    drop: float = Field(description="of top-1, against the float student")
    kb: float = Field(description="1000 bytes that the runtime opens")
    p50_ms: float | None = Field(None, description="latency of one image; null: not measured here")
