"""Where artifacts look: does int8 agree less with its float student than in the baseline?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.accuracy.paired import holm
from pipeline.attribution.agreement import Floats, chance_of_fall
from pipeline.attribution.records import AttributionRecord, Explained, record_file
from pipeline.backends.base.artifact import Artifact
from pipeline.gate.params import Gate
from pipeline.gate.snapshot import Snapshot
from pipeline.gate.verdict import Finding, Note, Outcome, Repeat

MEASURE = "attribution"


@dataclass(frozen=True)
class Fall:
    """Correlation of an artifact's maps with the float student's, on the same images."""

    key: str
    baseline: Floats
    """Of each image, [N]."""
    candidate: Floats

    @property
    def loss(self) -> float:
        """Of the mean correlation."""
        return float((self.baseline - self.candidate).mean())


def compare_maps(
    key: str, baseline: Snapshot, candidate: Snapshot, enabled: bool
) -> list[Finding | Fall | Note]:
    """What both sides have recorded about where an artifact looks; nothing where neither has.

    A record of other files than those of its side is left over from another run and counts for
    nothing in the baseline. In the candidate it is invalid.

    Args:
        key: of the artifact, S/B/P.
        baseline: the records to compare with.
        candidate: the records to be judged.
        enabled: whether params.yaml asks for maps of this student now.
    """
    student = Artifact.parse(key).student
    path = str(record_file(student))
    if path in baseline.broken.keys() | (candidate.broken.keys() if enabled else set()):
        return []  # a finding of its own
    before = _own(key, baseline)
    if not enabled:
        text = "the baseline has maps of where it looks; attribution.enabled does not ask for them"
        return [Note(key, text)] if before else []
    repeat = f"dvc repro attribution@{student}"
    after = _own(key, candidate)
    if after is None:
        text = f"{path} is missing, or about other files than models/compiled"
        return [Finding(key, MEASURE, Outcome.INVALID, text, command=repeat)]
    if before is None or before.occlusion is None:
        return [Finding(key, MEASURE, Outcome.PASSED, "new", candidate=_mean(after))]
    if after.occlusion is None:
        text = f"there are no maps: {after.reason}"
        return [Finding(key, MEASURE, Outcome.INCONCLUSIVE, text, _mean(before))]
    records = baseline.attribution[student], candidate.attribution[student]
    if _basis(records[0]) != _basis(records[1]):
        text = "the maps are of other images or settings, so they cannot be compared"
        figures = _mean(before), _mean(after)
        return [Finding(key, MEASURE, Outcome.INCONCLUSIVE, text, *figures)]
    return [_paired(key, before, after)]


def _own(key: str, snapshot: Snapshot) -> Explained | None:
    """What a side has recorded about the artifact as it is there."""
    record = snapshot.attribution.get(Artifact.parse(key).student)
    found = record.artifact(key) if record else None
    evidence = snapshot.rows[key].evidence if key in snapshot.rows else None
    stale = found and evidence and found.digests != evidence.digests
    return None if stale else found


def _mean(its: Explained) -> float | None:
    return its.occlusion.pearson.mean if its.occlusion and its.occlusion.pearson else None


def _basis(record: AttributionRecord | None) -> tuple[object, ...]:
    return (record.settings, record.drawn, record.images) if record else ()


def _paired(key: str, before: Explained, after: Explained) -> Finding | Fall:
    """The images in which both correlations are defined."""
    pair = before.correlations(), after.correlations()
    if len(pair[0]) != len(pair[1]):
        text = "the records have correlations of different numbers of images"
        return Finding(key, MEASURE, Outcome.INVALID, text, command=Repeat.JUDGE)
    defined = ~(np.isnan(pair[0]) | np.isnan(pair[1]))
    if not defined.any():
        text = "in no image are the maps of both defined"
        return Finding(key, MEASURE, Outcome.INCONCLUSIVE, text)
    return Fall(key, pair[0][defined], pair[1][defined])


def decide(falls: Sequence[Fall], tests: int, gate: Gate) -> list[Finding]:
    """Test whether maps agree less by more than chance, and by more than the limit.

    Student's paired t-test for each artifact, with Holm's correction for all of them. They get a
    part of `gate.false_alarms` that is proportional to their part of all tests.

    Args:
        falls: one per artifact.
        tests: number of tests of this gate run.
        gate: the thresholds.
    """
    level = gate.false_alarms * len(falls) / tests if tests else 0.0
    adjusted = holm([chance_of_fall(fall.baseline, fall.candidate) for fall in falls])
    return [_judged(fall, p, level, gate) for fall, p in zip(falls, adjusted, strict=True)]


def _judged(fall: Fall, p: float, level: float, gate: Gate) -> Finding:
    means = float(fall.baseline.mean()), float(fall.candidate.mean())
    outcome = Outcome.PASSED
    if fall.loss > gate.max_attribution_loss:
        outcome = Outcome.REGRESSION if p <= level else Outcome.INCONCLUSIVE
    text = (
        f"mean correlation with the float student's maps fell by {fall.loss:+.4f} on "
        f"{len(fall.baseline):,} images, limit {gate.max_attribution_loss:g}; p {p:.2g} (Holm), "
        f"level {level:.2g}"
    )
    return Finding(fall.key, MEASURE, outcome, text, *means)
