"""Latency: log ratios between rounds of two recorded runs, or of one run that has both artifacts.

Each artifact is judged by two one-sided bounds of its log ratio. It is a regression if the lower
bound exceeds `max_slowdown` and the excess exceeds `max_slowdown_ms`. `false_alarms` holds for the
whole gate run, so it is divided by the number of tests (Bonferroni). It passes if the upper bound
at the level `misses` is below either limit. The gate passes only if every artifact does: an
intersection-union test, which needs no correction (Berger, Technometrics 24, 1982). Anything
between is inconclusive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.gate.params import Gate
from pipeline.gate.verdict import Finding, Note, Outcome, Repeat
from pipeline.latency.conditions import disturbance
from pipeline.latency.records import BenchmarkRecord, BenchmarkRow
from pipeline.latency.statistics import LogRatio, paired_log_ratio, unpaired_log_ratio

MEASURE = "latency"
RERUN = "latency, rerun"
_RATIO = "of the ratio to the reference"
_APART = "; measured on two machines, so milliseconds are not compared"
_BETTER = "`--rerun` measures both side by side"
_FEWEST_ROUNDS = 2
_HARDWARE = ("instruction_sets", "accelerators")
"""Fields of a fingerprint that matter beside the CPU. Ratios to the reference depend on the CPU:
those of seven models of one student were 0.94 to 2.31 times as large without AVX-512 as with it."""
_NAMED = 3

_PACE = 0.1
"""If the latency of the reference changed by more than this, ratios of two runs are not compared: a
change of the clock, of neighbours or of the host need not change all models by the same factor."""


@dataclass(frozen=True)
class Slowdown:
    """The change of one artifact's latency, to be tested."""

    key: str
    measure: str
    ratio: LogRatio
    baseline_ms: float
    """p50."""
    candidate_ms: float
    """p50."""
    same_machine: bool
    """Whether milliseconds can be compared."""
    how: str
    """How it was measured, for the finding."""


def compare_recorded(
    key: str, baseline: BenchmarkRecord, candidate: BenchmarkRecord, gate: Gate, *, changed: bool
) -> Finding | Slowdown | Note | None:
    """Compare the latencies of one artifact in two recorded runs.

    Args:
        key: of the artifact, `S/B/P`.
        baseline: the run to compare with.
        candidate: the run to be judged.
        gate: the thresholds.
        changed: whether the compiled files differ from the baseline's.

    Returns:
        A slow-down to be tested, or a finding or note that needs no test.
    """
    before, after = baseline.rows.get(key), candidate.rows.get(key)
    if before is None or before.latency_ms is None:
        if after is None:
            return None
        was = "not recorded" if before is None else before.status.replace("_", " ")
        now = after.status.replace("_", " ")
        reason = f" ({after.reason})" if after.reason else ""
        return Note(key, f"latency {was} in the baseline, {now} now{reason}")
    p50 = before.latency_ms.p50
    if after is None:
        return lost(key, baseline, "measured in the baseline, no longer recorded")[0]
    if after.latency_ms is None:
        outcome = Outcome.REGRESSION if after.status == "failed" else Outcome.INCONCLUSIVE
        text = f"measured in the baseline, {after.status.replace('_', ' ')} now: {after.reason}"
        return Finding(key, MEASURE, outcome, text, p50, None, "dvc repro --force benchmark")

    def finding(outcome: Outcome, text: str, command: str = Repeat.RERUN) -> Finding:
        return Finding(key, MEASURE, outcome, text, *figures, command)

    figures = (p50, after.latency_ms.p50)
    if before == after and baseline.reference == candidate.reference:
        if not changed:
            return finding(Outcome.PASSED, "the same measurement")
        text = "compiled again, but not measured again"
        return finding(Outcome.INCONCLUSIVE, text, "dvc repro benchmark")
    if unfit := _unfit(before, after, baseline, candidate):
        return finding(*unfit)
    ratio = unpaired_log_ratio(
        _to_reference(after, candidate.reference),
        _to_reference(before, baseline.reference),
        gate.between_runs,
    )
    if doubt := _doubt(baseline, candidate):
        change = f"{math.expm1(ratio.estimate):+.1%} {_RATIO}"
        text = f"{change}, of runs that cannot be compared: {doubt}; {_BETTER}"
        return finding(Outcome.INCONCLUSIVE, text)
    same_machine = baseline.fingerprint == candidate.fingerprint
    apart = "" if same_machine else _APART
    return Slowdown(key, MEASURE, ratio, *figures, same_machine, f"{_RATIO}{apart}")


def lost(key: str, baseline: BenchmarkRecord, text: str) -> list[Finding]:
    """A regression if the baseline has a latency and the candidate none."""
    row = baseline.rows.get(key)
    if row is None or row.latency_ms is None:
        return []
    p50, command = row.latency_ms.p50, "dvc repro benchmark"
    return [Finding(key, MEASURE, Outcome.REGRESSION, text, p50, None, command)]


def _unfit(
    before: BenchmarkRow, after: BenchmarkRow, baseline: BenchmarkRecord, candidate: BenchmarkRecord
) -> tuple[Outcome, str] | None:
    """Why two measurements cannot be tested."""
    if baseline.reference_digest != candidate.reference_digest:
        return Outcome.INVALID, "measured with different reference models"
    if before.threads != after.threads:
        return Outcome.INVALID, f"measured on {before.threads} and on {after.threads} threads"
    for side, row, record in (("baseline", before, baseline), ("candidate", after, candidate)):
        if len(row.rounds_ms) != len(record.reference.rounds_ms):
            return Outcome.INVALID, f"the {side} and its reference differ in the number of rounds"
        if len(row.rounds_ms) < _FEWEST_ROUNDS:
            return Outcome.INCONCLUSIVE, f"the {side} was recorded without its rounds"
    return None


def _doubt(baseline: BenchmarkRecord, candidate: BenchmarkRecord) -> str | None:
    """Why the ratios of two runs are not comparable, whatever the spread of their rounds."""
    for side, record in (("baseline", baseline), ("candidate", candidate)):
        if disturbed := disturbance(record.conditions):
            return f"of the {side}, {disturbed}"
    machines = baseline.fingerprint, candidate.fingerprint
    if machines[0].cpu != machines[1].cpu:
        return f"the CPUs are {machines[0].cpu} and {machines[1].cpu}"
    for field in _HARDWARE:
        first, second = (set(getattr(machine, field)) for machine in machines)
        if differing := sorted(first ^ second):
            more = ", ..." if len(differing) > _NAMED else ""
            return f"only one machine has {', '.join(differing[:_NAMED])}{more}"
    assert baseline.reference.latency_ms and candidate.reference.latency_ms
    before, after = baseline.reference.latency_ms.p50, candidate.reference.latency_ms.p50
    if abs(math.log(after / before)) > math.log1p(_PACE):
        return f"the reference itself took {before:.3f} ms and takes {after:.3f} ms now"
    return None


def _to_reference(row: BenchmarkRow, reference: BenchmarkRow) -> list[float]:
    return [ms / own for ms, own in zip(row.rounds_ms, reference.rounds_ms, strict=True)]


def compare_side_by_side(
    key: str, baseline: BenchmarkRow, candidate: BenchmarkRow, disturbed: int = 0
) -> Slowdown:
    """Compare two artifacts that were measured in the same rounds; `disturbed` ones are spoiled."""
    spoiled = f" ({disturbed} of them disturbed)" if disturbed else ""
    assert baseline.latency_ms and candidate.latency_ms
    return Slowdown(
        key=key,
        measure=RERUN,
        ratio=paired_log_ratio(candidate.rounds_ms, baseline.rounds_ms),
        baseline_ms=baseline.latency_ms.p50,
        candidate_ms=candidate.latency_ms.p50,
        same_machine=True,
        how=f"over {len(baseline.rounds_ms)} rounds side by side{spoiled}",
    )


def decide(slowdown: Slowdown, tests: int, gate: Gate) -> Finding:
    """Test one slow-down, as one of `tests` statistical tests of this gate run."""
    ratio, limit = slowdown.ratio, math.log1p(gate.max_slowdown)
    surely, at_most = ratio.lower(gate.false_alarms / tests), ratio.upper(gate.misses)
    # from the ratio, because the machine may have become faster or slower between two runs
    excess, largest = (slowdown.baseline_ms * math.expm1(log) for log in (ratio.estimate, at_most))
    if surely > limit and not (slowdown.same_machine and excess <= gate.max_slowdown_ms):
        outcome = Outcome.REGRESSION
    elif at_most <= limit or (slowdown.same_machine and largest <= gate.max_slowdown_ms):
        outcome = Outcome.PASSED
    else:
        outcome = Outcome.INCONCLUSIVE
    text = f"{math.expm1(ratio.estimate):+.1%} {slowdown.how}"
    if slowdown.same_machine:
        text += f", {excess:+.3f} ms"
    text += (
        f"; at least {_percent(surely)}, at most {_percent(at_most)}; limits "
        f"{gate.max_slowdown:.1%} and {gate.max_slowdown_ms:g} ms"
    )
    if outcome is Outcome.INCONCLUSIVE and slowdown.measure == MEASURE:
        text += f"; {_BETTER}"
    figures = (slowdown.baseline_ms, slowdown.candidate_ms)
    return Finding(slowdown.key, slowdown.measure, outcome, text, *figures, Repeat.RERUN)


def _percent(log: float) -> str:
    """A log ratio as a change in percent; the bounds of very few rounds can be huge."""
    return f"{math.expm1(log):+.1%}" if log < math.log(100) else "anything"
