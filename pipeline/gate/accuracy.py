"""Accuracy: answers to the same test images, and limits that hold whatever the baseline is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.accuracy.paired import Counts, holm, mcnemar, mcnemar_power, most_lost
from pipeline.backends.base.artifact import EVIDENCE
from pipeline.compile.records import CompiledMetrics
from pipeline.gate.params import Gate
from pipeline.gate.snapshot import Recorded, metrics_path
from pipeline.gate.verdict import Finding, Outcome, Repeat
from pipeline.report.params import Limits
from pipeline.report.results import excess

MEASURE, RECALL = "top-1", "recall"

TESTS = 2
"""Of each artifact's answers: one for each measure."""


@dataclass(frozen=True)
class Flips:
    """How the answers of one artifact to the test images changed."""

    key: str
    images: int
    lost: int
    """Images that only the baseline classifies correctly."""
    won: int
    """Images that only the candidate classifies correctly."""
    baseline: float
    """Its top-1."""
    candidate: float
    classes: tuple[str, ...]
    by_class: Counts
    """Of each class: its images, those lost, those won and those right before, [4, C]."""

    @property
    def loss(self) -> float:
        """Loss of top-1, a fraction; negative for a gain."""
        return (self.lost - self.won) / self.images


def floors(key: str, metrics: CompiledMetrics, limits: Limits) -> Finding:
    """Check the limits of params.yaml, whatever the baseline is."""
    shares = (metrics.top1, metrics.agreement)
    if not (all(0 <= share <= 1 for share in shares) and math.isfinite(metrics.top1_drop)):
        text = f"{metrics_path(key)}: top-1, its drop or the agreement is not a fraction"
        return Finding(key, "limits", Outcome.INVALID, text, command=Repeat.COMPILE)
    broken = excess(metrics, limits)
    outcome = Outcome.REGRESSION if broken else Outcome.PASSED
    text = "; ".join(broken) or "within the limits of params.yaml"
    return Finding(key, "limits", outcome, text, candidate=metrics.top1)


def compare_answers(key: str, baseline: Recorded, candidate: Recorded) -> Finding | Flips:
    """Which answers changed, or why that is unknown."""
    assert baseline.metrics and candidate.metrics
    tops = baseline.metrics.top1, candidate.metrics.top1

    def finding(outcome: Outcome, text: str, command: str = Repeat.JUDGE) -> Finding:
        return Finding(key, MEASURE, outcome, text, *tops, command)

    before, after = baseline.evidence, candidate.evidence
    if after is None and before is not None:
        text = f"{metrics_path(key, EVIDENCE)} is missing"
        return finding(Outcome.REGRESSION, text, Repeat.COMPILE)
    if before is None or after is None:
        if baseline.metrics == candidate.metrics:
            return finding(Outcome.PASSED, "the records are equal")
        text = "the baseline has no answers per image, so no paired test is possible"
        return finding(Outcome.INCONCLUSIVE, text)
    for side, evidence, top1 in (("baseline", before, tops[0]), ("candidate", after, tops[1])):
        if not abs(evidence.answers().mean() - top1) < 1e-9:  # also true for NaN
            text = f"the {side}'s top-1 and answers contradict each other: records of two runs"
            return finding(Outcome.INVALID, text, Repeat.COMPILE)
    if (before.test_digest, before.images) != (after.test_digest, after.images):
        text = "the test splits differ, so the accuracies cannot be compared"
        return finding(Outcome.INVALID, text)
    was_right, is_right = before.answers(), after.answers()
    lost, won = before.count(was_right & ~is_right), before.count(is_right & ~was_right)
    by_class = np.array([[*before.by_class.values()], lost, won, before.count(was_right)])
    classes = tuple(before.by_class)
    return Flips(key, before.images, int(lost.sum()), int(won.sum()), *tops, classes, by_class)


def decide(flips: Sequence[Flips], tests: int, gate: Gate) -> tuple[list[Finding], float | None]:
    """Test whether answers were lost by more than chance, in all and of any class.

    McNemar's exact test for each artifact, and `most_lost` for its classes, with Holm's correction
    for all of them. They get a part of `gate.false_alarms` that is proportional to their part of
    all tests.

    Args:
        flips: one per artifact.
        tests: number of tests of this gate run, those of latencies included.
        gate: the thresholds.

    Returns:
        Two findings for each artifact, and the smallest power of the tests of top-1, at Holm's
        strictest step; None without any test.
    """
    level = gate.false_alarms * TESTS * len(flips) / tests if tests else 0.0
    worst = [most_lost(*_changes(flip), gate.max_recall_loss) for flip in flips]
    adjusted = holm([*(mcnemar(flip.lost, flip.won) for flip in flips), *(p for _, p in worst)])
    findings, powers = [], []
    for i, flip in enumerate(flips):
        power = mcnemar_power(
            flip.images, flip.lost + flip.won, gate.max_top1_loss, gate.false_alarms / tests
        )
        powers.append(power)
        findings.append(_top1(flip, adjusted[i], level, power, gate))
        findings.append(_recall(flip, worst[i][0], adjusted[len(flips) + i], level, gate))
    return findings, min(powers, default=None)


def _changes(flip: Flips) -> tuple[Counts, Counts, Counts]:
    """Images lost, images won, and all images, by class."""
    images, lost, won, _ = flip.by_class
    return lost, won, images


def _top1(flip: Flips, p: float, level: float, power: float, gate: Gate) -> Finding:
    if p <= level and flip.loss > 0:
        outcome = Outcome.REGRESSION
    elif flip.loss > 0 and flip.loss >= gate.max_top1_loss:
        outcome = Outcome.INCONCLUSIVE
    else:
        outcome = Outcome.PASSED
    text = (
        f"{flip.lost} answers lost, {flip.won} won of {flip.images:,}; McNemar p {p:.2g} "
        f"(Holm), level {level:.2g}; a loss of {gate.max_top1_loss:g} is found with "
        f"probability {power:.2f}"
    )
    return Finding(flip.key, MEASURE, outcome, text, flip.baseline, flip.candidate)


def _recall(flip: Flips, worst: int | None, p: float, level: float, gate: Gate) -> Finding:
    """The class whose recall fell most significantly; what chance explains passes."""
    if worst is None:
        text = f"no class lost {gate.max_recall_loss:g} of its recall"
        return Finding(flip.key, RECALL, Outcome.PASSED, text)
    images, lost, won, right = flip.by_class[:, worst].tolist()
    outcome = Outcome.REGRESSION if p <= level else Outcome.PASSED
    text = (
        f"class `{flip.classes[worst]}`: {lost} answers lost, {won} won of {images:,}; p {p:.2g} "
        f"for {len(flip.classes):,} classes (Bonferroni, Holm), level {level:.2g}"
    )
    recalls = right / images, (right - lost + won) / images
    return Finding(flip.key, RECALL, outcome, text, *recalls)


def undecided(flips: Sequence[Flips], tests: int, gate: Gate) -> str | None:
    """Which classes have too few test images for a loss of their recall to be significant."""
    least = math.ceil(math.log2(tests / gate.false_alarms)) if flips else 0
    small = [n for n in flips[0].by_class[0] if n < least] if flips else []
    if not small:
        return None
    return (
        f"{len(small)} of {len(flips[0].classes)} classes have fewer than {least} test images: "
        "not even the loss of all of them would be significant"
    )
