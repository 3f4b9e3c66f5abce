"""A baseline and a candidate, artifact by artifact: pure, of what was read."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.backends.base.records import ExecutionReport, FloatLayer
from pipeline.compile.evidence import EVIDENCE
from pipeline.gate import accuracy, latency
from pipeline.gate.accuracy import Flips
from pipeline.gate.latency import Slowdown
from pipeline.gate.params import Gate
from pipeline.gate.snapshot import Recorded, Snapshot, metrics_path
from pipeline.gate.verdict import ALL, Commands, Finding, Note, Outcome, Verdict
from pipeline.latency.records import BENCHMARK
from pipeline.report.params import Limits

_NAMED = 3  # float products in a finding

Parts = list[Finding | Flips | Slowdown | Note]


def judge(
    baseline: Snapshot,
    candidate: Snapshot,
    gate: Gate,
    limits: Limits,
    commands: Commands,
    reruns: Mapping[str, Finding | Slowdown] | None = None,
) -> Verdict:
    """The verdict on every artifact of either side; `reruns` are latencies side by side.

    A rerun stands for the recorded latencies of its artifact. Only where these were taken
    with other runtimes are both judged: a rerun has one environment, and would not see that
    a runtime became slower.
    """
    parts: Parts = [*_broken(baseline, candidate, commands)]
    for key in dict.fromkeys([*baseline.rows, *candidate.rows]):
        parts += _artifact(key, baseline, candidate, gate, limits, commands, reruns or {})
    flips = [part for part in parts if isinstance(part, Flips)]
    slowdowns = [part for part in parts if isinstance(part, Slowdown)]
    tests = len(flips) + len(slowdowns)
    found, power = accuracy.decide(flips, tests, gate, commands)
    found += [latency.decide(slowdown, tests, gate, commands) for slowdown in slowdowns]
    found += [part for part in parts if isinstance(part, Finding)]
    order = {key: i for i, key in enumerate(dict.fromkeys([*candidate.rows, *baseline.rows]))}
    found.sort(key=lambda finding: order.get(finding.key, -1))
    notes = [part for part in parts if isinstance(part, Note)]
    if baseline.benchmark is None and str(BENCHMARK) not in baseline.broken:
        notes.append(Note(ALL, "the baseline has no latencies"))
    if power is not None:
        text = f"a loss of {gate.max_top1_loss:g} top-1 is found with a probability of at least"
        notes.append(Note(ALL, f"{text} {power:.2f}, {tests} tests being corrected for"))
    return Verdict(baseline.name, tuple(found), tuple(notes))


def _broken(baseline: Snapshot, candidate: Snapshot, commands: Commands) -> list[Finding]:
    """A finding for every file that is no record and that somebody asks for."""
    found = []
    for side, snapshot in (("baseline", baseline), ("candidate", candidate)):
        keys = {metrics_path(key): key for key in snapshot.rows}
        keys |= {metrics_path(key, EVIDENCE): key for key in snapshot.rows}
        for path, reason in snapshot.broken.items():
            if path in keys or path == str(BENCHMARK):
                key = keys.get(path, ALL)
                text = f"{side}: {path}: {reason}"
                command = commands.judge(key)
                found.append(Finding(key, "record", Outcome.INVALID, None, None, text, command))
    return found


def _artifact(
    key: str,
    baseline: Snapshot,
    candidate: Snapshot,
    gate: Gate,
    limits: Limits,
    commands: Commands,
    reruns: Mapping[str, Finding | Slowdown],
) -> Parts:
    before, after = _row(key, baseline), _row(key, candidate)
    command = commands.compile(key)
    if after is None and before is not None:
        text = "recorded in the baseline, not any more"
        return [Finding(key, "row", Outcome.REGRESSION, None, None, text, command)]
    if after is None:
        text = f"benchmarked, but {metrics_path(key)} is missing"
        lost = Finding(key, "record", Outcome.INVALID, None, None, text, command)
        return [lost] if key in candidate.rows else []
    parts: Parts = []
    if after.metrics:
        parts.append(accuracy.floors(key, after.metrics, limits, commands))
    if before is None:
        new = Finding(key, "row", Outcome.PASSED, None, None, "new", commands.judge(key))
        return [*parts, new]
    if before.metrics and after.metrics:
        parts += _deterministic(key, before, after, gate, commands)
        if metrics_path(key, EVIDENCE) not in baseline.broken.keys() | candidate.broken.keys():
            parts.append(accuracy.compare_answers(key, before, after, commands))
    return [*parts, *_latency(key, baseline, candidate, gate, commands, reruns)]


def _row(key: str, snapshot: Snapshot) -> Recorded | None:
    """What is recorded about an artifact; None where it has no metrics, not even broken ones."""
    row = snapshot.rows.get(key)
    if row is None or (row.metrics is None and metrics_path(key) not in snapshot.broken):
        return None
    return row


def _latency(
    key: str,
    baseline: Snapshot,
    candidate: Snapshot,
    gate: Gate,
    commands: Commands,
    reruns: Mapping[str, Finding | Slowdown],
) -> Parts:
    rerun = [reruns[key]] if key in reruns else []
    before, after = baseline.benchmark, candidate.benchmark
    if before is None or str(BENCHMARK) in candidate.broken:
        return [*rerun]
    if after is None:
        return [*rerun, *latency.lost(key, before, f"{BENCHMARK} is missing")]
    if rerun and before.fingerprint.runtimes == after.fingerprint.runtimes:
        return [*rerun]
    changed = _files_changed(baseline.rows[key], candidate.rows[key])
    recorded = latency.compare_recorded(key, before, after, gate, commands, changed=changed)
    return [*([recorded] if recorded else []), *rerun]


def _deterministic(
    key: str, baseline: Recorded, candidate: Recorded, gate: Gate, commands: Commands
) -> Parts:
    """Size, int8 share, float products and partitions; digests only tell."""
    assert baseline.metrics and candidate.metrics
    parts: Parts = []

    def compare(measure: str, before: float, after: float, worse: bool, text: str) -> None:
        outcome = Outcome.REGRESSION if worse else Outcome.PASSED
        parts.append(Finding(key, measure, outcome, before, after, text, commands.judge(key)))

    sizes = baseline.metrics.size_bytes, candidate.metrics.size_bytes
    growth = sizes[1] / sizes[0] - 1 if sizes[0] else 0.0
    limit = f"{growth:+.1%}, limit {gate.max_size_growth:.1%}"
    compare("size", *sizes, growth > gate.max_size_growth, limit)
    int8 = key.endswith("/int8")
    if int8:
        shares = baseline.metrics.int8_mac_share, candidate.metrics.int8_mac_share
        compare("int8 share", *shares, shares[1] < shares[0], "of multiply-accumulates")
    if not (baseline.evidence and candidate.evidence):
        return parts
    before, after = baseline.evidence.execution, candidate.evidence.execution
    if int8:
        new = _new_products(before, after)
        counts = len(before.in_float), len(after.in_float)
        names = [str(product) for product in new[:_NAMED]]
        more = [f"{len(new) - _NAMED} more"] if len(new) > _NAMED else []
        text = f"new in float: {', '.join([*names, *more])}" if new else "none is new"
        compare("float products", *counts, bool(new), text)
    if before.partitions and after.partitions:
        parted = before.partitions, after.partitions
        delegated = [partition.delegated for partition in parted]
        left = [sum(partition.builtin.values()) for partition in parted]
        worse = delegated[1] > delegated[0] or left[1] > left[0]
        text = f"left to built-in kernels: {left[0]} operators before, {left[1]} now"
        compare("partitions", delegated[0], delegated[1], worse, text)
    if _files_changed(baseline, candidate):
        parts.append(Note(key, "the compiled files are not those of the baseline"))
    return parts


def _files_changed(baseline: Recorded, candidate: Recorded) -> bool:
    """Whether both sides tell of their compiled files, and of different ones."""
    before, after = baseline.evidence, candidate.evidence
    return before is not None and after is not None and before.digests != after.digests


def _new_products(baseline: ExecutionReport, candidate: ExecutionReport) -> list[FloatLayer]:
    known = {product.name for product in baseline.in_float}
    return [product for product in candidate.in_float if product.name not in known]
