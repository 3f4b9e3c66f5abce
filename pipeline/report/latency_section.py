"""The distribution of single-image latencies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.registry import backend
from pipeline.core.errors import PipelineError
from pipeline.latency.records import LATENCIES, REFERENCE, BenchmarkRecord, BenchmarkRow
from pipeline.report.int8_sections import Section
from pipeline.report.plots import GREY, Strip
from pipeline.report.results import UNKNOWN, Row


def strips(rows: list[Row]) -> list[Strip]:
    """The latencies of the reference and of every measured artifact, in the order of the rows.

    Raises:
        PipelineError: where their latencies are not recorded.
    """
    if not LATENCIES.exists():
        raise PipelineError(
            "the latencies are missing", where=str(LATENCIES), fix="run `dvc repro`"
        )
    with np.load(LATENCIES) as recorded:
        found = [Strip(REFERENCE, "reference", GREY, _times(recorded, REFERENCE))]
        found += [
            Strip(
                row.artifact.slug,
                row.name,
                backend(row.artifact.backend).colour,
                _times(recorded, row.artifact.key),
            )
            for row in rows
            if row.p50 is not None
        ]
    return found


def _times(recorded: np.lib.npyio.NpzFile, key: str) -> NDArray[np.float64]:
    """Milliseconds [n]."""
    name = f"{key}/ns"
    if name not in recorded:
        raise PipelineError(
            f"there are no latencies of {key}", where=str(LATENCIES), fix="run `dvc repro`"
        )
    milliseconds: NDArray[np.float64] = recorded[name] / 1e6
    return milliseconds


def latency_section(rows: list[Row], record: BenchmarkRecord) -> Section:
    """Every figure of the benchmark, the reference first."""
    measured = [("reference", record.reference)]
    measured += [(row.name, row.latency) for row in rows if row.latency and row.p50 is not None]
    columns = (
        "Artifact", "Inferences", "p50 ms", "p90 ms", "95% of p90", "p99 ms", "95% of × ref",  # noqa: RUF001
        "Images/s", "First ms", "Load ms", "Warm-up", "Peak MiB",
    )  # fmt: skip
    shown = tuple((name, *_cells(bench)) for name, bench in measured)
    return Section("Latency", columns, (False, *(True,) * 11), shown)


def _cells(bench: BenchmarkRow) -> tuple[str, ...]:
    times, interval, peak = bench.latency_ms, bench.p90_interval_ms, bench.peak_rss_bytes
    ratio, many, warm = bench.ratio_interval, bench.throughput, bench.warm_up
    return (
        f"{bench.n:,}",
        f"{times.p50:.3f}" if times else UNKNOWN,
        f"{times.p90:.3f}" if times else UNKNOWN,
        f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else UNKNOWN,
        f"{times.p99:.3f}" if times else UNKNOWN,
        f"{ratio[0]:.3f} to {ratio[1]:.3f}" if ratio else UNKNOWN,
        f"{many.images_per_second:,.0f}" if many else UNKNOWN,
        UNKNOWN if bench.first_ms is None else f"{bench.first_ms:.2f}",
        UNKNOWN if bench.load_ms is None else f"{bench.load_ms:.1f}",
        f"{warm.inferences:,}{'' if warm.steady else ', never steady'}" if warm else UNKNOWN,
        UNKNOWN if peak is None else f"{peak / 2**20:.0f}",
    )
