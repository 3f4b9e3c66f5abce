"""Full bias correction: the mean error of each channel is taken out of its bias."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipeline.backends.base.job import Job
from pipeline.compile.rungs.base import Situation


def candidates(situation: Situation) -> Iterator[Job]:
    """The best job with full bias correction, where the backend has it."""
    best = situation.best
    if situation.compiler.bias_correction:
        yield replace(best, recipe=replace(best.recipe, bias_correction=True))
