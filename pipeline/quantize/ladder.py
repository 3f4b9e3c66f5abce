"""An int8 artifact that loses too much is made anew, rung by rung, until it does not."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.backends.base import Backend, Compiled, Job, opened_bytes
from pipeline.contracts import Attempt
from pipeline.errors import PipelineError
from pipeline.params import Quantize, Rung

Judge = Callable[[Job, Compiled, Path], float]
"""Top-1 on val, a fraction, of what a job was compiled to in a folder, by its own runtime."""

Retrain = Callable[[Job], Job]
"""The job of the same student after it went on learning under int8's rounding."""


@dataclass(frozen=True)
class Climbed:
    """What was kept, the job that made it, and all that was tried, in order."""

    compiled: Compiled
    job: Job
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class _Made:
    """One attempt. Where it failed, its top-1 on val is -1, and `compiled` may be missing."""

    job: Job
    record: Attempt
    folder: Path
    compiled: Compiled | None
    top1: float


def climb(
    backend: Backend,
    job: Job,
    settings: Quantize,
    float_top1: float,
    judge: Judge,
    retrain: Retrain,
    folder: Path,
) -> Climbed:
    """Compile `job` into the empty `folder` by the first recipe that loses little enough.

    `float_top1` is the float student's on val. Every rung starts from the best recipe below
    it. If none keeps `settings.max_drop`, the best on val stays, of equals the first. What a
    rung cannot do is recorded as its failure; only the backend's own recipe must succeed, or
    its `PipelineError` is raised.
    """
    made: list[_Made] = []

    def best() -> _Made:
        return max(made, key=lambda one: one.top1)

    def good_enough() -> bool:
        return bool(made) and float_top1 - best().top1 <= settings.max_drop

    scratch = folder / "attempts"
    scratch.mkdir()
    for rung in settings.rungs:
        if good_enough():
            break
        start = best().job if made else job
        for candidate in _candidates(rung, backend, start, job, settings, retrain):
            place = scratch / str(len(made))
            made.append(_attempt(rung, backend, candidate, float_top1, judge, place))
            if good_enough():
                break
    kept = best()
    for file in kept.folder.iterdir():
        shutil.move(file, folder)
    shutil.rmtree(scratch)
    assert kept.compiled is not None  # the first rung succeeds or raises
    records = (one.record.model_copy(update={"kept": one is kept}) for one in made)
    return Climbed(kept.compiled, kept.job, tuple(records))


def _candidates(
    rung: Rung, backend: Backend, best: Job, plain: Job, settings: Quantize, retrain: Retrain
) -> Iterator[Job]:
    """The jobs of a rung, each made only when it is asked for."""
    recipe = best.recipe
    if rung == "default":
        yield plain
    elif rung == "ranges":
        for ranges in backend.ranges:
            yield replace(best, recipe=replace(recipe, ranges=ranges))
    elif rung == "bias_correction" and backend.bias_correction:
        yield replace(best, recipe=replace(recipe, bias_correction=True))
    elif rung == "float_layers":
        for layers in _kept_float(best, settings):
            yield replace(best, recipe=replace(recipe, float_layers=layers))
    elif rung == "training":
        trained = retrain(plain)
        yield trained
        if recipe != trained.recipe:  # it was the best for the weights before
            yield replace(trained, recipe=recipe)


def _kept_float(job: Job, settings: Quantize) -> Iterator[tuple[str, ...]]:
    """More and more layers to keep in float: the most sensitive ones that the settings afford.

    Behind each comes the one executed before it: what a layer reads is rounded by who wrote
    it, too, on backends whose int8 kernels write int8. A layer that would make too much of the
    network float is passed over: an artifact that is float where it counts is neither small
    nor fast, however accurate.
    """
    from pipeline.quantize.sensitivity import most_sensitive  # seconds of torch

    costs = _shares(job)
    order = list(costs)
    kept: tuple[str, ...] = ()
    for layer in most_sensitive(job):
        before = order[max(order.index(layer) - 1, 0)]
        for name in dict.fromkeys((layer, before)):
            if name in kept:
                continue
            if len(kept) == settings.float_layers:
                return
            macs, weights = (sum(costs[one][i] for one in (*kept, name)) for i in (0, 1))
            if max(macs, weights) > settings.float_share:
                break
            kept = (*kept, name)
            yield kept


def _shares(job: Job) -> dict[str, tuple[float, float]]:
    """By layer, in order of execution: shares of all multiply-accumulates and of all weights."""
    macs = sum(layer.macs for layer in job.layers)
    weights = sum(layer.weights for layer in job.layers)
    return {layer.name: (layer.macs / macs, layer.weights / weights) for layer in job.layers}


def _attempt(
    rung: Rung, backend: Backend, job: Job, float_top1: float, judge: Judge, folder: Path
) -> _Made:
    folder.mkdir()
    start = time.perf_counter()
    compiled, top1, failure = None, None, None
    try:
        compiled = backend.compile(job, folder)
        top1 = judge(job, compiled, folder)
    except PipelineError as error:
        if rung == "default":
            raise
        failure = str(error)
    record = Attempt(
        rung=rung,
        recipe=str(job.recipe),
        val_top1=top1,
        val_drop=None if top1 is None else float_top1 - top1,
        seconds=round(time.perf_counter() - start, 1),
        size_bytes=opened_bytes(folder / compiled.model_file) if compiled else None,
        failure=failure,
    )
    return _Made(job, record, folder, compiled, -1.0 if top1 is None else top1)
