"""What the scripts and the page of a bundle write about a device, as strict types.

What a result says of itself is not believed where it follows from its figures: types refuse a
verdict, a median or an order that they contradict.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from pipeline.backends.base.artifact import Artifact
from pipeline.bundle.device_values import (
    Counted,
    Delegate,
    DeviceLatency,
    DeviceThroughput,
    DeviceWarmUp,
    LoadMilliseconds,
    Machine,
    Megabytes,
    Milliseconds,
    Name,
    PhoneLatency,
    Prose,
    Share,
    Threads,
    Versions,
    one_line,
)
from pipeline.bundle.records import Tolerances
from pipeline.core.errors import PipelineError
from pipeline.core.records import Record


def _finite_or_none(error: Any) -> Any:
    return None if isinstance(error, float) and not math.isfinite(error) else error


LogitError = Annotated[float | None, Field(ge=0), BeforeValidator(_finite_or_none)]
"""None where a logit is not a number: verify.py fails then, and JSON has no NaN."""

_SETTINGS = {"governor", "python", "numpy", "browser_version"}
"""Fields of a machine's record that may change while it stays the same machine."""

_ROUNDING = 1e-5
"""Milliseconds, and shares: figures are rounded to six digits."""


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


class DeviceResult(Record):
    """What all results have in common: the bundle, the machine and its unit."""

    bundle: BundleIdentity
    machine: Machine
    unit: Literal["cpu", "gpu", "npu"] = "cpu"

    @property
    def device(self) -> str:
        """The machine in words."""
        emulator = self.machine.emulated_by
        return f"{self.machine.name}, emulated by {emulator}" if emulator else self.machine.name

    @property
    def emulated(self) -> bool:
        """Whether no real CPU ran the bundle: logits count then, latencies do not."""
        return self.machine.emulated_by is not None

    @property
    def device_digest(self) -> str:
        """Six hexadecimal digits of a digest of the machine's record, without its settings."""
        lasting = self.machine.model_dump(exclude=_SETTINGS)
        return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:6]

    @property
    def device_slug(self) -> str:
        """A folder's name: the device in lower case and the digest of its record."""
        words = re.sub("[^a-z0-9]+", "-", self.machine.name.lower()).strip("-")
        return f"{words[:40].strip('-') or 'device'}-{self.device_digest}"


class Timed(DeviceResult):
    """A result with a latency: the runtime and the threads."""

    runtime: Versions
    threads: Threads

    @property
    def file_name(self) -> str:
        unit = "" if self.unit == "cpu" else f"-{self.unit}"
        return f"{self.bundle.artifact.slug}-bench{unit}-t{self.threads}.json"


class Bench(Timed):
    """What bench.py writes; times in milliseconds. Older bundles lack fields that may be null."""

    rounds: Counted
    n: Counted
    latency_ms: DeviceLatency
    p90_interval_ms: tuple[Milliseconds, Milliseconds] | None = None
    p50_by_round_ms: Annotated[tuple[Milliseconds, ...], Field(min_length=1)]
    load_ms: LoadMilliseconds
    first_ms: Milliseconds
    warm_up: DeviceWarmUp | None = None
    overhead_ns: Annotated[int, Field(ge=0, le=10**9)] | None = None
    peak_rss_bytes: Annotated[int, Field(ge=1, le=2**50)] | None = None
    cpus: tuple[Annotated[int, Field(ge=0, le=2**16)], ...] | None = Field(
        None, description="to which bench.py was kept"
    )
    throughput: DeviceThroughput | None = None
    throughput_reason: Prose | None = Field(None, description="why bench.py found none")

    @field_validator("p90_interval_ms")
    @classmethod
    def _is_an_interval(cls, limits: tuple[float, float] | None) -> tuple[float, float] | None:
        if limits and limits[0] > limits[1]:
            raise ValueError("the lower limit is above the upper one")
        return limits

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        medians, p50 = self.p50_by_round_ms, self.latency_ms.p50
        if len(medians) != self.rounds or self.n < self.rounds:
            raise ValueError(
                f"{self.rounds} rounds do not fit {len(medians)} medians of {self.n} inferences"
            )
        if not min(medians) - _ROUNDING <= p50 <= max(medians) + _ROUNDING:
            raise ValueError("`latency_ms.p50` lies outside the medians of its rounds")
        return self

    def __str__(self) -> str:
        times, unit = self.latency_ms, "" if self.unit == "cpu" else f", {self.unit}"
        if self.emulated:
            return f"an emulator's latency is no device's, {self.threads} thread(s){unit}"
        return f"p50 {times.p50:.3f} ms, p90 {times.p90:.3f} ms, {self.threads} thread(s){unit}"


class BrowserBench(Bench):
    """What the page of a bundle writes."""

    clock_step_ms: Milliseconds = Field(description="of the clock that timed each inference")
    cross_origin_isolated: bool = Field(
        description="whether the browser gave the page threads and its finest clock"
    )


class PhoneBench(Timed):
    """What phone.py writes about one unit: times, or the reason why there are none."""

    status: Literal["measured", "not_measured", "failed"]
    reason: Prose | None = None
    delegates: tuple[Delegate, ...]
    n: Counted | None = None
    latency_ms: PhoneLatency | None = None
    load_ms: LoadMilliseconds | None = None
    first_ms: Milliseconds | None = None
    warmup_ms: Milliseconds | None = None
    memory_mb: dict[Literal["load", "overall"], Megabytes] | None = None

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
        if self.emulated:
            return f"an emulator's latency is no device's, {self.threads} thread(s), {self.unit}"
        figure = f"mean {self.latency_ms.mean:.3f} ms" if p50 is None else f"p50 {p50:.3f} ms"
        return f"{figure}, {self.threads} thread(s), {self.unit}"


class Verdict(DeviceResult):
    """What verify.py writes where nothing was compared: a damaged file, no runtime."""

    verdict: Literal["PASSED", "FAILED"]
    why: Prose

    @property
    def excess(self) -> str:
        """Why the bundle fails, in words; empty if it passes."""
        return self.why or "no reason is given"

    @model_validator(mode="after")
    def _follows(self) -> Self:
        should = "FAILED" if self.excess else "PASSED"
        if self.verdict != should:
            found = f": {self.excess}" if self.excess else ", by which it is PASSED"
            raise ValueError(f"the verdict {self.verdict} contradicts the figures{found}")
        return self

    @property
    def by_graph(self) -> bool:
        """Whether a runtime that is not the backend's own evaluated the model: ONNX Runtime that of
        TensorRT, torch that of Core ML."""
        return False

    @property
    def file_name(self) -> str:
        unit = "" if self.unit == "cpu" else f"-{self.unit}"
        graph = "-graph" if self.by_graph else ""
        return f"{self.bundle.artifact.slug}-verify{graph}{unit}.json"

    def __str__(self) -> str:
        return f"FAILED: {self.excess}" if self.excess else "PASSED"


class Comparison(Verdict):
    """What verify.py writes after comparing logits with the golden ones."""

    runtime: Versions
    threads: Threads
    images: Counted
    same_argmax: Share
    max_logit_error: LogitError
    mean_logit_error: LogitError
    top1: Share
    golden_top1: Share
    tolerances: Tolerances

    @property
    def excess(self) -> str:
        """Which figures lie beyond the tolerances."""
        limits, found = self.tolerances, []
        if not self.same_argmax >= limits.min_same_argmax:
            found.append(f"the class is the lab's on {self.same_argmax:.1%} of the images only")
        for name in ("max_logit_error", "mean_logit_error"):
            error, most = getattr(self, name), getattr(limits, name)
            if error is None or not error <= most:
                value = "not a number" if error is None else f"{error:.3g}"
                found.append(f"{name.replace('_', ' ')} is {value}, beyond {most:.3g}")
        return "; ".join(found)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for name in ("same_argmax", "top1", "golden_top1"):
            images = getattr(self, name) * self.images
            if abs(images - round(images)) > _ROUNDING * self.images:
                raise ValueError(f"`{name}` is no share of {self.images} images")
        # an image whose class is the lab's is right or wrong in both
        if abs(self.top1 - self.golden_top1) > 1 - self.same_argmax + _ROUNDING:
            raise ValueError("`top1` and `golden_top1` differ by more than `same_argmax` allows")
        largest, mean = self.max_logit_error, self.mean_logit_error
        if (largest is None) != (mean is None) or (largest or 0.0) * (1 + 1e-9) < (mean or 0.0):
            raise ValueError("`mean_logit_error` does not fit `max_logit_error`")
        return self

    @property
    def by_graph(self) -> bool:
        other = {"tensorrt": "onnxruntime", "coreml": "torch"}.get(self.bundle.backend)
        return other is not None and other in self.runtime


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
        machine = content.get("machine")
        in_browser = isinstance(machine, dict) and machine.get("browser") is not None
        kind = BrowserBench if in_browser else Bench
    else:
        what = "not what bench.py or verify.py writes: there is neither `latency_ms` nor `verdict`"
        raise PipelineError(what, where=where, fix=fix)
    script = {Bench: "bench.py", BrowserBench: "the page", PhoneBench: "phone.py"}.get(
        kind, "verify.py"
    )
    try:
        # From JSON strict types still accept lists as tuples and integers as floats.
        return kind.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        what = f"not what {script} writes: {_complaint(error)}"
        raise PipelineError(what, where=where, fix=fix) from None


def _complaint(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    field = one_line(".".join(str(part) for part in first["loc"]), 100)
    if first["type"] == "missing":
        return f"the field `{field}` is missing"
    if first["type"] == "extra_forbidden":
        return f"the field `{field}` is unknown"
    place = f"`{field}`: " if field else ""
    return place + one_line(first["msg"].removeprefix("Value error, "), 300)
