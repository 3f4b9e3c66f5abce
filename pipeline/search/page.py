"""The page of a search: front, dimensions, and every candidate with what became of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pipeline.core.files import write_whole
from pipeline.report.plots import GREY, INK, STYLE, svg
from pipeline.report.rendering import inline, render, style
from pipeline.report.sections import Section
from pipeline.search import tell
from pipeline.search import trials as key
from pipeline.search.decide import front
from pipeline.search.params import Span, Target
from pipeline.search.records import FOLDER
from pipeline.search.study import Search
from pipeline.search.trials import Seen, Standing

PAGE = FOLDER / "report.html"

_COLOURS = {key.DONE: "#2f81f7", key.HALVED: "#d29922", key.REJECTED: GREY, key.FAILED: "#f85149"}
_FEWEST = 8  # trained candidates from which the weight of dimensions is estimated

_LEVEL = 0.35
"""Of the way from one axis to the next."""


def write_page(worker: Search, file: Path = PAGE) -> None:
    """Write the page of a search as it stands."""
    standing, target = worker.standing(), worker.search.target
    trained = [seen for seen in standing.candidates if seen.rungs]
    plots: dict[str, Any] = {
        "front": _front(trained, target),
        "dimensions": _dimensions(trained, worker),
        "importance": _importance(worker, trained),
    }
    context = {
        "title": f"Search: {target.backend} {target.precision}",
        "about": _about(worker),
        "style": style(),
        "verdict": tell.verdict(standing, worker.search).splitlines(),
        "plots": {name: inline(name, text) for name, text in plots.items() if text},
        "fewest": _FEWEST,
        "best": Section.of("The best on val", tell.best_rows(standing, target), tell.WORDS),
        "reasons": _reasons(standing),
        "all": _all(standing, target),
    }
    write_whole(file, render("search/search.html.j2", context))


def _about(worker: Search) -> str:
    target, manifest = worker.search.target, worker.manifest
    limits = {
        f"{target.metric} at least": target.accuracy,
        "p50 at most, ms": target.max_p50_ms,
        "p50 against the reference at most": target.max_ratio,
        "kB at most": target.max_kb,
    }
    told = ", ".join(f"{name} {value:g}" for name, value in limits.items() if value is not None)
    return (
        f"Target: {told}. {manifest.source}, val of {manifest.size('val'):,} images; the test "
        f"split is closed to the search. {worker.machine.cpu}, {worker.machine.cores} core(s)."
    )


def _reasons(standing: Standing) -> Section:
    found = Counter(
        (seen.outcome, str(seen.choice.get("student", "")), seen.reason)
        for seen in standing.candidates
        if seen.outcome in (key.REJECTED, key.FAILED)
    )
    rows = [
        {"Outcome": str(outcome), "Network": network, "Why": why, "Candidates": str(count)}
        for (outcome, network, why), count in sorted(found.items())
    ]
    return Section.of("Rejected and failed", rows, ("Outcome", "Network", "Why"))


def _all(standing: Standing, target: Target) -> Section:
    rows = [
        {
            "#": str(seen.number),
            "Candidate": tell.point(seen),
            "Outcome": str(seen.outcome),
            f"{target.metric.capitalize()} after epochs": ", ".join(
                f"{value:.4f} after {epochs}" for epochs, value in seen.rungs
            ),
            "Costs": tell.costs(seen),
            "Seconds": f"{seen.seconds:,.0f}",
        }
        for seen in standing.candidates
    ]
    return Section.of("Every candidate", rows, ("#", "Candidate", "Outcome", "Costs"))


def _cost(seen: Seen) -> float:
    assert seen.probe is not None and seen.probe.kb is not None
    return seen.probe.kb if seen.probe.ratio is None else seen.probe.ratio


def _front(trained: list[Seen], target: Target) -> str | None:
    """Accuracy over cost of whoever was trained, and the front of the fully trained."""
    if not trained:
        return None
    timed = target.timed
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4), layout="constrained")
        axes = figure.add_subplot()
        for outcome in (key.HALVED, key.DONE):
            shown = [seen for seen in trained if seen.outcome == outcome]
            axes.plot(
                [_cost(seen) for seen in shown], [100 * seen.value for seen in shown], "o",
                color=_COLOURS[outcome], label=outcome, ms=5, alpha=0.8,
            )  # fmt: skip
        done = [seen for seen in trained if seen.outcome == key.DONE]
        kept = [done[i] for i in front([(_cost(seen), seen.value) for seen in done])]
        axes.plot(
            [_cost(seen) for seen in kept], [100 * seen.value for seen in kept], "-",
            color=_COLOURS[key.DONE], lw=1,
        )  # fmt: skip
        for seen in kept:
            axes.annotate(
                f"#{seen.number}", (_cost(seen), 100 * seen.value), xytext=(4, 4),
                textcoords="offset points", fontsize=8,
            )  # fmt: skip
        axes.axhline(100 * target.accuracy, color=INK, lw=0.8, ls="--")
        most = target.max_ratio if timed else target.max_kb
        if most is not None:
            axes.axvline(most, color=INK, lw=0.8, ls="--")
        axes.set_xlabel("p50 against the reference" if timed else "kB")
        axes.set_ylabel(f"{target.metric} on val, %")
        axes.grid(True)
        axes.legend(frameon=False)
        return svg(figure)


def _dimensions(trained: list[Seen], worker: Search) -> str | None:
    """Parallel coordinates: a line per trained candidate, coloured by its accuracy."""
    space = worker.search.space.dimensions()
    if len(trained) < 2:
        return None
    values = np.array([seen.value for seen in trained])
    low, high = values.min(), values.max()
    map_colour = matplotlib.colormaps["viridis"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(7.5, 1.5 * len(space) + 2.5), 4), layout="constrained")
        axes = figure.add_subplot()
        for seen in sorted(trained, key=lambda one: one.value):
            heights = [_height(space[name], seen.choice[name]) for name in space]
            share = (seen.value - low) / (high - low) if high > low else 1.0
            # Level at first, below the text of its axis.
            places = [place + shift for place in range(len(space)) for shift in (0, _LEVEL)]
            heights = [*np.repeat(heights, 2), share]
            axes.plot(
                [*places, len(space)], heights, color=map_colour(0.9 * share), lw=1, alpha=0.7
            )
        for place, its in enumerate(space.values()):
            axes.axvline(place, color=INK, lw=0.6)
            for height, text in _marks(its):
                if place == 0:  # beside the plot, as names of networks are long
                    at: dict[str, Any] = {"xytext": (-4, 0), "ha": "right", "va": "center"}
                elif isinstance(its, Span) and height == 0:
                    at = {"xytext": (3, -2), "va": "top"}
                else:
                    at = {"xytext": (3, 2), "va": "bottom"}
                axes.annotate(text, (place, height), fontsize=7, textcoords="offset points", **at)
        axes.axvline(len(space), color=INK, lw=0.6)
        for height, value in ((0.0, low), (1.0, high)):
            axes.annotate(f"{100 * value:.1f}", (len(space), height), fontsize=7, xytext=(3, 0),
                          textcoords="offset points", va="center")  # fmt: skip
        axes.set_xticks(range(len(space) + 1), [*space, worker.search.target.metric])
        axes.set_yticks([])
        axes.set_xlim(0, len(space) + 0.6)
        axes.spines[["left", "bottom"]].set_visible(False)
        return svg(figure)


def _height(its: Span | tuple[Any, ...], value: Any) -> float:
    """Where a value stands on its axis, in [0, 1]."""
    if isinstance(its, Span):
        ends = np.array([its.low, value, its.high])
        low, own, high = np.log(ends) if its.log else ends
        return float((own - low) / (high - low))
    return its.index(value) / max(1, len(its) - 1)


def _marks(its: Span | tuple[Any, ...]) -> list[tuple[float, str]]:
    if isinstance(its, Span):
        return [(0.0, f"{its.low:g}"), (1.0, f"{its.high:g}")]
    return [(_height(its, value), str(value)) for value in its]


def _importance(worker: Search, trained: list[Seen]) -> str | None:
    """How much each dimension explains of the accuracies, as Optuna's PED-ANOVA finds."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if len(trained) < _FEWEST:
        return None
    found = get_param_importances(worker.study, evaluator=PedAnovaImportanceEvaluator())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 0.35 * len(found) + 0.9), layout="constrained")
        axes = figure.add_subplot()
        names = list(found)[::-1]
        axes.barh(names, [found[name] for name in names], color=_COLOURS[key.DONE])
        axes.set_xlabel("share of what decides whether a candidate is among the best")
        return svg(figure)
