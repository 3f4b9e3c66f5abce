"""Which network ships for a student: the distilled one, or the one that was pruned from it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.records import METRICS
from pipeline.networks.records import PRUNED, STUDENTS

SUFFIX = "-pruned"
"""Of the name of a pruned network's metrics and curves; no name of a student has a dash."""


@dataclass(frozen=True)
class Shipped:
    """Where a student's network and its records lie."""

    folder: Path
    """Of its card and weights."""
    metrics: Path
    """A `ModelMetrics`."""
    curves: str
    """The name of its training curves."""


def shipped(student: str, pruned: Collection[str]) -> Shipped:
    """Where the network lies that is exported, compiled and bundled for a student.

    It follows from params.yaml alone: what an earlier run left in models/pruned does not ship.

    Args:
        student: its name.
        pruned: the students that ship pruned, `prune.enabled`.
    """
    cut = student in pruned
    name = student + SUFFIX if cut else student
    return Shipped(
        (PRUNED if cut else STUDENTS) / student, METRICS / "students" / f"{name}.json", name
    )
