"""How long a training will take, told from its first steps."""

from __future__ import annotations

import resource

from pipeline.core.errors import PipelineError
from pipeline.training.objective import Run

WORTH_AN_ESTIMATE = 100
"""Runs of fewer steps begin without one."""

_FORWARD = 3
"""A step takes so many times as long as evaluating its images: a backward pass is two forward."""


def check_time(run: Run, steps: int, seconds: float, val_images: int, *, quiet: bool) -> None:
    """Print how long `run` will take, and how much memory this process has taken at most.

    Args:
        run: whose recipe may have `max_hours`.
        steps: of each epoch.
        seconds: that one of them takes.
        val_images: evaluated after each epoch.
        quiet: print nothing.

    Raises:
        PipelineError: for a run of more than `max_hours`.
    """
    evaluation = val_images / run.training.batch_size / _FORWARD
    hours = run.epochs * (steps + evaluation) * seconds / 3600
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    time = f"{hours:.1f} h" if hours >= 1 else f"{max(1, round(60 * hours))} min"
    text = f"{run.epochs * steps:,} steps of {seconds:.2g} s, some {time}"
    if not quiet:
        print(f"{run.name}: {text}, with {memory:.1f} GB of memory", flush=True)
    most = run.training.max_hours
    if most is not None and hours > most:
        raise PipelineError(
            f"{text}, are more than `max_hours`, {most:g}",
            where=run.name,
            fix="lower its epochs or `data.image_size`, choose a smaller network, or raise it",
        )
