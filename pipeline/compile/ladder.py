"""The recovery ladder: an int8 artifact that loses too much is compiled again, rung by rung."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.backends.base.job import Compiled, Compiler, Job, opened_bytes
from pipeline.compile.params import Quantize
from pipeline.compile.records import Attempt
from pipeline.compile.rungs.base import Rung, Situation
from pipeline.core import plugins
from pipeline.core.errors import PipelineError

KIND = "rungs"
DEFAULT = "default"

Judge = Callable[[Job, Compiled, Path], tuple[float, float | None]]
"""Top-1 on val, a fraction, of what a job was compiled to in a folder, by its own runtime; and,
if it loses more than is allowed, the p-value of that loss against the float student."""


@dataclass(frozen=True)
class Climbed:
    """The artifact that was kept."""

    compiled: Compiled
    job: Job
    """What it was made from."""
    attempts: tuple[Attempt, ...]
    """All of them, in order."""


@dataclass(frozen=True)
class _Made:
    """One attempt. Where it failed, its top-1 on val is -1 and `compiled` may be missing."""

    job: Job
    record: Attempt
    folder: Path
    compiled: Compiled | None
    top1: float


def find_rung(name: str) -> Rung:
    """The rung called `name`; `PipelineError` for an unknown one, with the nearest known name."""
    rung: Rung = plugins.find(KIND, name, "quantize.rungs")
    return rung


def climb(
    compiler: Compiler,
    job: Job,
    settings: Quantize,
    float_top1: float,
    judge: Judge,
    folder: Path,
) -> Climbed:
    """Compile `job` by the first recipe that loses little enough.

    That is at most `settings.max_drop`, or no more than chance explains at `settings.significance`:
    else the ladder would climb, and choose, by noise where val is small. Every rung starts from
    the best recipe so far. If none is good enough, the best on val is kept, of equals the first. A
    rung that fails, in whatever way its tool does, is recorded as failed, and the ladder goes on
    with what it has.

    Args:
        compiler: of the backend.
        job: the student with the plain recipe.
        settings: the rungs and the loss that is allowed.
        float_top1: of the float student on val, a fraction.
        judge: evaluates an attempt on val.
        folder: an empty one, for the files of the attempt that is kept.

    Raises:
        PipelineError: for an unknown rung.
        Exception: what the tool raises where the backend's own recipe fails; also for a disk or a
            memory that is full in any rung.
    """
    rungs = {name: find_rung(name) for name in settings.rungs}
    made: list[_Made] = []

    def best() -> _Made:
        return max(made, key=lambda one: one.top1)

    def good_enough() -> bool:
        if not made:
            return False
        chance = best().record.val_chance
        lost = float_top1 - best().top1 > settings.max_drop
        return not lost or (chance is not None and chance > settings.significance)

    scratch = folder / "attempts"
    for name, rung in rungs.items():
        situation = Situation(compiler, job, best().job if made else job, settings)
        jobs = rung(situation)
        while not good_enough():
            place = scratch / str(len(made))
            attempt = _attempt(name, jobs, situation, float_top1, judge, place)
            if attempt is None:
                break
            made.append(attempt)
    kept = best()
    for file in kept.folder.iterdir():
        shutil.move(file, folder)
    shutil.rmtree(scratch)
    assert kept.compiled is not None  # the first rung succeeds or raises
    records = (one.record.model_copy(update={"kept": one is kept}) for one in made)
    return Climbed(kept.compiled, kept.job, tuple(records))


def _attempt(
    rung: str,
    jobs: Iterator[Job],
    situation: Situation,
    float_top1: float,
    judge: Judge,
    folder: Path,
) -> _Made | None:
    """The next of a rung's jobs, compiled and judged; None behind the last one."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    job = situation.plain  # to be recorded where the rung cannot make another one
    compiled, top1, chance, failure = None, None, None, None
    try:
        candidate = next(jobs, None)
        if candidate is None:
            return None
        job = candidate
        compiled = situation.compiler.compile(job, folder)
        top1, chance = judge(job, compiled, folder)
    except Exception as error:
        # Without room the same rung would succeed elsewhere: results must not depend on that.
        if rung == DEFAULT or isinstance(error, (OSError, MemoryError)):
            raise
        kind = "" if isinstance(error, PipelineError) else f"{type(error).__name__}: "
        failure = kind + (str(error).splitlines() or [""])[0]
    record = Attempt(
        rung=rung,
        recipe=str(job.recipe),
        val_top1=top1,
        val_drop=None if top1 is None else float_top1 - top1,
        val_chance=chance,
        seconds=round(time.perf_counter() - start, 1),
        size_bytes=opened_bytes(folder / compiled.model_file) if compiled else None,
        failure=failure,
    )
    return _Made(job, record, folder, compiled, -1.0 if top1 is None else top1)
