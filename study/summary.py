"""Stage summary: mean and standard deviation of every arm, as a table and as a plot."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from arms import read_arms
from matplotlib.figure import Figure

from pipeline.core.errors import run
from pipeline.core.files import write_whole
from pipeline.core.params import Selection, load
from pipeline.core.records import METRICS
from pipeline.data.params import Data, Views
from pipeline.networks.params import Students
from pipeline.training.records import ModelMetrics

BASELINE = "alone"


class SummaryParams(Selection):
    """What the stage `summary` reads."""

    data: Data
    students: Students
    views: Views


@dataclass(frozen=True)
class Arm:
    """Top-1 of the runs of one arm, in percent, one run per seed."""

    name: str
    val: tuple[float, ...]
    test: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of top-1 on test."""
        return statistics.mean(self.test)

    @property
    def deviation(self) -> float:
        """Standard deviation of top-1 on test."""
        return statistics.stdev(self.test)


def gain(arm: Arm, other: Arm) -> tuple[float, float, float]:
    """How much better `arm` is than `other` on test.

    Returns:
        The difference of the means in points, its standard error (Welch's: the variances may
        differ), and their ratio.
    """
    error = math.sqrt(arm.deviation**2 / len(arm.test) + other.deviation**2 / len(other.test))
    difference = arm.mean - other.mean
    return difference, error, difference / error if error else math.nan


def main() -> None:
    seeds, losses = read_arms()
    arms = [_read(name, seeds) for name in losses]
    alone = next(arm for arm in arms if arm.name == BASELINE)
    best = max(arms, key=lambda arm: statistics.mean(arm.val))
    write_whole(Path("results.md"), _page(arms, alone, best))
    write_whole(Path("results.json"), json.dumps(_figures(arms, alone, best), indent=2) + "\n")
    _plot(arms, alone).savefig("results.svg", metadata={"Date": None})
    print(Path("results.md").read_text())


def _read(name: str, seeds: tuple[int, ...]) -> Arm:
    found = [ModelMetrics.read(METRICS / "students" / name / f"{seed}.json") for seed in seeds]
    return Arm(
        name,
        tuple(100 * metrics.val_top1 for metrics in found),
        tuple(100 * metrics.top1 for metrics in found),
    )


def _figures(arms: list[Arm], alone: Arm, best: Arm) -> dict[str, object]:
    difference, error, _ = gain(best, alone)
    return {
        "best_on_val": best.name,
        "gain_over_alone": difference,
        "standard_error": error,
        "arms": {arm.name: {"mean": arm.mean, "deviation": arm.deviation} for arm in arms},
    }


def _page(arms: list[Arm], alone: Arm, best: Arm) -> str:
    params, seeds = load(SummaryParams), len(alone.test)
    teacher = ModelMetrics.read(METRICS / "teachers" / "resnet.json")
    student = params.students.zoo[params.students.enabled[0]]
    difference, error, errors = gain(best, alone)
    verdict = (
        f"`{best.name}`, the best on val, beats the student alone on test by {difference:.2f} "
        f"points, {errors:.1f} standard errors ({error:.2f})."
    )
    lines = [
        "# Does distillation help?",
        "",
        verdict,
        "",
        f"{student.arch}, stem stride {student.stem_stride}, {params.views.epochs} epochs of "
        f"{params.data.limit:,} training images for every arm; teacher and student see the same "
        f"images. The teacher's top-1 on test is {100 * teacher.top1:.2f}. Top-1 in percent, "
        f"mean ± standard deviation over {seeds} seeds (initialisation, order and augmentation); "
        "checkpoints and the best arm are chosen on val, test was looked at once a run.",
        "",
        "![Top-1 on test](results.svg)",
        "",
        "| arm | val | test | against alone | standard errors |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for arm in sorted(arms, key=lambda arm: -arm.mean):
        val = f"{statistics.mean(arm.val):.2f} ± {statistics.stdev(arm.val):.2f}"
        test = f"{arm.mean:.2f} ± {arm.deviation:.2f}"
        shown = ("", "")
        if arm is not alone:
            more, _, errors = gain(arm, alone)
            shown = (f"{more:+.2f}", f"{errors:+.1f}")
        lines.append(f"| {arm.name} | {val} | {test} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines) + "\n"


def _plot(arms: list[Arm], alone: Arm) -> Figure:
    """A dot per run, a bar for mean ± standard deviation; the line is the baseline's mean."""
    ordered = sorted(arms, key=lambda arm: arm.mean)
    figure = Figure(figsize=(7.5, 0.36 * len(arms) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(alone.mean, color="#8c959f", lw=1, ls="--")
    for row, arm in enumerate(ordered):
        colour = "#8c959f" if arm is alone else "#2f81f7"
        axes.errorbar(
            arm.mean, row, xerr=arm.deviation, fmt="|", color=colour, capsize=3, lw=2, ms=12
        )
        axes.plot(arm.test, [row] * len(arm.test), "o", color=colour, ms=4, alpha=0.7)
    axes.set_yticks(range(len(arms)), [arm.name for arm in ordered])
    axes.set_xlabel("top-1 on test, %")
    axes.grid(True, axis="x", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    run(main)
