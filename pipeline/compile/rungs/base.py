"""What a rung is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.backends.base.job import Compiler, Job
from pipeline.compile.params import Quantize


@dataclass(frozen=True)
class Situation:
    """Where the ladder stands when a rung begins."""

    compiler: Compiler
    """Of the backend; it lists the ranges and corrections that it has."""
    plain: Job
    """The student with the plain recipe."""
    best: Job
    """The job of the best attempt so far; at first the plain one."""
    settings: Quantize


Rung = Callable[[Situation], Iterator[Job]]
"""A generator of the jobs to be compiled in turn, until one loses little enough.

What it raises is recorded as the failure of the rung.
"""
