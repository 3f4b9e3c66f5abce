"""The latency part of `benchmarks.gate`: long interleaved sessions, cut into comparisons."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks import slow_worker
from benchmarks.busy import busy_neighbour
from benchmarks.rates import rate
from pipeline.cli.params import Params
from pipeline.gate.latency import (
    MEASURE,
    RERUN,
    Slowdown,
    compare_recorded,
    compare_side_by_side,
    decide,
)
from pipeline.gate.params import Gate
from pipeline.gate.verdict import Finding, Outcome
from pipeline.latency import workers
from pipeline.latency.benchmark import reference_target
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.latency.harness import percentiles
from pipeline.latency.params import Benchmark
from pipeline.latency.records import (
    REFERENCE,
    BenchmarkRecord,
    BenchmarkRow,
    Conditions,
    Fingerprint,
    Latency,
)
from pipeline.latency.reference import DIGEST
from pipeline.latency.rounds import Rounds
from pipeline.latency.rounds import measure as measure_rounds
from pipeline.latency.workers import Target

IDLE, LOADED = "idle", "loaded"
BASELINE = "baseline"
SLOWDOWNS = (0.0, 0.05, 0.1, 0.2)
"""Injected into candidates; 0 is the baseline's own file again."""
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    sessions: int
    """Per state of the machine."""
    blocks: int
    """Comparisons per session."""
    visit: Benchmark
    """The settings of the stage `benchmark`, with the rounds of one comparison."""


@dataclass(frozen=True)
class Session:
    """One session: raw times by target, measured in processes of its own."""

    state: str
    model: str
    raw: dict[str, Rounds]
    conditions: tuple[Conditions, ...]
    load: float
    """The load average of the last minute at its end."""


@dataclass(frozen=True)
class Trial:
    """One comparison, not decided yet; a `Finding` where other processes disturbed the runs."""

    state: str
    model: str
    injected: float
    found: Slowdown | Finding


def record(state: str, models: list[Target], plan: Plan, seed: int) -> list[Session]:
    """Measure the models in turn; every second session of a model has the slower candidates."""
    sessions = []
    # No round is repeated: the effect of the busy neighbour is what is measured here.
    visit = {"rounds": plan.visit.rounds * plan.blocks, "extra_rounds": 0}
    settings = plan.visit.model_copy(update=visit)
    with (
        tempfile.TemporaryDirectory() as scratch,
        busy_neighbour(seed) if state == LOADED else nullcontext(),
        patch.object(workers, "worker", slow_worker),  # the module that workers run
    ):
        reference = reference_target(Path(scratch))
        for number in range(plan.sessions):
            model = models[number % len(models)]
            slower = number // len(models) % 2 == 0
            targets = [reference, _target(BASELINE, model)]
            targets += [_target(_name(s), model, s) for s in SLOWDOWNS if slower or not s]
            print(f"{state}: {number + 1} of {plan.sessions}, {model.name}", file=sys.stderr)
            measured = measure_rounds(targets, settings, seed + number)
            for name, row in measured.rows.items():
                if row.status != "measured":
                    raise RuntimeError(f"{model.name}, {name}: {row.reason}")
            load = psutil.getloadavg()[0]
            sessions.append(Session(state, model.name, measured.raw, measured.conditions, load))
    return sessions


def _name(injected: float) -> str:
    return f"candidate +{injected:.0%}"


def _target(name: str, model: Target, injected: float = 0.0) -> Target:
    runtime = f"{model.backend}+{injected}" if injected else model.backend
    return Target(name, runtime, model.model, model.images)


def side_by_side(session: Session, plan: Plan) -> Iterator[Trial]:
    """Compare as `gate --rerun` does: a block's rounds of the baseline and of a candidate."""
    for block in range(plan.blocks):
        rows = _rows(session, block, plan.visit.rounds, plan)
        for injected in SLOWDOWNS:
            if _name(injected) in rows:
                found = compare_side_by_side(session.model, rows[BASELINE], rows[_name(injected)])
                yield Trial(session.state, session.model, injected, found)


def recorded(sessions: list[Session], plan: Plan, rounds: int, gate: Gate) -> Iterator[Trial]:
    """Compare as `gate` does two runs of `benchmark`: a block with that of the next session.

    A run consists of the first `rounds` rounds of a block.
    """
    machine = read_fingerprint()
    for model in dict.fromkeys(session.model for session in sessions):
        same = [session for session in sessions if session.model == model]
        for before, after in zip(same, same[1:] + same[:1], strict=True):
            for block in range(plan.blocks):
                old = _record(before, BASELINE, block, rounds, plan, machine)
                for injected in SLOWDOWNS:
                    if _name(injected) not in after.raw:
                        continue
                    new = _record(after, _name(injected), block, rounds, plan, machine)
                    found = compare_recorded(model, old, new, gate, changed=True)
                    assert isinstance(found, Slowdown | Finding)
                    yield Trial(before.state, model, injected, found)


def _rows(session: Session, block: int, rounds: int, plan: Plan) -> dict[str, BenchmarkRow]:
    """The first `rounds` rounds of a block, as `benchmark` records them."""
    return {
        name: _row(_block(times, block, rounds, plan), plan.visit.threads)
        for name, times in session.raw.items()
    }


def _block(values: Sequence[T], block: int, rounds: int, plan: Plan) -> Sequence[T]:
    first = block * plan.visit.rounds
    return values[first : first + rounds]


def _record(
    session: Session, target: str, block: int, rounds: int, plan: Plan, machine: Fingerprint
) -> BenchmarkRecord:
    rows = _rows(session, block, rounds, plan)
    return BenchmarkRecord(
        fingerprint=machine,
        reference=rows[REFERENCE],
        reference_digest=DIGEST,
        conditions=tuple(_block(session.conditions, block, rounds, plan)),
        rows={session.model: rows[target]},
    )


def _row(times: Sequence[NDArray[np.int64]], threads: int) -> BenchmarkRow:
    return BenchmarkRow(
        status="measured",
        latency_ms=Latency(**asdict(percentiles(np.concatenate(times)))),
        threads=threads,
        n=sum(map(len, times)),
        rounds_ms=tuple(round(float(np.median(one)) / 1e6, 6) for one in times),
    )


def judge(trials: list[Trial], tests: tuple[int, ...], gate: Gate) -> list[dict[str, Any]]:
    """A row per kind of comparison, injected slow-down, state, model and number of tests.

    Further rows are for `all` models of a state, and for `all` states.
    """
    rows = []
    for measure in (RERUN, MEASURE):
        of_measure = [trial for trial in trials if trial.found.measure == measure]
        for injected in SLOWDOWNS:
            of_injected = [trial for trial in of_measure if trial.injected == injected]
            for state, model, chosen in _groups(of_injected):
                for count in tests:
                    row = {"measure": measure, "injected": injected, "state": state}
                    rows.append(row | {"model": model} | _counted(chosen, count, gate))
    return rows


def _groups(trials: list[Trial]) -> Iterator[tuple[str, str, list[Trial]]]:
    states = _and_all([trial.state for trial in trials])
    models = _and_all([trial.model for trial in trials])
    for state in states:
        for model in models:
            if state == "all" and model != models[-1]:
                continue
            chosen = [
                trial
                for trial in trials
                if state in (trial.state, "all") and model in (trial.model, "all")
            ]
            yield state, model, chosen


def _and_all(names: list[str]) -> list[str]:
    different = list(dict.fromkeys(names))
    return different + ["all"] * (len(different) > 1)


def _counted(trials: list[Trial], tests: int, gate: Gate) -> dict[str, Any]:
    slowdowns = [trial.found for trial in trials if isinstance(trial.found, Slowdown)]
    found = Counter(decide(one, tests, gate).outcome for one in slowdowns)
    disturbed = Counter(t.found.outcome for t in trials if isinstance(t.found, Finding))
    found += disturbed
    ratios = np.exp([one.ratio.estimate for one in slowdowns])
    return {
        "tests": tests,
        "p50_ms": float(np.median([one.baseline_ms for one in slowdowns])) if slowdowns else None,
        "measured": float(np.median(ratios)) - 1 if slowdowns else None,
        "disturbed": disturbed.total(),
        "outcomes": {outcome: found[outcome] for outcome in Outcome},
        "found": rate(found[Outcome.REGRESSION], len(trials)),
        "passed": rate(found[Outcome.PASSED], len(trials)),
    }


def latency_trials(
    states: tuple[str, ...], models: list[Target], plan: Plan, params: Params
) -> tuple[list[Trial], dict[str, list[float]]]:
    """All comparisons, and by state the load averages of its sessions."""
    trials: list[Trial] = []
    loads = {}
    rounds = min(params.benchmark.rounds, plan.visit.rounds)
    for state in states:
        sessions = record(state, models, plan, params.seed)
        loads[state] = [session.load for session in sessions]
        trials += [trial for session in sessions for trial in side_by_side(session, plan)]
        trials += recorded(sessions, plan, rounds, params.gate)
    return trials, loads
