"""What the report's figures depend on: settings, data, machine, tools and digests."""

from __future__ import annotations

from pipeline.backends.base.records import ArtifactRecord
from pipeline.data.records import Manifest
from pipeline.latency.records import BenchmarkRecord
from pipeline.report.params import ReportParams
from pipeline.report.recommendation import limits_text
from pipeline.report.sections import Section


def circumstances_section(
    params: ReportParams, manifest: Manifest, benchmark: BenchmarkRecord
) -> Section:
    """Settings, data and machine of the run."""
    sizes = ", ".join(f"{split} {manifest.size(split):,}" for split in manifest.counts)
    side, reference = manifest.image_size, benchmark.reference.latency_ms
    settings, machine = params.benchmark, benchmark.fingerprint
    arrays = {name: digest for name, digest in manifest.digests.items() if name.endswith(".npy")}
    rows = [
        ("Profile", f"{params.profile}, seed {params.seed}"),
        ("Data", f"{manifest.source}; licence: {manifest.licence}"),
        ("Images", f"{sizes}; {side} x {side}, {manifest.channels} channel(s)"),
        ("Packed arrays", _digests(arrays)),
        ("Rejected files", f"{len(manifest.rejected)}"),
        ("Calibration set", manifest.calibration_digest[:16]),
        (
            "Latency",
            f"batch 1, {settings.threads} thread(s), {settings.rounds} interleaved rounds of at "
            f"least {settings.min_runs} inferences and {settings.min_seconds:g} s",
        ),
        *_disturbances(benchmark),
        (
            "Reference model",
            benchmark.reference_digest[:16]
            + (f", p50 {reference.p50:.3f} ms" if reference else ""),
        ),
        ("Limits", limits_text(params.limits)),
        (
            "Machine",
            f"{machine.cpu}, {machine.architecture}, {machine.cores} core(s), "
            f"{machine.memory_gib} GiB, kernel {machine.kernel}, "
            f"governor {machine.governor or 'unknown'}",
        ),
        ("Instruction sets", ", ".join(machine.instruction_sets) or "none that matter"),
        ("Accelerators", ", ".join(machine.accelerators) or "none"),
        ("Runtimes", _versions(machine.runtimes)),
    ]
    rows += [("Warning", warning) for warning in manifest.warnings]
    return Section("Circumstances", ("What", "Value"), (False, False), tuple(rows))


def _disturbances(benchmark: BenchmarkRecord) -> list[tuple[str, str]]:
    """What affected the latencies beside the artifacts."""
    rows = []
    if benchmark.overhead_ns is not None:
        rows.append(("Harness", f"adds {benchmark.overhead_ns} ns to each latency"))
    cpus = benchmark.reference.cpus
    pinned = f"CPU {', '.join(map(str, cpus))}" if cpus else "no CPU: this system cannot pin"
    return [*rows, ("Pinned to", pinned), ("Rounds", _rounds(benchmark))]


def _rounds(benchmark: BenchmarkRecord) -> str:
    rounds = benchmark.conditions
    if all(one.others is one.stolen is one.mhz is None for one in rounds):
        return "not watched: this system reports neither other processes nor clocks"
    kept = [one for one in rounds if one.kept]
    spoiled = [one.spoiled for one in kept if one.spoiled]
    texts = [f"{benchmark.repeated_rounds} measured again, {len(spoiled)} spoiled ones kept"]
    if others := [one.others for one in kept if one.others is not None]:
        texts.append(f"other processes took at most {max(others):.1%} of the measuring CPUs' time")
    if elsewhere := [one.elsewhere for one in kept if one.elsewhere is not None]:
        texts.append(f"of the other CPUs' time at most {max(elsewhere):.1%} was taken")
    return "; ".join([*texts, *spoiled])


def artifacts_section(artifacts: dict[str, ArtifactRecord]) -> Section:
    """Quantizer, tools and digests of every compiled artifact."""
    shown = [
        (
            name,
            artifact.quantizer or "none",
            _versions(artifact.versions),
            _digests(artifact.digests),
            "; ".join(artifact.notes),
        )
        for name, artifact in artifacts.items()
    ]
    columns = ("Artifact", "Quantizer", "Versions", "SHA-256", "Notes")
    return Section("Artifacts", columns, (False,) * 5, tuple(shown))


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _digests(digests: dict[str, str]) -> str:
    return ", ".join(f"{name} {digest[:16]}" for name, digest in digests.items())
