"""The report's plots as SVG, legible on light and dark pages.

Equal input gives equal bytes. Git keeps the files, so a small change of the input shall change few
lines: the data of each path is one line, and limits of axes are rounded.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from pipeline.backends.base.registry import backend
from pipeline.core.files import checked
from pipeline.latency.records import LATENCIES, REFERENCE, BenchmarkRecord
from pipeline.report.results import Row
from pipeline.training.records import ModelMetrics

GREY = "#8b949e"

INK = "#123456"  # replaced by the page's text colour
_INK_STYLE = (
    "<style>svg{color:#24292f}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
)
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
}

_TICKS = (
    (20, (1, 2, 5)),
    (6, (1, 1.5, 2, 3, 5, 7)),
    (2, (1, 1.5, 2, 3, 4, 5, 7)),
    (0, (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7, 2, 2.25, 2.5, 2.75, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9)),
)
"""Of a logarithmic axis, where its limits differ by more than the factor."""
_BINS = 240  # of a latency distribution, over the whole axis
_SMOOTH = np.hanning(11)[1:-1]
_SHOWN = 0.999  # smallest share of each artifact's latencies within the axis


@dataclass(frozen=True)
class Strip:
    """The single latencies of an artifact, or of the reference."""

    key: str
    label: str
    colour: str
    times: NDArray[np.float64]
    """Milliseconds [n]."""


def strips(rows: list[Row], benchmark: BenchmarkRecord) -> list[Strip]:
    """The latencies of the reference and of every measured artifact, in the order of the rows.

    Args:
        rows: of the report.
        benchmark: the record that has the digest of the latencies.

    Raises:
        PipelineError: where their latencies are not recorded, damaged or of another run.
    """
    with np.load(checked(LATENCIES, benchmark.latencies_digest)) as recorded:
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
    milliseconds: NDArray[np.float64] = recorded[f"{key}/ns"] / 1e6
    return milliseconds


def training(networks: dict[str, ModelMetrics]) -> str:
    """Losses and val top-1 by epoch, one column per network; int8's rounding has a grey ground.

    Args:
        networks: metrics by name.

    Raises:
        PipelineError: for a curve that is missing, damaged or of another run.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "training"}):
        figure = Figure(figsize=(max(4.5, 3.2 * len(networks)), 4.0), layout="constrained")
        grid = figure.subplots(2, len(networks), sharex="col", squeeze=False)
        for (name, its), (losses, accuracy) in zip(networks.items(), grid.T, strict=True):
            epochs = its.curve(name)
            numbers = range(1, len(epochs) + 1)
            losses.set_title(name)
            losses.plot(numbers, [e.train_loss for e in epochs], "--o", ms=3, label="train")
            losses.plot(numbers, [e.val_loss for e in epochs], "-o", ms=3, label="val")
            accuracy.plot(numbers, [100 * e.val_top1 for e in epochs], "-o", ms=3, color="C2")
            accuracy.set_xlabel("epoch")
            accuracy.sharey(grid[1, 0])  # losses of teachers and students differ in kind
            accuracy.xaxis.get_major_locator().set_params(integer=True)
            for axes in (losses, accuracy):
                axes.grid(True)
                if its.rounded:
                    axes.axvspan(*its.rounded, color=GREY, alpha=0.15, lw=0)
        grid[0, 0].set_ylabel("loss")
        grid[1, 0].set_ylabel("val top-1, %")
        grid[0, -1].legend(frameon=False)
        return svg(figure)


def noise(rows: list[Row]) -> str:
    """Signal-to-noise ratio of every layer of the int8 artifacts, one plot per student."""
    shown = [row for row in rows if row.metrics and row.metrics.layers]
    students = list(dict.fromkeys(row.artifact.student for row in shown))
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "noise"}):
        figure = Figure(figsize=(9.5, 2.6 * max(1, len(students))), layout="constrained")
        grid = figure.subplots(max(1, len(students)), 1, squeeze=False)[:, 0]
        for axes, student in zip(grid, students, strict=False):
            for row in shown:
                if row.artifact.student == student and row.metrics:
                    decibels = np.array([layer.snr_db for layer in row.metrics.layers], float)
                    its = backend(row.artifact.backend)
                    axes.plot(decibels, "-o", ms=2.5, lw=1, color=its.colour, label=its.title)
            axes.set_title(student, loc="left")
            axes.set_ylabel("signal to noise, dB")
            axes.grid(True)
        if students:
            grid[-1].set_xlabel("conv or linear layer, in order of execution")
            grid[0].legend(frameon=False, ncols=4)
        else:
            grid[0].text(0.5, 0.5, "no layer was compared", ha="center")
        return svg(figure)


def latencies(strips: list[Strip]) -> str:
    """The distribution of single-image latencies, one violin per strip, with p50 and p90.

    The group `strip-KEY` of the SVG is the violin of the strip with this key.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "latencies"}):
        figure = Figure(figsize=(9.5, 0.9 + 0.34 * len(strips)), layout="constrained")
        axes = figure.add_subplot()
        low, high = rounded_limits(
            min(float(strip.times.min()) for strip in strips),
            max(float(np.quantile(strip.times, _SHOWN)) for strip in strips),
        )
        edges = np.linspace(math.log10(low), math.log10(high), _BINS + 1)
        middles = 10 ** ((edges[:-1] + edges[1:]) / 2)
        for y, strip in enumerate(strips):
            counts, _ = np.histogram(np.log10(strip.times), edges)
            density = np.convolve(counts, _SMOOTH, "same")
            half = 0.44 * density / density.max()
            seen = np.flatnonzero(half > 0.002)
            own = slice(max(0, seen[0] - 1), seen[-1] + 2)
            axes.fill_between(
                middles[own], y - half[own], y + half[own], color=strip.colour, alpha=0.7,
                linewidth=0.6, gid=f"strip-{strip.key}",
            )  # fmt: skip
            p50, p90 = np.quantile(strip.times, (0.5, 0.9))
            axes.vlines([p50], y - 0.4, y + 0.4, color=INK, lw=1.4)
            axes.vlines([p90], y - 0.22, y + 0.22, color=INK, lw=1)
        axes.set_yticks(range(len(strips)), [strip.label for strip in strips])
        axes.set_ylim(len(strips) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("latency of one image, ms")
        log_axis(axes, low, high)
        axes.grid(True, axis="x", which="major")
        return svg(figure)


def rounded_limits(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis around positive values, whose logarithms are multiples of 1/20.

    Values of another run that differ by a few percent get the same limits most of the time.
    """
    low_step, high_step = math.floor(20 * math.log10(low)), math.ceil(20 * math.log10(high))
    return 10 ** (low_step / 20), 10 ** (max(high_step, low_step + 1) / 20)


def log_axis(axes: Axes, low: float, high: float) -> None:
    """Make x logarithmic from `low` to `high`, with plain numbers as ticks.

    The ticks are as dense as the range allows.
    """
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    steps = next(steps for factor, steps in _TICKS if high > factor * low)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def svg(figure: Figure) -> str:
    """The figure as an SVG file, in which `INK` becomes the text colour of the page around it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue().replace(INK, "currentColor")
    drawn = re.sub(r'(?<= d=")[^"]*', lambda data: " ".join(data.group().split()), drawn)
    head, _, body = drawn.partition("<defs>")
    lines = f"{head}{_INK_STYLE}\n <defs>{body}".splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"
