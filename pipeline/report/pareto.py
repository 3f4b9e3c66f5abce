"""Accuracy against latency as SVG, with labels that do not cover one another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.registry import backend
from pipeline.report.plots import GREY, INK, STYLE, log_axis, rounded_limits, svg
from pipeline.report.results import Row

MARKERS = {"fp32": "o", "fp16": "s", "int8": "^"}

_LARGEST_MARKER = 420.0  # points squared

Pixel = tuple[float, float]


class Box(NamedTuple):
    """A rectangle in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def area(self) -> float:
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def holds(self, x: float, y: float) -> bool:
        return self.x0 <= x <= self.x1 and self.y0 <= y <= self.y1


@dataclass(frozen=True)
class Point:
    """A measured artifact in the plot: milliseconds, percent, bytes."""

    artifact: Artifact
    p50: float
    top1: float
    size: int


def points(rows: list[Row]) -> list[Point]:
    """The rows that have both an accuracy and a measured latency."""
    return [
        Point(row.artifact, row.p50, 100 * row.metrics.top1, row.metrics.size_bytes)
        for row in rows
        if row.metrics is not None and row.p50 is not None
    ]


def frontier(found: list[Point]) -> list[Point]:
    """The points that no other beats in both latency and accuracy, fastest first."""
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (p.p50, -p.top1)):
        if not best or point.top1 > best[-1].top1:
            best.append(point)
    return best


def pareto(rows: list[Row]) -> str:
    """Top-1 against p50 latency; the area of a marker is proportional to the file's size.

    The SVG has the groups `point-KEY`, `label-KEY` and `lead-KEY` for each artifact.
    """
    found = points(rows)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "pareto"}):
        figure = Figure(figsize=(9.5, 5.6), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel("p50 latency of one image, ms")
        axes.set_ylabel("top-1 on the test split, %")
        axes.grid(True)
        if found:
            _draw_points(axes, found)
            _legend(figure, found)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()  # type: ignore[no-untyped-call]  # fixes the layout before labels are placed
            figure.set_layout_engine("none")
            axes.autoscale(False)  # the lines to the labels must not move what these are placed by
            _label(axes, found, canvas)
        else:
            axes.text(0.5, 0.5, "no artifact was measured", ha="center", transform=axes.transAxes)
        return svg(figure)


def _draw_points(axes: Axes, found: list[Point]) -> None:
    edge = frontier(found)
    times, tops = [p.p50 for p in edge], [p.top1 for p in edge]
    axes.step(times, tops, where="post", color=INK, alpha=0.45, lw=1, zorder=1)
    for point in sorted(found, key=lambda p: -p.size):  # small ones on top
        axes.scatter(
            point.p50,
            point.top1,
            s=_area(point, found),
            marker=MARKERS.get(point.artifact.precision, "D"),
            color=backend(point.artifact.backend).colour,
            alpha=0.75,
            linewidth=0,
            zorder=2,
            gid=f"point-{point.artifact.slug}",
        )
    least, most = min(p.p50 for p in found), max(p.p50 for p in found)
    low, high = rounded_limits(least / 1.12, 1.12 * most)
    if most > 10 * least:
        log_axis(axes, low, high)
    elif most > 2 * least:
        axes.set_xlim(0, high)
    else:
        axes.margins(x=0.16)
    axes.margins(y=0.16)


def _legend(figure: Figure, found: list[Point]) -> None:
    """Runtimes by colour, precisions by shape and sizes by area, as far as they occur."""

    def dot(label: str, marker: str, ink: str, area: float) -> Line2D:
        size = math.sqrt(area)
        return Line2D([], [], ls="", marker=marker, mfc=ink, mec="none", ms=size, label=label)

    runtimes = list(dict.fromkeys(point.artifact.backend for point in found))
    precisions = [m for m in MARKERS if any(p.artifact.precision == m for p in found)]
    sizes = sorted({min(p.size for p in found), max(p.size for p in found)})
    handles = [dot(b.title, "o", b.colour, 50) for b in map(backend, runtimes)]
    handles += [dot(m, MARKERS[m], GREY, 50) for m in precisions]
    handles += [
        dot(f"{size / 1000:,.0f} kB", "o", GREY, _LARGEST_MARKER * size / sizes[-1])
        for size in sizes
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), frameon=False,
        columnspacing=1.4, handletextpad=0.5, borderpad=0.8,
    )  # fmt: skip


def _label(axes: Axes, found: list[Point], canvas: FigureCanvasAgg) -> None:
    """Place each point's label where it covers least, with a thin line to its point.

    Greedy: the candidate places of a label lie on rings around its point. Overlap with labels
    already placed, markers and lines has a cost, and so has distance.
    """
    pixels = canvas.figure.dpi / 72
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    frame = Box(*axes.get_window_extent(renderer).extents)
    centres = _in_pixels(axes, found)
    sides = [math.sqrt(_area(point, found)) * pixels for point in found]
    taken = [_box(x, y, side, side) for (x, y), side in zip(centres, sides, strict=True)]
    edge = _in_pixels(axes, frontier(found))
    for (x0, y0), (x1, y1) in pairwise(edge):
        taken += [_span(x0, y0, x1, y0, 4 * pixels), _span(x1, y0, x1, y1, 4 * pixels)]
    for i in sorted(range(len(found)), key=lambda i: (-centres[i][1], centres[i][0])):
        its = found[i].artifact
        label = f"{its.student} {its.precision}"
        text = axes.text(0, 0, label, fontsize=7.5, ha="center", va="center", zorder=4)
        text.set_gid(f"label-{its.slug}")
        extent = text.get_window_extent(renderer)
        size = (1.04 * extent.width + 8 * pixels, extent.height + 2 * pixels)
        place = _cheapest(centres[i], sides[i] / 2, size, taken, frame, pixels)
        text.set_position(tuple(axes.transData.inverted().transform(place)))
        taken.append(_box(*place, *size))
        if line := _lead(axes, centres[i], sides[i] / 2, taken[-1]):
            line.set_gid(f"lead-{its.slug}")


def _cheapest(
    point: Pixel, radius: float, size: Pixel, taken: list[Box], frame: Box, pixels: float
) -> Pixel:
    """Centre of the cheapest place for a label of `size` near `point`."""
    best, place = math.inf, point
    for ring, step in product(range(9), range(24)):
        angle = 2 * math.pi * step / 24
        reach = radius + (2 + 8 * ring) * pixels
        centre = (
            point[0] + math.cos(angle) * (reach + size[0] / 2),
            point[1] + math.sin(angle) * (reach + size[1] / 2),
        )
        box = _box(*centre, *size)
        outside = box.area - _overlap(box, frame)
        covered = sum(_overlap(box, other) for other in taken)
        crossed = sum(_crosses(point, centre, other) for other in taken)
        cost = 4 * (covered + outside) + 40 * pixels * crossed + 3 * reach
        if cost < best:
            best, place = cost, centre
    return place


def _lead(axes: Axes, point: Pixel, radius: float, box: Box) -> Line2D | None:
    """A thin line from a marker's edge to its label, unless they touch."""
    x, y = point
    end = (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1))
    if not box.x0 < x < box.x1:
        end = (end[0], (box.y0 + box.y1) / 2)
    length = math.dist(point, end)
    if length < radius + 4:
        return None
    start = (x + (end[0] - x) * radius / length, y + (end[1] - y) * radius / length)
    line = axes.transData.inverted().transform([start, end])
    (drawn,) = axes.plot(line[:, 0], line[:, 1], color=INK, alpha=0.45, lw=0.6, zorder=3)
    return drawn


def _in_pixels(axes: Axes, found: list[Point]) -> list[Pixel]:
    return [tuple(axes.transData.transform((p.p50, p.top1))) for p in found]


def _area(point: Point, found: list[Point]) -> float:
    return _LARGEST_MARKER * point.size / max(p.size for p in found)


def _box(x: float, y: float, width: float, height: float) -> Box:
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _span(x0: float, y0: float, x1: float, y1: float, thick: float) -> Box:
    """The box around a horizontal or vertical line."""
    return _box((x0 + x1) / 2, (y0 + y1) / 2, abs(x1 - x0) + thick, abs(y1 - y0) + thick)


def _overlap(a: Box, b: Box) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0


def _crosses(start: Pixel, end: Pixel, box: Box) -> bool:
    """Whether the line passes through a box that does not hold its start."""
    around = _span(*start, *end, 1)
    if not _overlap(around, box) or box.holds(*start):
        return False
    (x0, y0), (x1, y1) = start, end
    return any(box.holds(x0 + t / 12 * (x1 - x0), y0 + t / 12 * (y1 - y0)) for t in range(13))
