"""Imported results of devices, one row per artifact, device, unit and number of threads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pipeline.backends.base.registry import title
from pipeline.bundle.device_record import Bench, Comparison, PhoneBench, Result, Verdict
from pipeline.bundle.devices import bundle_digests, stored_results
from pipeline.report.results import UNKNOWN, Row

LEFT_ALIGNED = ("Artifact", "Device", "Runtime", "Verified", "Bundle")


@dataclass(frozen=True)
class OnDevice:
    """A latency, a verdict or both of one artifact on one device."""

    about: Result
    """The latency, or the verdict if there is none."""
    verdict: Verdict | None
    current: bool
    """Whether its bundle is still the one in models/bundles."""
    device: str
    """Unique name."""
    here: float | None
    """Local p50 in ms; None if not measured."""

    @property
    def bench(self) -> Bench | PhoneBench | None:
        """The latency, if there is one."""
        return None if isinstance(self.about, Verdict) else self.about

    @property
    def runtime(self) -> dict[str, str]:
        """Version by package; empty if verify.py ran none."""
        timed = self.about if isinstance(self.about, Comparison) else self.bench
        return timed.runtime if timed else {}

    @property
    def failed(self) -> bool:
        """Whether verify.py refused the bundle."""
        return self.verdict is not None and self.verdict.verdict == "FAILED"

    @property
    def verified(self) -> str:
        """The verdict in words, with how its bundle or runtime differs from the latency's."""
        if self.verdict is None:
            why = self.bench.reason if isinstance(self.bench, PhoneBench) else None
            return f"not verified; {why}" if why else "not verified"
        text, _, why = str(self.verdict).partition(": ")
        if isinstance(self.verdict, Comparison) and self.verdict.runtime != self.runtime:
            text += f", by {_versions(self.verdict.runtime)}"
        if self.verdict.bundle.digest != self.about.bundle.digest:
            text += ", of another build"
        return f"{text}: {why}" if why else text

    def cells(self) -> dict[str, str]:
        """Every figure as text by its heading; a dash for an unknown one."""
        bundle, unit = self.about.bundle, self.about.unit
        runtime = title(bundle.backend)
        p50, p90 = self._latency()
        real = not self.about.emulated
        many = self.bench.throughput if isinstance(self.bench, Bench) and real else None
        return {
            "Artifact": f"{bundle.student} {runtime} {bundle.precision}",
            "Device": self.device if unit == "cpu" else f"{self.device}, {unit}",
            "Runtime": _versions(self.runtime) or UNKNOWN,
            "Threads": f"{self.bench.threads}" if self.bench else UNKNOWN,
            "p50 ms": p50,
            "p90 ms": p90,
            "p50 here": f"{self.here:.3f}" if self.here is not None and real else UNKNOWN,
            "Images/s": f"{many.images_per_second:,.0f}" if many else UNKNOWN,
            "Verified": self.verified,
            "Bundle": "current" if self.current else "stale",
        }

    def _latency(self) -> tuple[str, str]:
        """p50 and p90 as text; a phone's tool may report only the mean, and never p90."""
        bench = self.bench
        if bench is None:
            return UNKNOWN, UNKNOWN
        if bench.emulated:
            return "emulated", UNKNOWN
        if isinstance(bench, Bench):
            return f"{bench.latency_ms.p50:.3f}", f"{bench.latency_ms.p90:.3f}"
        if bench.latency_ms is None:
            return bench.status.replace("_", " "), UNKNOWN
        p50 = bench.latency_ms.p50
        return f"mean {bench.latency_ms.mean:.3f}" if p50 is None else f"{p50:.3f}", UNKNOWN


def on_devices(rows: list[Row]) -> list[OnDevice]:
    """Every imported result, in the order of the local `rows`; artifacts without a row come last.

    Raises:
        PipelineError: for a file in metrics/devices that is not a result.
    """
    digests = bundle_digests()
    results = stored_results(digests)
    names = _device_names(results)
    local = {row.artifact: row.p50 for row in rows}
    place = {artifact: number for number, artifact in enumerate(local)}
    verdicts = {_key(result): result for result in results if isinstance(result, Verdict)}
    benches = [result for result in results if not isinstance(result, Verdict)]
    timed = {_key(bench) for bench in benches}
    alone = [verdict for key, verdict in verdicts.items() if key not in timed]
    found = [
        OnDevice(
            about,
            verdicts.get(_key(about)),
            digests.get(about.bundle.artifact.slug) == about.bundle.digest,
            names[about.device_slug],
            local.get(about.bundle.artifact),
        )
        for about in (*benches, *alone)
    ]
    return sorted(
        found,
        key=lambda one: (
            place.get(one.about.bundle.artifact, len(place)),
            _key(one.about),
            one.bench.threads if one.bench else 0,
        ),
    )


def _key(result: Result) -> tuple[str, str, str, bool]:
    """What a latency and its verdict share; TensorRT's portable graph is verified, never timed."""
    graph = isinstance(result, Verdict) and result.by_graph
    return result.bundle.artifact.slug, result.device_slug, result.unit, graph


def _device_names(results: list[Result]) -> dict[str, str]:
    """The name of each device by its slug, with its digest where two have the same name."""
    devices = {result.device_slug: result for result in results}
    namesakes = Counter(result.device for result in devices.values())
    return {
        slug: one.device if namesakes[one.device] == 1 else f"{one.device} {one.device_digest}"
        for slug, one in devices.items()
    }


def _versions(runtime: dict[str, str]) -> str:
    # phone.py gives the digest of a tool that has no version
    return ", ".join(f"{name} {version[:23]}" for name, version in runtime.items())
