"""What bench.py, phone.py and verify.py of a bundle write about a device, as strict types."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from pipeline.backends.base.artifact import Artifact
from pipeline.bundle.records import Tolerances
from pipeline.core.errors import PipelineError
from pipeline.core.params import Amount, Count, Positive
from pipeline.core.records import Record
from pipeline.latency.records import Latency, Throughput, WarmUp


def _finite_or_none(error: Any) -> Any:
    return None if isinstance(error, float) and not math.isfinite(error) else error


Name = Annotated[str, Field(pattern=r"^[^/\\]+$")]
"""A part of a folder's name."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Milliseconds = Positive
LogitError = Annotated[float | None, Field(ge=0), BeforeValidator(_finite_or_none)]
"""None where a logit is not a number: verify.py fails then, and JSON has no NaN."""

_SETTINGS = ("governor", "python", "numpy")
"""Fields of a machine's record that may change while it stays the same machine."""


class BundleIdentity(Record):
    """The artifact that a result is about, and the build of its bundle."""

    student: Name
    backend: Name
    precision: Name
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of SHA256SUMS")

    @property
    def artifact(self) -> Artifact:
        """The artifact that the bundle holds."""
        return Artifact(self.student, self.backend, self.precision)


class DeviceLatency(Latency):
    """Milliseconds per inference of one image on a device; they rise from p50 to p99."""

    p50: Milliseconds
    p90: Milliseconds
    p99: Milliseconds

    @model_validator(mode="after")
    def _rise(self) -> Self:
        if not self.p50 <= self.p90 <= self.p99:
            raise ValueError("the percentiles do not rise from p50 to p99")
        return self


class DeviceResult(Record):
    """What all results have in common: the bundle, the machine and its unit."""

    bundle: BundleIdentity
    machine: dict[str, str | int | None] = Field(
        description="common.py's record of it; a phone has a `model`, too"
    )
    unit: Literal["cpu", "gpu", "npu"] = "cpu"

    @field_validator("machine")
    @classmethod
    def _is_named(cls, machine: dict[str, str | int | None]) -> dict[str, str | int | None]:
        if not (machine.get("model") or machine.get("cpu")):
            raise ValueError("neither `cpu` nor `model` says which device it is")
        return machine

    @property
    def device(self) -> str:
        """The machine in words: a phone's model and chip, otherwise the CPU or the board."""
        model, chip = self.machine.get("model"), self.machine.get("soc") or self.machine.get("cpu")
        if model:
            return f"{model} ({chip})" if chip else str(model)
        return str(self.machine["cpu"])

    @property
    def device_digest(self) -> str:
        """Six hexadecimal digits of a digest of the machine's record, without its settings."""
        lasting = {key: value for key, value in self.machine.items() if key not in _SETTINGS}
        return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:6]

    @property
    def device_slug(self) -> str:
        """A folder's name: the device in lower case and the digest of its record."""
        words = re.sub("[^a-z0-9]+", "-", self.device.lower()).strip("-")
        return f"{words[:40].strip('-') or 'device'}-{self.device_digest}"


class Timed(DeviceResult):
    """A result with a latency: the runtime and the threads."""

    runtime: dict[str, str] = Field(min_length=1, description="version by package")
    threads: Count

    @property
    def file_name(self) -> str:
        unit = "" if self.unit == "cpu" else f"-{self.unit}"
        return f"{self.bundle.artifact.slug}-bench{unit}-t{self.threads}.json"


class Bench(Timed):
    """What bench.py writes; times in milliseconds. Older bundles lack fields that may be null."""

    rounds: Count
    n: Count
    latency_ms: DeviceLatency
    p90_interval_ms: tuple[Milliseconds, Milliseconds] | None = None
    p50_by_round_ms: tuple[Milliseconds, ...]
    load_ms: Amount
    first_ms: Milliseconds
    warm_up: WarmUp | None = None
    overhead_ns: Annotated[int, Field(ge=0)] | None = None
    peak_rss_bytes: Count | None = None
    cpus: tuple[int, ...] | None = Field(None, description="to which bench.py was kept")
    throughput: Throughput | None = None
    throughput_reason: str | None = Field(None, description="why bench.py found none")

    @field_validator("p90_interval_ms")
    @classmethod
    def _is_an_interval(cls, limits: tuple[float, float] | None) -> tuple[float, float] | None:
        if limits and limits[0] > limits[1]:
            raise ValueError("the lower limit is above the upper one")
        return limits

    def __str__(self) -> str:
        times, unit = self.latency_ms, "" if self.unit == "cpu" else f", {self.unit}"
        return f"p50 {times.p50:.3f} ms, p90 {times.p90:.3f} ms, {self.threads} thread(s){unit}"


class PhoneLatency(Record):
    """Milliseconds per inference, as the phone's tool prints them."""

    mean: Milliseconds
    p50: Milliseconds | None = None
    p5: Milliseconds | None = None
    p95: Milliseconds | None = None
    min: Milliseconds
    max: Milliseconds


class Delegate(Record):
    """How many of a graph's operators a delegate took, in how many partitions."""

    delegate: str
    operators: int
    of: int
    partitions: int


class PhoneBench(Timed):
    """What phone.py writes about one unit: times, or the reason why there are none."""

    status: Literal["measured", "not_measured", "failed"]
    reason: str | None = None
    delegates: tuple[Delegate, ...]
    n: Count | None = None
    latency_ms: PhoneLatency | None = None
    load_ms: Amount | None = None
    first_ms: Milliseconds | None = None
    warmup_ms: Milliseconds | None = None
    memory_mb: dict[str, float] | None = None

    @model_validator(mode="after")
    def _measured_or_not(self) -> Self:
        if (self.status == "measured") != (self.latency_ms is not None):
            raise ValueError("`latency_ms` belongs to the status `measured`, and to no other")
        if self.status != "measured" and not self.reason:
            raise ValueError(f"the field `reason` is missing beside the status `{self.status}`")
        return self

    def __str__(self) -> str:
        if self.latency_ms is None:
            return f"{self.unit} {self.status.replace('_', ' ')}: {self.reason}"
        p50 = self.latency_ms.p50
        figure = f"mean {self.latency_ms.mean:.3f} ms" if p50 is None else f"p50 {p50:.3f} ms"
        return f"{figure}, {self.threads} thread(s), {self.unit}"


class Verdict(DeviceResult):
    """What verify.py writes where nothing was compared: a damaged file, no runtime."""

    verdict: Literal["PASSED", "FAILED"]
    why: str

    @property
    def by_graph(self) -> bool:
        """Whether TensorRT's portable graph was verified, not its engine."""
        return False

    @property
    def file_name(self) -> str:
        unit = "" if self.unit == "cpu" else f"-{self.unit}"
        graph = "-graph" if self.by_graph else ""
        return f"{self.bundle.artifact.slug}-verify{graph}{unit}.json"

    def __str__(self) -> str:
        why = " ".join(self.why.split())  # what to do stands on a line of its own
        return "PASSED" if self.verdict == "PASSED" else f"FAILED: {why}"


class Comparison(Verdict):
    """What verify.py writes after comparing logits with the golden ones."""

    runtime: dict[str, str] = Field(min_length=1, description="version by package")
    threads: Count
    images: Count
    same_argmax: Share
    max_logit_error: LogitError
    mean_logit_error: LogitError
    top1: Share
    golden_top1: Share
    tolerances: Tolerances

    @property
    def by_graph(self) -> bool:
        return self.bundle.backend == "tensorrt" and "onnxruntime" in self.runtime


Result = Bench | PhoneBench | Verdict


def parse_result(content: Any, where: str, fix: str) -> Result:
    """The record in decoded JSON; the fields decide which kind it is.

    Args:
        content: what `json.loads` gives.
        where: path of the file, for the error.
        fix: advice for the error.

    Raises:
        PipelineError: names the first field that is missing, unknown or impossible.
    """
    kind: type[Result]
    if isinstance(content, dict) and "verdict" in content:
        compared = Comparison.model_fields.keys() - Verdict.model_fields.keys()
        bare = content["verdict"] != "PASSED" and not compared & content.keys()
        kind = Verdict if bare else Comparison
    elif isinstance(content, dict) and "status" in content:
        kind = PhoneBench
    elif isinstance(content, dict) and "latency_ms" in content:
        kind = Bench
    else:
        what = "not what bench.py or verify.py writes: there is neither `latency_ms` nor `verdict`"
        raise PipelineError(what, where=where, fix=fix)
    try:
        # From JSON strict types still accept lists as tuples and integers as floats.
        return kind.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        script = {Bench: "bench.py", PhoneBench: "phone.py"}.get(kind, "verify.py")
        what = f"not what {script} writes: {_complaint(error)}"
        raise PipelineError(what, where=where, fix=fix) from None


def _complaint(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"the field `{field}` is missing"
    if first["type"] == "extra_forbidden":
        return f"the field `{field}` is unknown"
    place = f"`{field}`: " if field else ""
    return place + first["msg"].removeprefix("Value error, ")
