"""What was recorded about every artifact that params.yaml asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from pipeline.accuracy.paired import mcnemar
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.registry import backend, title
from pipeline.compile.records import CompiledMetrics
from pipeline.data.recall import LEVEL, interval, wilson
from pipeline.latency.records import BENCHMARK, BenchmarkRecord, BenchmarkRow
from pipeline.report.params import Limits, ReportParams

Status = Literal["measured", "not_measured", "failed", "missing"]

REPORTS = Path("reports")

CLEARLY = 1.03
"""An int8 artifact that is slower than a float one by more than this factor gets a note; a smaller
difference may be noise."""
UNKNOWN = "–"  # noqa: RUF001 - a dash in a table
TOP1_LIMITS = "95% of top-1"
UNTIMED = "it has no latency"
"""Breaks a limit of p50. The row's status says why there is no latency."""


@dataclass(frozen=True)
class Row:
    """One artifact and what is recorded about it."""

    artifact: Artifact
    status: Status
    reason: str | None
    """Why it is not measured."""
    metrics: CompiledMetrics | None
    latency: BenchmarkRow | None
    excess: tuple[str, ...] | None
    """Which limits it breaks; None if that is unknown."""
    overtaken_by: tuple[str, float] | None = None
    """Precision and p50 in ms of a float artifact that is clearly faster than this int8 one."""

    @property
    def name(self) -> str:
        """Student, runtime and precision for people."""
        its = self.artifact
        return f"{its.student} {title(its.backend)} {its.precision}"

    @property
    def within_limits(self) -> bool:
        """Whether it is known to break no limit."""
        return self.excess == ()

    @property
    def p50(self) -> float | None:
        """Milliseconds of one image; None if not measured."""
        times = self.latency.latency_ms if self.latency else None
        return times.p50 if times else None

    @property
    def unmeasured(self) -> str | None:
        """Why it has no latency; None if it was measured."""
        state = self.status.replace("_", " ")
        return None if self.status == "measured" else f"latency {state}: {self.reason}"

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why it cannot be recommended."""
        unmeasured = (self.unmeasured,) if self.unmeasured else ()
        broken = (excess for excess in self.excess or () if excess != UNTIMED)
        return (*unmeasured, *(f"outside the limits of params.yaml: {one}" for one in broken))

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the reader that belong to the numbers."""
        found = list(self.obstacles)
        if self.latency and self.latency.throughput_reason:
            found.append(f"no throughput: {self.latency.throughput_reason}")
        if self.metrics and not backend(self.artifact.backend).is_own(self.metrics.evaluated_with):
            found.append(f"accuracy measured with {self.metrics.evaluated_with}")
        if self.overtaken_by:
            precision, p50 = self.overtaken_by
            found.append(
                f"int8 is slower here than {precision}: p50 {self.p50:.3f} against {p50:.3f} ms"
            )
        return tuple(found)

    def cells(self) -> dict[str, str]:
        """Every figure as text by its heading; a dash for an unknown one."""
        metrics, bench = self.metrics, self.latency
        times = bench.latency_ms if bench else None
        share = bench.ratio_to_reference if bench else None
        many = bench.throughput if bench else None
        limits = {None: UNKNOWN, True: "within", False: "outside"}
        return {
            "Student": self.artifact.student,
            "Runtime": title(self.artifact.backend),
            "Precision": self.artifact.precision,
            "Status": self.status.replace("_", " "),
            "Top-1": f"{metrics.top1:.4f}" if metrics else UNKNOWN,
            TOP1_LIMITS: interval(metrics.top1, metrics.images) if metrics else UNKNOWN,
            "Balanced": f"{metrics.balanced_accuracy:.4f}" if metrics else UNKNOWN,
            "Drop": f"{metrics.top1_drop:+.4f}" if metrics else UNKNOWN,
            "Agreement": f"{metrics.agreement:.4f}" if metrics else UNKNOWN,
            "p50 ms": f"{times.p50:.3f}" if times else UNKNOWN,
            "p90 ms": f"{times.p90:.3f}" if times else UNKNOWN,
            "× ref": f"{share:.2f}" if share is not None else UNKNOWN,  # noqa: RUF001
            "Images/s": f"{many.images_per_second:,.0f}" if many else UNKNOWN,
            "kB": f"{metrics.size_bytes / 1000:,.0f}" if metrics else UNKNOWN,
            "int8 MACs": f"{metrics.int8_mac_share:.1%}" if metrics else UNKNOWN,
            "Limits": limits[None if self.excess is None else self.within_limits],
        }


LEFT_ALIGNED = ("Student", "Runtime", "Precision", "Status", "Limits")
TERMINAL = ("Runtime", "Precision", "Status", "Top-1", "Drop", "p50 ms", "p90 ms", "kB")
"""What fits into 80 characters."""


def gather(params: ReportParams) -> list[Row]:
    """One row per enabled student, backend and precision, in the order of params.yaml.

    A missing record gives a row with a reason. Records of other artifacts are ignored.

    Raises:
        PipelineError: for a file that is not a valid record.
    """
    record = BenchmarkRecord.read(BENCHMARK) if BENCHMARK.exists() else None
    rows = [
        _row(artifact, record, params.limits)
        for artifact in params.backends.artifacts(params.students.enabled)
    ]
    return [replace(row, overtaken_by=_overtaking(row, rows)) for row in rows]


def best_per_backend(rows: list[Row]) -> dict[str, Row | None]:
    """The fastest measured artifact within the limits for each backend."""
    best: dict[str, Row | None] = {row.artifact.backend: None for row in rows}
    for row in rows:
        known = best[row.artifact.backend]
        fastest = math.inf if known is None or known.p50 is None else known.p50
        if row.within_limits and row.p50 is not None and row.p50 < fastest:
            best[row.artifact.backend] = row
    return best


def numbered_notes(rows: list[Row]) -> dict[str, int]:
    """Each distinct note of the rows, numbered from 1 in order of appearance."""
    notes = dict.fromkeys(note for row in rows for note in row.notes)
    return {note: number for number, note in enumerate(notes, 1)}


def shown_cells(row: Row, numbers: dict[str, int]) -> dict[str, str]:
    """`row.cells()` with the numbers of its notes after the status."""
    cells = row.cells()
    if row.notes:
        cells["Status"] += f" [{', '.join(str(numbers[note]) for note in row.notes)}]"
    return cells


def table(rows: list[Row]) -> Table:
    """The main figures for the terminal, with the notes below."""
    notes = numbered_notes(rows)
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    for heading in TERMINAL:
        words = heading in LEFT_ALIGNED
        shown.add_column(heading, justify="left" if words else "right", no_wrap=heading != "Status")
    for i, row in enumerate(rows):
        if i == 0 or rows[i - 1].artifact.student != row.artifact.student:
            shown.add_section()
            shown.add_row(Text(row.artifact.student, style="bold"))
        style = {"measured": "", "failed": "red"}.get(row.status, "dim")
        cells = shown_cells(row, notes)
        texts = [Text(cells[heading]) for heading in TERMINAL]
        shown.add_row(*texts, style="yellow" if row.excess else style)
    lines = [f"[{number}] {note}" for note, number in notes.items()]
    if tops := [row.metrics for row in rows if row.metrics]:
        lowest = min(tops, key=lambda its: its.top1)
        low, high = wilson(lowest.top1 * lowest.images, lowest.images)
        lines.append(
            f"top-1 on {lowest.images:,} test images: the 95% interval of {lowest.top1:.4f}, the "
            f"lowest, is {low:.4f} to {high:.4f}"
        )
    shown.caption = Text("\n".join(lines))
    shown.caption_justify = "left"
    return shown


def _row(artifact: Artifact, record: BenchmarkRecord | None, limits: Limits) -> Row:
    metrics = CompiledMetrics.read(artifact.metrics) if artifact.metrics.exists() else None
    latency = record.rows.get(artifact.key) if record else None
    status: Status = "missing"
    if metrics is None:
        latency, reason = None, "not compiled yet, run `dvc repro`"  # its latency would be stale
    elif latency is None:
        reason = "not benchmarked yet, run `dvc repro`"
    else:
        status, reason = latency.status, latency.reason or ""
    row = Row(artifact, status, reason or None, metrics, latency, excess=None)
    if metrics is None:
        return row
    return replace(row, excess=excess(metrics, limits) + over_budget(metrics, row.p50, limits))


def _overtaking(row: Row, rows: list[Row]) -> tuple[str, float] | None:
    """Precision and p50 of the fastest float artifact, if `row` is int8 and clearly slower."""
    floats = [
        (other.p50, other.artifact.precision)
        for other in rows
        if replace(other.artifact, precision="int8") == row.artifact
        and not other.artifact.int8
        and other.p50 is not None
    ]
    if not row.artifact.int8 or row.p50 is None or not floats:
        return None
    p50, precision = min(floats)
    return (precision, p50) if row.p50 > CLEARLY * p50 else None


def excess(metrics: CompiledMetrics, limits: Limits) -> tuple[str, ...]:
    """Which limits of accuracy an artifact breaks, and whether a drop may be chance (McNemar)."""
    found = []
    if metrics.top1_drop > limits.max_top1_drop:
        chance = mcnemar(metrics.lost, metrics.won) > 1 - LEVEL
        text = f"its top-1 drops by more than {limits.max_top1_drop:g}"
        found.append(f"{text}, which may be chance" if chance else text)
    if metrics.agreement < limits.min_agreement:
        found.append(f"it agrees with its float student on less than {limits.min_agreement:.0%}")
    if limits.min_top1 is not None and metrics.top1 < limits.min_top1:
        found.append(f"its top-1 is below {limits.min_top1:g}")
    return tuple(found)


def over_budget(metrics: CompiledMetrics, p50: float | None, limits: Limits) -> tuple[str, ...]:
    """Which limits of size and latency it breaks; `p50` in ms, None if not measured."""
    found = []
    if limits.max_p50_ms is not None:
        if p50 is None:
            found.append(UNTIMED)
        elif p50 > limits.max_p50_ms:
            found.append(f"its p50 is above {limits.max_p50_ms:g} ms")
    if limits.max_kb is not None and metrics.size_bytes / 1000 > limits.max_kb:
        found.append(f"it is larger than {limits.max_kb:g} kB")
    return tuple(found)
