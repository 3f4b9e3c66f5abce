"""The first rung: the backend's own defaults."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.backends.base.job import Job
from pipeline.compile.rungs.base import Situation


def candidates(situation: Situation) -> Iterator[Job]:
    """The plain job."""
    yield situation.plain
