"""What a rung is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.backends.base.job import Compiler, Job
from pipeline.int8.params import Quantize


@dataclass(frozen=True)
class Situation:
    """Where the ladder stands when a rung begins."""

    compiler: Compiler
    """Of the backend; says which ranges and corrections it has."""
    plain: Job
    """The student with the plain recipe."""
    best: Job
    """The job of the best attempt so far; at first the plain one."""
    settings: Quantize


Rung = Callable[[Situation], Iterator[Job]]
"""The jobs that a rung tries, each made only when it is asked for."""
