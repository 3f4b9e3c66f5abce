"""The report's plots as SVG: equal input, equal bytes; legible on light and dark pages."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.contracts import Epoch
from pipeline.deliver.results import RUNTIME_NAMES, Row

COLOURS = {
    "onnxruntime": "#2f81f7",
    "openvino": "#a371f7",
    "tflite": "#e0700b",
    "tensorrt": "#2da44e",
}
MARKERS = {"fp32": "o", "fp16": "s", "int8": "^"}

_INK = "#123456"  # becomes the page's text colour
_INK_STYLE = (
    "<style>svg{color:#24292f}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
)
_LARGEST_MARKER = 420.0  # points squared
_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.15,
}

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

    label: str
    backend: str
    precision: str
    p50: float
    top1: float
    size: int


def points(rows: list[Row]) -> list[Point]:
    """The rows that have both an accuracy and a measured latency."""
    return [
        Point(
            label=f"{row.student} {row.precision}",
            backend=row.backend,
            precision=row.precision,
            p50=row.p50,
            top1=100 * row.metrics.top1,
            size=row.metrics.size_bytes,
        )
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
    """Top-1 against p50 latency as SVG; a marker's area is proportional to the size."""
    found = points(rows)
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "pareto"}):
        figure = Figure(figsize=(9.5, 5.6), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel("p50 latency of one image, ms")
        axes.set_ylabel("top-1 on the test split, %")
        axes.grid(True)
        if found:
            _draw_points(axes, found)
            _legend(figure, found)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()  # type: ignore[no-untyped-call]  # settles the layout, which the labels go by
            figure.set_layout_engine("none")
            _label(axes, found, canvas)
        else:
            axes.text(0.5, 0.5, "no artifact was measured", ha="center", transform=axes.transAxes)
        return _svg(figure)


def training(curves: dict[str, tuple[Epoch, ...]]) -> str:
    """One column per network as SVG: losses above, top-1 on the val split below."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "training"}):
        figure = Figure(figsize=(max(4.5, 3.2 * len(curves)), 4.0), layout="constrained")
        grid = figure.subplots(2, len(curves), sharex="col", squeeze=False)
        for (name, epochs), (losses, accuracy) in zip(curves.items(), grid.T, strict=True):
            numbers = range(1, len(epochs) + 1)
            losses.set_title(name)
            losses.plot(numbers, [e.train_loss for e in epochs], "--o", ms=3, label="train")
            losses.plot(numbers, [e.val_loss for e in epochs], "-o", ms=3, label="val")
            accuracy.plot(numbers, [100 * e.val_top1 for e in epochs], "-o", ms=3, color="C2")
            accuracy.set_xlabel("epoch")
            accuracy.sharey(grid[1, 0])  # the losses are of different kinds
            accuracy.xaxis.get_major_locator().set_params(integer=True)
            for axes in (losses, accuracy):
                axes.grid(True)
        grid[0, 0].set_ylabel("loss")
        grid[1, 0].set_ylabel("val top-1, %")
        grid[0, -1].legend(frameon=False)
        return _svg(figure)


def noise(rows: list[Row]) -> str:
    """Signal-to-noise ratio of every layer of the int8 artifacts as SVG, one plot per student."""
    shown = [row for row in rows if row.metrics and row.metrics.layers]
    students = list(dict.fromkeys(row.student for row in shown))
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "noise"}):
        figure = Figure(figsize=(9.5, 2.6 * max(1, len(students))), layout="constrained")
        grid = figure.subplots(max(1, len(students)), 1, squeeze=False)[:, 0]
        for axes, student in zip(grid, students, strict=False):
            for row in shown:
                if row.student == student and row.metrics:
                    decibels = [layer.snr_db for layer in row.metrics.layers]
                    heights = [math.nan if value is None else value for value in decibels]
                    name, colour = RUNTIME_NAMES[row.backend], COLOURS[row.backend]
                    axes.plot(heights, "-o", ms=2.5, lw=1, color=colour, label=name)
            axes.set_title(student, loc="left")
            axes.set_ylabel("signal to noise, dB")
            axes.grid(True)
        if students:
            grid[-1].set_xlabel("convolution or product, in order of execution")
            grid[0].legend(frameon=False, ncols=4)
        else:
            grid[0].text(0.5, 0.5, "no layer was compared", ha="center")
        return _svg(figure)


def _draw_points(axes: Axes, found: list[Point]) -> None:
    edge = frontier(found)
    axes.plot(
        [p.p50 for p in edge],
        [p.top1 for p in edge],
        drawstyle="steps-post",
        color=_INK,
        alpha=0.45,
        lw=1,
        zorder=1,
    )
    for point in found:
        axes.scatter(
            point.p50,
            point.top1,
            s=_area(point, found),
            marker=MARKERS[point.precision],
            color=COLOURS[point.backend],
            alpha=0.75,
            linewidth=0,
            zorder=2,
        )
    latencies = [p.p50 for p in found]
    if max(latencies) > 10 * min(latencies):
        axes.set_xscale("log")
    elif max(latencies) > 2 * min(latencies):
        axes.set_xlim(0, 1.12 * max(latencies))
    else:
        axes.margins(x=0.16)
    axes.margins(y=0.16)


def _legend(figure: Figure, found: list[Point]) -> None:
    """Only what the plot holds: runtimes by colour, precisions by shape, sizes by area."""

    def dot(label: str, marker: str, colour: str, area: float) -> Line2D:
        size = math.sqrt(area)
        return Line2D([], [], ls="", marker=marker, mfc=colour, mec="none", ms=size, label=label)

    runtimes = [b for b in COLOURS if any(p.backend == b for p in found)]
    precisions = [m for m in MARKERS if any(p.precision == m for p in found)]
    sizes = sorted({min(p.size for p in found), max(p.size for p in found)})
    handles = [dot(RUNTIME_NAMES[b], "o", COLOURS[b], 50) for b in runtimes]
    handles += [dot(m, MARKERS[m], "#8b949e", 50) for m in precisions]
    handles += [
        dot(f"{size / 1000:,.0f} kB", "o", "#8b949e", _LARGEST_MARKER * size / sizes[-1])
        for size in sizes
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), frameon=False,
        columnspacing=1.4, handletextpad=0.5, borderpad=0.8,
    )  # fmt: skip


def _label(axes: Axes, found: list[Point], canvas: FigureCanvasAgg) -> None:
    """Write each point's label where it covers least, with a thin line to its point.

    Greedy: the candidate places of a label lie on rings around its point; overlap with
    labels already placed, markers and lines is paid for, and so is distance.
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
        text = axes.text(0, 0, found[i].label, fontsize=7.5, ha="center", va="center", zorder=4)
        extent = text.get_window_extent(renderer)
        size = (1.04 * extent.width + 8 * pixels, extent.height + 2 * pixels)
        place = _cheapest(centres[i], sides[i] / 2, size, taken, frame, pixels)
        text.set_position(tuple(axes.transData.inverted().transform(place)))
        taken.append(_box(*place, *size))
        _lead(axes, centres[i], sides[i] / 2, taken[-1])


def _cheapest(
    point: Pixel, radius: float, size: Pixel, taken: list[Box], frame: Box, pixels: float
) -> Pixel:
    """The centre of the best place for a label of `size` near `point`."""
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


def _lead(axes: Axes, point: Pixel, radius: float, box: Box) -> None:
    """A thin line from a marker's edge to its label, unless they touch."""
    x, y = point
    end = (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1))
    if not box.x0 < x < box.x1:
        end = (end[0], (box.y0 + box.y1) / 2)
    length = math.dist(point, end)
    if length < radius + 4:
        return
    start = (x + (end[0] - x) * radius / length, y + (end[1] - y) * radius / length)
    line = axes.transData.inverted().transform([start, end])
    axes.plot(line[:, 0], line[:, 1], color=_INK, alpha=0.45, lw=0.6, zorder=3)


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


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    head, _, body = buffer.getvalue().replace(_INK, "currentColor").partition("<defs>")
    lines = f"{head}{_INK_STYLE}\n <defs>{body}".splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"
