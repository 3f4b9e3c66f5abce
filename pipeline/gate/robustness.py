"""Robustness: accuracy of the same artifacts on the same corrupted images, and under PGD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.accuracy.paired import holm, sign_flips
from pipeline.backends.base.artifact import Artifact
from pipeline.gate.params import Gate
from pipeline.gate.snapshot import Snapshot
from pipeline.gate.verdict import Finding, Note, Outcome
from pipeline.robustness.records import (
    PGD,
    ArtifactRow,
    Measured,
    RobustnessRecord,
    record_file,
    unpacked,
)

CORRUPTED = "corrupted"
"""The measure of accuracy over all corruptions; that under PGD goes by the attack's name."""


@dataclass(frozen=True)
class Change:
    """How the answers of one artifact to changed images differ from the baseline's."""

    key: str
    measure: str
    differences: NDArray[np.int64]
    """[N]: right answers to each image, minus those of the baseline."""
    each: int
    """Answers to each image."""
    baseline: float
    """Its accuracy."""
    candidate: float

    @property
    def loss(self) -> float:
        """Loss of accuracy, a fraction; negative for a gain."""
        return -int(self.differences.sum()) / (len(self.differences) * self.each)


Parts = list[Finding | Note | Change]


def compare(key: str, baseline: Snapshot, candidate: Snapshot) -> Parts:
    """Both measures of one artifact, or why they cannot be compared.

    There is none where the baseline has no figures: robustness is off by default. What the
    candidate lacks was lost, as for latencies.
    """
    student = Artifact.parse(key).student
    file = record_file(student)
    before, after = (side.robustness.get(student) for side in (baseline, candidate))
    was, now = _row(key, before), _row(key, after)
    broken = str(file) in baseline.broken.keys() | candidate.broken.keys()
    if broken or before is None or was is None or was.measured is None:
        fresh = not broken and now is not None and now.measured is not None
        return [Note(key, "robustness not measured in the baseline")] if fresh else []
    command = f"dvc repro robustness@{student}"
    figures = _accuracies(was.measured)

    def both(outcome: Outcome, text: str) -> Parts:
        return [
            Finding(key, measure, outcome, text, accuracy, None, command)
            for measure, accuracy in figures.items()
        ]

    if after is None:
        return both(Outcome.REGRESSION, f"{file} is missing")
    if now is None or now.measured is None:
        reason = f": {now.reason}" if now and now.reason else ""
        return both(Outcome.REGRESSION, f"measured in the baseline, not measured now{reason}")
    evidence = candidate.rows[key].evidence
    if evidence is not None and evidence.digests != now.digests:
        return both(Outcome.INVALID, f"{file} is about other files than were compiled now")
    if problem := _unlike(before, after):
        return both(Outcome.INVALID, problem)
    return _changes(key, was.measured, now.measured, after)


def _row(key: str, record: RobustnessRecord | None) -> ArtifactRow | None:
    return record.artifacts.get(key) if record else None


def _accuracies(measured: Measured) -> dict[str, float]:
    return {CORRUPTED: measured.mean_corrupted.value, PGD: measured.attacked[PGD]}


def _unlike(before: RobustnessRecord, after: RobustnessRecord) -> str | None:
    """Why two records cannot be compared."""
    if (before.test_digest, before.images) != (after.test_digest, after.images):
        return "measured on other images than in the baseline"
    if before.protocol != after.protocol:
        old, new = before.protocol.model_dump(), after.protocol.model_dump()
        names = ", ".join(name for name in old if old[name] != new[name])
        return f"measured in another way than in the baseline: {names}"
    return None


def _changes(key: str, was: Measured, now: Measured, record: RobustnessRecord) -> Parts:
    settings = len(record.protocol.corruptions) * len(record.protocol.strengths)
    old, new = _accuracies(was), _accuracies(now)
    found: Parts = []
    for measure, each, before, after in (
        (CORRUPTED, settings, was.right, now.right),
        (PGD, 1, was.withstood, now.withstood),
    ):
        counts = [unpacked(text, record.images) for text in (before, after)]
        for side, its, accuracy in zip(
            ("baseline", "candidate"), counts, (old[measure], new[measure]), strict=True
        ):
            if not abs(its.mean() / each - accuracy) < 1e-9:  # also true for NaN
                text = f"the {side}'s accuracy and answers contradict each other"
                found.append(Finding(key, measure, Outcome.INVALID, text, old[measure]))
                break
        else:
            change = Change(key, measure, counts[1] - counts[0], each, old[measure], new[measure])
            found.append(change)
    return found


def decide(changes: Sequence[Change], tests: int, gate: Gate) -> list[Finding]:
    """Test whether accuracy was lost, by more than the limit and by more than chance.

    The exact sign-flip test for each, with Holm's correction for all of them; under PGD, where an
    image has one answer, it is McNemar's. An image is one unit, however many answers it has.

    Args:
        changes: of all artifacts.
        tests: number of tests of this gate run, all others included.
        gate: the thresholds.
    """
    level = gate.false_alarms * len(changes) / tests if tests else 0.0
    adjusted = holm([sign_flips(change.differences) for change in changes])
    return [_judged(*pair, level, gate) for pair in zip(changes, adjusted, strict=True)]


def _judged(change: Change, p: float, level: float, gate: Gate) -> Finding:
    limit = gate.max_corruption_loss if change.measure == CORRUPTED else gate.max_pgd_loss
    outcome = Outcome.PASSED
    if change.loss > 0 and change.loss >= limit:
        outcome = Outcome.REGRESSION if p <= level else Outcome.INCONCLUSIVE
    worse, better = ((sign * change.differences > 0).sum() for sign in (-1, 1))
    text = (
        f"{worse} of {len(change.differences):,} images answered worse, {better} better; loss "
        f"{change.loss:.4f}, limit {limit:g}; sign-flip test p {p:.2g} (Holm), level {level:.2g}"
    )
    return Finding(change.key, change.measure, outcome, text, change.baseline, change.candidate)
