"""The report's verdict: the limits, what to ship on each runtime, and the table of results."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.accuracy.paired import too_few
from pipeline.backends.base.registry import title
from pipeline.data.recall import wilson
from pipeline.latency.conditions import disturbance
from pipeline.latency.records import BenchmarkRecord
from pipeline.report.params import Limits, ReportParams
from pipeline.report.results import (
    LEFT_ALIGNED,
    TOP1_LIMITS,
    Row,
    best_per_backend,
    numbered_notes,
    shown_cells,
)
from pipeline.report.sections import Section

NONE_WITHIN = "no measured artifact keeps these limits"
_TOOLTIP = ("Top-1", TOP1_LIMITS, "Balanced", "Drop", "Agreement", "p50 ms", "p90 ms", "kB")
"""Figures in the tooltip of a mark in a plot."""


@dataclass(frozen=True)
class Limit:
    """A limit of the group `limits` of params.yaml."""

    name: str
    """Its key there."""
    figure: str
    """What it bounds, by its key in `_figures`."""
    label: str
    bound: str
    unit: str
    value: float | None

    def __str__(self) -> str:
        return f"{self.label} {self.bound} {self.value:g}{self.unit}"


@dataclass(frozen=True)
class Card:
    """What to ship on a runtime: the fastest artifact within the limits, or why there is none."""

    backend: str
    runtime: str
    name: str
    """Of the artifact; empty if there is none."""
    figures: str
    why: str
    """Why there is none; empty if there is one."""
    unmeasured: str
    """Why no artifact of this runtime was timed; empty if one was."""


def limits(its: Limits) -> tuple[Limit, ...]:
    """Every limit in the order of the report, also those that are not set."""
    return (
        Limit("max_p50_ms", "p50", "p50", "at most", " ms", its.max_p50_ms),
        Limit("max_kb", "kb", "size", "at most", " kB", its.max_kb),
        Limit("max_top1_drop", "drop", "top-1 drop", "at most", "", its.max_top1_drop),
        Limit("min_agreement", "agreement", "agreement", "at least", "", its.min_agreement),
        Limit("min_top1", "top1", "top-1", "at least", "", its.min_top1),
    )


def limits_text(its: Limits) -> str:
    """The limits that are set, in one line."""
    return ", ".join(str(limit) for limit in limits(its) if limit.value is not None)


def fastest(rows: list[Row]) -> Row | None:
    """The fastest artifact within the limits, whatever its runtime."""
    within = [row for row in best_per_backend(rows).values() if row]
    return min(within, key=lambda row: math.inf if row.p50 is None else row.p50, default=None)


def verdict(rows: list[Row], its: Limits) -> dict[str, str]:
    """The parts of the sentence at the top of the report."""
    best = fastest(rows)
    states = Counter(row.status.replace("_", " ") for row in rows)
    return {
        "count": f"{sum(row.within_limits for row in rows)} of {len(rows)}",
        "limits": limits_text(its),
        "fastest": f"{best.name}, p50 {best.p50:.3f} ms" if best else "none",
        "states": ", ".join(f"{count} {state}" for state, count in states.items()),
    }


def cards(rows: list[Row]) -> list[Card]:
    """The fastest artifact within the limits on each runtime, or why there is none."""
    found = []
    for backend, best in best_per_backend(rows).items():
        own = [row for row in rows if row.artifact.backend == backend]
        reasons = [row.unmeasured for row in own if row.unmeasured]
        unmeasured = "; ".join(dict.fromkeys(reasons)) if len(reasons) == len(own) else ""
        if best:
            texts = (_short(best), _figures_text(best), "")
        else:
            whys = dict.fromkeys(why for row in own for why in row.obstacles)
            texts = ("", "", "; ".join(whys))
        found.append(Card(backend, title(backend), *texts, unmeasured))
    return found


def unsure(
    rows: list[Row], params: ReportParams, benchmark: BenchmarkRecord | None = None
) -> list[str]:
    """What the images, or the latencies, are not good enough to decide, sentence by sentence."""
    recalls = [row.metrics.recall for row in rows if row.metrics]
    if not recalls:
        return []
    images, largest = recalls[0].total, max(recalls[0].images) / recalls[0].total
    level, its = params.quantize.significance, params.limits
    found = [too_few("test", images, level, its.max_top1_drop, "limits.max_top1_drop")]
    if images * (1 - its.min_agreement) < 1:
        found.append(
            f"one answer of {images:,} that is not the float student's breaks "
            f"limits.min_agreement ({its.min_agreement:g})"
        )
    best = best_per_backend(rows).values()
    tops = {row.name: row.metrics.top1 for row in best if row and row.metrics}
    blind = [name for name, top1 in tops.items() if wilson(top1 * images, images)[0] <= largest]
    if blind:
        found.append(
            f"nothing shows that {' or '.join(blind)} is better than naming one class every time, "
            f"which is right for {largest:.4f} of the test images"
        )
    if disturbed := disturbance(benchmark.conditions) if benchmark else None:
        found.append(f"the latencies are those of a busy machine: {disturbed}")
    return [one for one in found if one]


def results_section(rows: list[Row]) -> Section:
    """Every artifact with all figures; the numbers of its notes follow its status."""
    notes = numbered_notes(rows)
    marks = tuple("outside" if row.excess else row.status for row in rows)
    return Section.of("Results", [shown_cells(row, notes) for row in rows], LEFT_ALIGNED, marks)


def page_data(rows: list[Row], its: Limits) -> dict[str, Any]:
    """Data of the page's script, for JSON: artifacts with their figures, and limits."""
    return {
        "artifacts": [
            {
                "key": row.artifact.slug,
                "name": row.name,
                "short": _short(row),
                "student": row.artifact.student,
                "backend": row.artifact.backend,
                "precision": row.artifact.precision,
                "figures": _figures(row),
                "text": _figures_text(row),
                "tooltip": [(heading, row.cells()[heading]) for heading in _TOOLTIP],
            }
            for row in rows
        ],
        "limits": [asdict(limit) for limit in limits(its)],
        "none": NONE_WITHIN,
    }


def _short(row: Row) -> str:
    return f"{row.artifact.student} {row.artifact.precision}"


def _figures_text(row: Row) -> str:
    cells = row.cells()
    return (
        f"top-1 {cells['Top-1']} ({cells[TOP1_LIMITS]}; {cells['Drop']} drop), "
        f"p50 {cells['p50 ms']} ms, {cells['kB']} kB"
    )


def _figures(row: Row) -> dict[str, float | None] | None:
    """Values that limits bound, None if unknown; None for an artifact without accuracy."""
    if row.metrics is None:
        return None
    return {
        "p50": row.p50,
        "kb": row.metrics.size_bytes / 1000,
        "drop": row.metrics.top1_drop,
        "agreement": row.metrics.agreement,
        "top1": row.metrics.top1,
    }
