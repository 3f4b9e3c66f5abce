"""Other estimators of activation ranges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipeline.backends.base.job import Job
from pipeline.compile.rungs.base import Situation


def candidates(situation: Situation) -> Iterator[Job]:
    """The best job with each other estimator that the backend has."""
    best = situation.best
    for ranges in situation.compiler.ranges:
        yield replace(best, recipe=replace(best.recipe, ranges=ranges))
