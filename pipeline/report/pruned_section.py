"""The report's tables on pruned students: before and after, and beside other students."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipeline.accuracy.paired import paired_limits
from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.registry import title
from pipeline.compile.evidence import Evidence
from pipeline.networks.records import PRUNED
from pipeline.prune.records import PRUNING, Pruning
from pipeline.report.params import ReportParams
from pipeline.report.results import UNKNOWN, Row
from pipeline.report.sections import Section

_SHOWN = {"macs": "MACs", "p50": "p50", "kb": "kB"}


def pruned_section(params: ReportParams) -> Section:
    """Each pruned student, in float and as it was measured when it was pruned."""
    rows = [_before_and_after(name) for name in _pruned(params)]
    return Section.of("Pruned students", rows, ("Student", "Goal", "95% of the change"))


def beside_section(
    params: ReportParams, rows: list[Row], artifacts: dict[str, ArtifactRecord]
) -> Section:
    """Each artifact of a pruned student beside that of the same network unpruned, and beside those
    of other students with no more multiply-accumulates."""
    shown = []
    for name in _pruned(params):
        twins = _twins(params, name)
        for other in _others(params, name):
            for mine, its in _pairs(rows, name, other):
                smaller = _macs(its, artifacts) <= _macs(mine, artifacts)
                if other in twins or smaller:
                    shown.append(_compared(mine, its, artifacts))
    words = ("Artifact", "Compared with", "95% of the change")
    return Section.of("Pruned students beside others", shown, words)


def verdicts(
    params: ReportParams, rows: list[Row], artifacts: dict[str, ArtifactRecord]
) -> list[str]:
    """A sentence for each other student that is no larger than a pruned one, and as good."""
    found = []
    for name in _pruned(params):
        for other in _others(params, name):
            pairs = [
                (mine, its)
                for mine, its in _pairs(rows, name, other)
                if _macs(its, artifacts) <= _macs(mine, artifacts)
            ]
            mine, its = ([_top1(pair[side]) for pair in pairs] for side in (0, 1))
            if pairs and sum(its) >= sum(mine):
                macs = [_macs(pairs[0][side], artifacts) for side in (1, 0)]
                found.append(
                    f"Pruning {name} did not pay: {other} has {macs[0]:,} multiply-accumulates, no "
                    f"more than its {macs[1]:,}, and a mean top-1 of {sum(its) / len(pairs):.4f} "
                    f"against {sum(mine) / len(pairs):.4f} over the same {len(pairs)} artifact(s)."
                )
    return found


def _pruned(params: ReportParams) -> list[str]:
    return [name for name in params.students.enabled if name in params.prune.enabled]


def _others(params: ReportParams, name: str) -> list[str]:
    return [other for other in params.students.enabled if other != name]


def _twins(params: ReportParams, name: str) -> list[str]:
    """The students that are the same network with the same recipe, and are not pruned."""
    zoo = params.students.zoo
    others = (other for other in _others(params, name) if other not in params.prune.enabled)
    return [other for other in others if zoo[other] == zoo[name]]


def _pairs(rows: list[Row], name: str, other: str) -> Iterator[tuple[Row, Row]]:
    """The compiled artifacts of two students for the same backend and precision."""
    by_artifact = {row.artifact: row for row in rows if row.metrics}
    for row in by_artifact.values():
        its = by_artifact.get(replace(row.artifact, student=other))
        if row.artifact.student == name and its is not None:
            yield row, its


def _macs(row: Row, artifacts: dict[str, ArtifactRecord]) -> int:
    return artifacts[row.name].execution.macs


def _top1(row: Row) -> float:
    assert row.metrics is not None
    return row.metrics.top1


def _before_and_after(name: str) -> dict[str, str]:
    its = Pruning.read(PRUNED / name / PRUNING)
    measured, goal = its.measured, f"{its.share:.0%} of {_SHOWN[its.target]}"
    times, sizes = (UNKNOWN, UNKNOWN), (UNKNOWN, UNKNOWN)
    if measured is not None:
        goal += f" on {title(measured.backend)} {measured.precision}"
        sizes = f"{measured.kb_before:,.0f}", f"{measured.kb:,.0f}"
        if measured.p50_ms is not None:
            times = f"{measured.p50_ms_before:.3f}", f"{measured.p50_ms:.3f}"
    low, high = paired_limits(its.lost, its.won, its.images)
    return {
        "Student": name,
        "Goal": goal,
        "Reached": f"{its.reached:.1%}",
        "MACs before": f"{its.macs_before:,}",
        "MACs": f"{its.macs:,}",
        "Weights before": f"{its.weights_before:,}",
        "Weights": f"{its.weights:,}",
        "p50 ms before": times[0],
        "p50 ms": times[1],
        "kB before": sizes[0],
        "kB": sizes[1],
        "Float top-1 before": f"{its.top1_before:.4f}",
        "Float top-1": f"{its.top1:.4f}",
        "Change": f"{its.top1 - its.top1_before:+.4f}",
        "95% of the change": f"{low:+.4f} to {high:+.4f}",
    }


def _compared(mine: Row, its: Row, artifacts: dict[str, ArtifactRecord]) -> dict[str, str]:
    """One artifact of a pruned student beside one of another student."""
    assert mine.metrics is not None and its.metrics is not None
    change = mine.metrics.top1 - its.metrics.top1
    limits = UNKNOWN
    if mine.artifact.evidence.exists() and its.artifact.evidence.exists():
        right, was = (Evidence.read(row.artifact.evidence).answers() for row in (mine, its))
        lost, won = int((was & ~right).sum()), int((right & ~was).sum())
        low, high = paired_limits(lost, won, len(right))
        limits = f"{low:+.4f} to {high:+.4f}"
    macs = _macs(its, artifacts)
    p50 = f"{mine.p50 / its.p50:.2f}" if mine.p50 and its.p50 else UNKNOWN
    return {
        "Artifact": mine.name,
        "Compared with": its.artifact.student,
        "Ratio of MACs": f"{_macs(mine, artifacts) / macs:.2f}" if macs else UNKNOWN,
        "Top-1": f"{mine.metrics.top1:.4f}",
        "Change": f"{change:+.4f}",
        "95% of the change": limits,
        "Ratio of p50": p50,
        "Ratio of kB": f"{mine.metrics.size_bytes / its.metrics.size_bytes:.2f}",
    }
