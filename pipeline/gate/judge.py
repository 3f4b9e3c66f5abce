"""Compare what a baseline and a candidate have recorded, artifact by artifact."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.attribution.records import record_file as attribution_file
from pipeline.backends.base.artifact import EVIDENCE, Artifact
from pipeline.gate import accuracy, attribution, latency, robustness
from pipeline.gate.accuracy import Flips
from pipeline.gate.attribution import Fall
from pipeline.gate.latency import Slowdown
from pipeline.gate.params import Gate, GateParams
from pipeline.gate.robustness import Change
from pipeline.gate.snapshot import Recorded, Snapshot, metrics_path
from pipeline.gate.verdict import ALL, Commands, Finding, Note, Outcome, Repeat, Verdict
from pipeline.latency.records import BENCHMARK
from pipeline.robustness.records import record_file as robustness_file

_NAMED = 3  # float layers in a finding

Reruns = Mapping[str, Finding | Slowdown]
Parts = list[Finding | Flips | Slowdown | Fall | Change | Note]


def judge(
    baseline: Snapshot, candidate: Snapshot, params: GateParams, commands: Commands, reruns: Reruns
) -> Verdict:
    """The verdict on every artifact of either side.

    A rerun replaces the recorded latencies of its artifact. Only where these were measured with
    other versions of runtimes are both judged: a rerun has one environment and would not notice
    that a runtime became slower.

    Args:
        baseline: the records to compare with.
        candidate: the records to be judged.
        params: the thresholds of comparisons, and the limits that every artifact has to keep.
        commands: of the findings.
        reruns: latencies that were measured side by side, by `S/B/P`.
    """
    gate = params.gate
    parts: Parts = [*_broken(baseline, candidate, params)]
    for key in dict.fromkeys([*baseline.rows, *candidate.rows]):
        parts += _artifact(key, baseline, candidate, params, reruns)
    flips = [part for part in parts if isinstance(part, Flips)]
    slowdowns = [part for part in parts if isinstance(part, Slowdown)]
    falls = [part for part in parts if isinstance(part, Fall)]
    changes = [part for part in parts if isinstance(part, Change)]
    tests = accuracy.TESTS * len(flips) + len(slowdowns) + len(falls) + len(changes)
    found, power = accuracy.decide(flips, tests, gate)
    found += [latency.decide(slowdown, tests, gate) for slowdown in slowdowns]
    found += attribution.decide(falls, tests, gate)
    found += robustness.decide(changes, tests, gate)
    found += [part for part in parts if isinstance(part, Finding)]
    order = {key: i for i, key in enumerate(dict.fromkeys([*candidate.rows, *baseline.rows]))}
    found.sort(key=lambda finding: order.get(finding.key, -1))
    notes = [part for part in parts if isinstance(part, Note)]
    if baseline.benchmark is None and str(BENCHMARK) not in baseline.broken:
        notes.append(Note(ALL, "the baseline has no latencies"))
    if power is not None:
        text = f"a loss of {gate.max_top1_loss:g} top-1 is found with a probability of at least"
        notes.append(Note(ALL, f"{text} {power:.2f}, {tests} tests being corrected for"))
    if small := accuracy.undecided(flips, tests, gate):
        notes.append(Note(ALL, small))
    return Verdict(commands, tuple(found), tuple(notes))


def _broken(baseline: Snapshot, candidate: Snapshot, params: GateParams) -> list[Finding]:
    """A finding for each broken file of an artifact that is judged; one for all older records."""
    found, older = [], []
    for side, snapshot in (("baseline", baseline), ("candidate", candidate)):
        keys = {str(BENCHMARK): ALL}
        keys |= {metrics_path(key): key for key in snapshot.rows}
        keys |= {metrics_path(key, EVIDENCE): key for key in snapshot.rows}
        students = dict.fromkeys(Artifact.parse(key).student for key in snapshot.rows)
        keys |= {str(robustness_file(student)): ALL for student in students}
        keys |= {str(attribution_file(name)): ALL for name in params.attribution.enabled}
        for path in (path for path in snapshot.broken if path in keys):
            text = f"{path}: {snapshot.broken[path]}"
            if snapshot is baseline and path in snapshot.older:
                older.append(text)
            else:
                found.append(Finding(keys[path], "record", Outcome.INVALID, f"{side}: {text}"))
    if older:
        text = f"baseline: recorded by an older version ({len(older)} file(s), {min(older)})"
        text += "; run the baseline again"
        found.append(Finding(ALL, "record", Outcome.INVALID, text))
    return found


def _artifact(
    key: str, baseline: Snapshot, candidate: Snapshot, params: GateParams, reruns: Reruns
) -> Parts:
    before, after = _row(key, baseline), _row(key, candidate)
    if after is None and before is not None:
        text = "recorded in the baseline, but no longer here"
        return [Finding(key, "row", Outcome.REGRESSION, text, command=Repeat.COMPILE)]
    if after is None:
        text = f"benchmarked, but {metrics_path(key)} is missing"
        lost = Finding(key, "record", Outcome.INVALID, text, command=Repeat.COMPILE)
        return [lost] if key in candidate.rows else []
    parts: Parts = []
    if after.metrics:
        parts.append(accuracy.floors(key, after.metrics, params.limits))
    if before is None:
        return [*parts, Finding(key, "row", Outcome.PASSED, "new")]
    if before.metrics and after.metrics:
        parts += _deterministic(key, before, after, params.gate)
        if metrics_path(key, EVIDENCE) not in baseline.broken.keys() | candidate.broken.keys():
            parts.append(accuracy.compare_answers(key, before, after))
        parts += robustness.compare(key, baseline, candidate)
    enabled = Artifact.parse(key).student in params.attribution.enabled
    parts += attribution.compare_maps(key, baseline, candidate, enabled)
    return [*parts, *_latency(key, baseline, candidate, params.gate, reruns)]


def _row(key: str, snapshot: Snapshot) -> Recorded | None:
    """What is recorded about an artifact; None without a file of metrics, even a broken one."""
    row = snapshot.rows.get(key)
    if row is None or (row.metrics is None and metrics_path(key) not in snapshot.broken):
        return None
    return row


def _latency(
    key: str, baseline: Snapshot, candidate: Snapshot, gate: Gate, reruns: Reruns
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
    recorded = latency.compare_recorded(key, before, after, gate, changed=changed)
    return [*([recorded] if recorded else []), *rerun]


def _deterministic(key: str, baseline: Recorded, candidate: Recorded, gate: Gate) -> Parts:
    """Size, int8 share, float layers and partitions. Changed files are only a note."""
    assert baseline.metrics and candidate.metrics
    parts: Parts = []

    def compare(measure: str, before: float, after: float, worse: bool, text: str) -> None:
        outcome = Outcome.REGRESSION if worse else Outcome.PASSED
        parts.append(Finding(key, measure, outcome, text, before, after))

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
        known = {layer.name for layer in before.in_float}
        new = [str(layer) for layer in after.in_float if layer.name not in known]
        counts = len(before.in_float), len(after.in_float)
        more = [f"{len(new) - _NAMED} more"] if len(new) > _NAMED else []
        text = f"new in float: {', '.join([*new[:_NAMED], *more])}" if new else "none is new"
        compare("float layers", *counts, bool(new), text)
    if before.partitions and after.partitions:
        parted = before.partitions, after.partitions
        delegated = [partition.delegated for partition in parted]
        left = [sum(partition.builtin.values()) for partition in parted]
        worse = delegated[1] > delegated[0] or left[1] > left[0]
        text = f"left to built-in kernels: {left[0]} operators before, {left[1]} now"
        compare("partitions", delegated[0], delegated[1], worse, text)
    if _files_changed(baseline, candidate):
        parts.append(Note(key, "the compiled files differ from the baseline's"))
    return parts


def _files_changed(baseline: Recorded, candidate: Recorded) -> bool:
    """Whether both sides recorded digests of their compiled files, and these differ."""
    before, after = baseline.evidence, candidate.evidence
    return before is not None and after is not None and before.digests != after.digests
