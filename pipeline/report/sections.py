"""The report's tables on int8 (parity, attempts, noise, execution) and on latencies."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Self

from pipeline.backends.base.records import ArtifactRecord
from pipeline.compile.records import LayerNoise
from pipeline.data.recall import interval
from pipeline.latency.records import BenchmarkRecord, BenchmarkRow
from pipeline.networks.params import Student
from pipeline.report.results import UNKNOWN, Row

DIVERGED_DB = 20
"""At a signal-to-noise ratio of 20 dB the noise has a tenth of the signal's amplitude."""


@dataclass(frozen=True)
class Section:
    """A heading and a table."""

    heading: str
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    """Which columns hold numbers."""
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...] = ()
    """CSS class of each row; empty: none has one."""

    @classmethod
    def of(
        cls,
        heading: str,
        rows: Sequence[dict[str, str]],
        words: Collection[str],
        marks: tuple[str, ...] = (),
    ) -> Self:
        """A table of rows that give each cell by its column; those not in `words` hold numbers."""
        columns = tuple(rows[0]) if rows else ()
        numeric = tuple(column not in words for column in columns)
        return cls(heading, columns, numeric, tuple(tuple(row.values()) for row in rows), marks)


def parity_section(rows: list[Row]) -> Section:
    """Differences between each artifact and the float student on the test split."""
    columns = ("Artifact", "Same argmax", "Lost", "Won", "Max error", "Mean error", "SNR dB")
    shown = []
    for row in rows:
        if metrics := row.metrics:
            noise = "exact" if metrics.snr_db is None else f"{metrics.snr_db:.1f}"
            flips = (f"{metrics.agreement:.4f}", f"{metrics.lost}", f"{metrics.won}")
            errors = (f"{metrics.max_logit_error:.2g}", f"{metrics.mean_logit_error:.2g}")
            shown.append((row.name, *flips, *errors, noise))
    return Section("Parity with the float student", columns, (False, *(True,) * 6), tuple(shown))


def ladder_section(rows: list[Row], val_images: int) -> Section:
    """Every attempt at an int8 artifact with its accuracy on val, its size and its time."""

    def limits(top1: float | None) -> str:
        return UNKNOWN if top1 is None else interval(top1, val_images)

    tried = [(row, attempt) for row in rows if row.metrics for attempt in row.metrics.ladder]
    shown = [
        {
            "Artifact": row.name,
            "Rung": attempt.rung.replace("_", " "),
            "Recipe": f"{attempt.recipe}: {attempt.failure}" if attempt.failure else attempt.recipe,
            "Val top-1": UNKNOWN if attempt.val_top1 is None else f"{attempt.val_top1:.4f}",
            "95% of val top-1": limits(attempt.val_top1),
            "Drop": UNKNOWN if attempt.val_drop is None else f"{attempt.val_drop:+.4f}",
            "p": "" if attempt.val_chance is None else f"{attempt.val_chance:.2g}",
            "Bytes": UNKNOWN if attempt.size_bytes is None else f"{attempt.size_bytes:,}",
            "Seconds": f"{attempt.seconds:.0f}",
            "Kept": "kept" if attempt.kept else "",
        }
        for row, attempt in tried
    ]
    marks = tuple("measured" if attempt.kept else "not_measured" for _, attempt in tried)
    return Section.of("Attempts at int8", shown, ("Artifact", "Rung", "Recipe", "Kept"), marks)


def undecided(rows: list[Row]) -> list[str]:
    """Why val is too small to decide what the ladder was to decide, where it is."""
    reasons = (row.metrics.undecided for row in rows if row.metrics)
    return list(dict.fromkeys(reason for reason in reasons if reason))


def noise_section(rows: list[Row]) -> Section:
    """The first layer with much noise, the one with the most, and the last one."""
    columns = ("Artifact", f"First below {DIVERGED_DB} dB", "dB", "Worst", "dB", "Last", "dB")
    shown = []
    for row in rows:
        layers = row.metrics.layers if row.metrics else ()
        if not layers:
            continue
        decibels = [math.inf if layer.snr_db is None else layer.snr_db for layer in layers]
        first = next((i for i, value in enumerate(decibels) if value < DIVERGED_DB), None)
        worst = decibels.index(min(decibels))
        diverged = ("none", "") if first is None else _named(layers[first])
        shown.append((row.name, *diverged, *_named(layers[worst]), *_named(layers[-1])))
    numeric = (False, False, True, False, True, False, True)
    return Section("Noise of int8 by layer", columns, numeric, tuple(shown))


def _named(layer: LayerNoise) -> tuple[str, str]:
    return layer.name, "exact" if layer.snr_db is None else f"{layer.snr_db:.1f}"


def replaced_section(students: dict[str, Student], rows: list[Row]) -> Section:
    """Students with another activation than hard-swish, beside the same students with it."""
    by_artifact = {row.artifact: row for row in rows}
    shown = []
    for name, network in students.items():
        if network.hard_swish == "keep":
            continue
        kept = network.model_copy(update={"hard_swish": "keep"})
        for original in (other for other, its in students.items() if its == kept):
            for row in (row for row in rows if row.artifact.student == name):
                before = by_artifact[replace(row.artifact, student=original)]
                if row.metrics and before.metrics:
                    gain = row.metrics.top1 - before.metrics.top1
                    cells = (f"{row.metrics.top1:.4f}", f"{gain:+.4f}")
                    times = (UNKNOWN, "")
                    if row.p50 and before.p50:
                        times = (f"{row.p50:.3f}", f"{row.p50 / before.p50:.2f}")
                    shown.append((row.name, original, *cells, *times))
    columns = ("Artifact", "Compared with", "Top-1", "Gain", "p50 ms", "Ratio of p50")
    return Section("Hard-swish replaced", columns, (False, False, *(True,) * 4), tuple(shown))


def execution_section(artifacts: dict[str, ArtifactRecord]) -> Section:
    """What each runtime executes; the float layers of an int8 artifact by name."""
    shown = []
    for name, artifact in artifacts.items():
        execution = artifact.execution
        layers = "; ".join(map(str, execution.in_float)) or "none"
        if artifact.precision != "int8":
            layers = f"all {len(execution.in_float)}"
        scales = {None: UNKNOWN, True: "yes", False: "no"}[execution.per_channel]
        cells = (f"{execution.macs:,}", f"{execution.int8_mac_share:.1%}", layers, scales)
        types = f"{execution.input_type} to {execution.output_type}"
        images = artifact.exact_input_images
        exact = f"on {images} images" if images else UNKNOWN
        partitions = str(execution.partitions or UNKNOWN)
        shown.append((name, *cells, partitions, types, exact))
    columns = (
        "Artifact", "MACs", "int8 MACs", "Layers in float", "Scales per channel", "Partitions",
        "Types", "Input exact",
    )  # fmt: skip
    numeric = (False, True, True, *(False,) * 5)
    return Section("Execution report", columns, numeric, tuple(shown))


def latency_section(rows: list[Row], record: BenchmarkRecord) -> Section:
    """Every figure of the benchmark, the reference first."""
    measured = [("reference", record.reference)]
    measured += [(row.name, row.latency) for row in rows if row.latency and row.p50 is not None]
    return Section.of("Latency", [_cells(name, bench) for name, bench in measured], ("Artifact",))


def _cells(name: str, bench: BenchmarkRow) -> dict[str, str]:
    times, interval, peak = bench.latency_ms, bench.p90_interval_ms, bench.peak_rss_bytes
    ratio, many, warm = bench.ratio_interval, bench.throughput, bench.warm_up
    steady = "" if warm is None or warm.steady else ", never steady"
    return {
        "Artifact": name,
        "Inferences": f"{bench.n:,}",
        "p50 ms": f"{times.p50:.3f}" if times else UNKNOWN,
        "p90 ms": f"{times.p90:.3f}" if times else UNKNOWN,
        "95% of p90": f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else UNKNOWN,
        "p99 ms": f"{times.p99:.3f}" if times else UNKNOWN,
        "95% of × ref": f"{ratio[0]:.3f} to {ratio[1]:.3f}" if ratio else UNKNOWN,  # noqa: RUF001
        "Images/s": f"{many.images_per_second:,.0f}" if many else UNKNOWN,
        "First ms": UNKNOWN if bench.first_ms is None else f"{bench.first_ms:.2f}",
        "Load ms": UNKNOWN if bench.load_ms is None else f"{bench.load_ms:.1f}",
        "Warm-up": f"{warm.inferences:,}{steady}" if warm else UNKNOWN,
        "Peak MiB": UNKNOWN if peak is None else f"{peak / 2**20:.0f}",
    }
