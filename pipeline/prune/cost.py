"""What a pruned student costs on a backend, measured in the same rounds as the unpruned one."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
from torch import nn

from pipeline.backends.base.job import opened_bytes
from pipeline.backends.base.registry import backend
from pipeline.compile.untrained import Shape, compile_one, with_random_statistics
from pipeline.core.errors import PipelineError
from pipeline.latency.benchmark import reference_target
from pipeline.latency.params import Benchmark
from pipeline.latency.records import BenchmarkRow
from pipeline.latency.rounds import measure, ratio
from pipeline.latency.workers import Target
from pipeline.networks.inference import set_up_torch
from pipeline.networks.records import Shapes
from pipeline.prune.params import Goal, PruneParams
from pipeline.prune.records import Measured

ROUNDS = 15
PROBES = 6
"""Shares that are tried at most."""

ENOUGH = 0.01
"""A share that keeps its goal by less than this is good enough."""

_BEFORE, _AFTER = "before", "after"


def check_goal(params: PruneParams) -> None:
    """Raise `PipelineError` unless this machine can measure what `prune.to` asks for."""
    goal = params.prune.to
    if goal.backend is None:
        return
    its = backend(goal.backend)
    its.check(params.backends.settings(goal.backend))
    if goal.what == "p50" and (reason := its.unmeasurable()):
        raise PipelineError(
            f"a latency on {its.title} cannot be measured here: {reason}",
            where="prune.to",
            fix="name another backend, or `macs` or `kb`",
        )


class Gauge:
    """Compiles forms of a student for the goal's backend, and compares them with the unpruned."""

    def __init__(
        self, name: str, params: PruneParams, shape: Shape, before: nn.Module, folder: Path
    ) -> None:
        """Compile the unpruned student.

        Args:
            name: of the student.
            params: goal, backends, `export.opset` and `benchmark.threads`.
            shape: of its images and logits.
            before: the unpruned network; is not changed.
            folder: an empty one, for what is compiled.
        """
        self._name, self._params, self._shape, self._folder = name, params, shape, folder
        goal = params.prune.to
        assert goal.backend is not None and goal.precision is not None
        self._backend, self._precision = goal.backend, goal.precision
        self._count = 0
        settings = params.backends.settings(self._backend)
        self._compiler = backend(self._backend).compiler(settings)
        self._before = self._compile(before, None)
        self._reference = reference_target(folder)

    def measure(self, network: nn.Module, shapes: Shapes, *, timed: bool) -> Measured:
        """What a pruned form of the student costs; `network` is not changed."""
        after = self._compile(network, shapes)
        found = Measured(
            backend=self._backend,
            precision=self._precision,
            kb=opened_bytes(after) / 1000,
            kb_before=opened_bytes(self._before) / 1000,
        )
        if not timed:
            return found
        settings = Benchmark(
            threads=self._params.benchmark.threads,
            rounds=ROUNDS, extra_rounds=ROUNDS // 2, min_runs=10, min_seconds=0.03, batch=0,
        )  # fmt: skip
        images = self._folder / "images.npy"
        both = [
            Target(name, self._backend, model, images)
            for name, model in ((_BEFORE, self._before), (_AFTER, after))
        ]
        done = measure([self._reference, *both], settings, seed=0)
        p50s = {name: _p50(done.rows[name], self._name) for name in (_BEFORE, _AFTER)}
        share, limits = ratio(done.raw[_AFTER], done.raw[_BEFORE])
        changes = {
            "p50_ms": p50s[_AFTER],
            "p50_ms_before": p50s[_BEFORE],
            "p50_share": share,
            "p50_share_interval": limits,
        }
        return found.model_copy(update=changes)

    def _compile(self, network: nn.Module, shapes: Shapes | None) -> Path:
        self._count += 1
        place = self._folder / str(self._count)
        for part in ("student", "artifact"):
            (place / part).mkdir(parents=True)
        set_up_torch(0)
        exported = with_random_statistics(
            self._name, self._params.students.zoo[self._name], deepcopy(network).cpu(),
            self._shape, self._params.export.opset, place / "student", shapes,
        )  # fmt: skip
        np.save(self._folder / "images.npy", exported.job.calibration)
        least, into = self._params.quantize.min_int8_share, place / "artifact"
        compiled, _ = compile_one(
            exported, self._backend, self._compiler, self._precision, least, into
        )
        return into / compiled.model_file


def _p50(row: BenchmarkRow, name: str) -> float:
    if row.latency_ms is None:
        raise PipelineError(
            f"its latency could not be measured: {row.reason}",
            where=f"prune of {name}",
            fix="look at `python -m pipeline doctor`, or prune to a share of `macs`",
        )
    return row.latency_ms.p50


def reached(goal: Goal, measured: Measured) -> float:
    """The share of the goal's quantity that is left."""
    if goal.what == "kb":
        return measured.kb / measured.kb_before
    assert measured.p50_share is not None
    return measured.p50_share


def largest_share(
    cost: Callable[[float], float], goal: float, ends: tuple[float, float], first: float
) -> float:
    """The largest share of MACs or weights that is found to keep a measured goal.

    Between a share that keeps it and one that does not, the next one is interpolated, a tenth of
    the interval away from either.

    Args:
        cost: what is left of the measured quantity at a share.
        goal: what may be left of it.
        ends: the smallest share that the rules allow, and the present one.
        first: the share that is tried first.

    Returns:
        A share that was measured to keep the goal; where none was, the smallest.
    """
    low, high = ends
    low_cost, high_cost = min(low, goal), 1.0  # nothing is measured there yet
    share = min(max(first, low), high)
    for _ in range(PROBES):
        found = cost(share)
        if found <= goal:
            low, low_cost = share, found
            if goal - found < ENOUGH:
                break
        else:
            high, high_cost = share, found
        if high - low < ENOUGH:
            break
        place = (goal - low_cost) / max(high_cost - low_cost, ENOUGH)
        share = low + (high - low) * min(max(place, 0.1), 0.9)
    return low
