"""An int8 artifact that loses too much is compiled again, rung by rung, until it does not."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.backends.base.job import Compiled, Compiler, Job, opened_bytes
from pipeline.compile.records import Attempt
from pipeline.compile.rungs.base import Rung, Situation
from pipeline.core import plugins
from pipeline.core.errors import PipelineError
from pipeline.int8.params import Quantize

KIND = "rungs"
DEFAULT = "default"

Judge = Callable[[Job, Compiled, Path], float]
"""Top-1 on val, a fraction, of what a job was compiled to in a folder, by its own runtime."""


@dataclass(frozen=True)
class Climbed:
    """What was kept, the job that made it, and all attempts in order."""

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


def find_rung(name: str) -> Rung:
    """The rung that params.yaml names; `PipelineError` for an unknown one."""
    rung: Rung = plugins.find(KIND, name)
    return rung


def climb(
    compiler: Compiler,
    job: Job,
    settings: Quantize,
    float_top1: float,
    judge: Judge,
    folder: Path,
) -> Climbed:
    """Compile `job` into the empty `folder` by the first recipe that loses little enough.

    Every rung starts from the best recipe so far. If none keeps `settings.max_drop`, the best on
    val is kept, of equals the first. What a rung cannot do is recorded as its failure.

    Args:
        compiler: of the backend.
        job: the student with the plain recipe.
        settings: the rungs and the loss that is allowed.
        float_top1: of the float student on val, a fraction.
        judge: evaluates an attempt on val.
        folder: gets the files of the attempt that is kept.

    Raises:
        PipelineError: where the backend's own recipe fails.
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
        for candidate in find_rung(rung)(Situation(compiler, job, start, settings)):
            place = scratch / str(len(made))
            made.append(_attempt(rung, compiler, candidate, float_top1, judge, place))
            if good_enough():
                break
    kept = best()
    for file in kept.folder.iterdir():
        shutil.move(file, folder)
    shutil.rmtree(scratch)
    assert kept.compiled is not None  # the first rung succeeds or raises
    records = (one.record.model_copy(update={"kept": one is kept}) for one in made)
    return Climbed(kept.compiled, kept.job, tuple(records))


def _attempt(
    rung: str, compiler: Compiler, job: Job, float_top1: float, judge: Judge, folder: Path
) -> _Made:
    folder.mkdir()
    start = time.perf_counter()
    compiled, top1, failure = None, None, None
    try:
        compiled = compiler.compile(job, folder)
        top1 = judge(job, compiled, folder)
    except PipelineError as error:
        if rung == DEFAULT:
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
