"""Accuracy: the answers to the same test images, and floors that no baseline lowers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.accuracy.paired import holm, mcnemar, mcnemar_power
from pipeline.compile.evidence import EVIDENCE, Evidence
from pipeline.compile.records import CompiledMetrics
from pipeline.gate.params import Gate
from pipeline.gate.snapshot import Recorded, metrics_path
from pipeline.gate.verdict import Commands, Finding, Outcome
from pipeline.report.params import Limits
from pipeline.report.results import excess

MEASURE = "top-1"


@dataclass(frozen=True)
class Flips:
    """How one artifact's answers to `images` test images changed: top-1 before and after."""

    key: str
    images: int
    lost: int
    won: int
    baseline: float
    candidate: float

    @property
    def loss(self) -> float:
        """Of top-1; negative for a gain."""
        return (self.lost - self.won) / self.images


def floors(key: str, metrics: CompiledMetrics, limits: Limits, commands: Commands) -> Finding:
    """The limits of params.yaml, whatever the baseline was."""
    shares = (metrics.top1, metrics.agreement)
    command = commands.judge(key)
    if not (all(0 <= share <= 1 for share in shares) and math.isfinite(metrics.top1_drop)):
        path = metrics_path(key)
        text = f"{path}: top-1, its drop or the agreement is no share"
        return Finding(key, "limits", Outcome.INVALID, None, None, text, commands.compile(key))
    broken = excess(metrics, limits)
    outcome = Outcome.REGRESSION if broken else Outcome.PASSED
    text = "; ".join(broken) or "within the limits of params.yaml"
    return Finding(key, "limits", outcome, None, metrics.top1, text, command)


def compare_answers(
    key: str, baseline: Recorded, candidate: Recorded, commands: Commands
) -> Finding | Flips:
    """Which answers flipped, or why that cannot be said."""
    assert baseline.metrics and candidate.metrics
    tops = baseline.metrics.top1, candidate.metrics.top1

    def finding(outcome: Outcome, text: str, command: str | None = None) -> Finding:
        return Finding(key, MEASURE, outcome, *tops, text, command or commands.judge(key))

    before, after = baseline.evidence, candidate.evidence
    if after is None and before is not None:
        text = f"{metrics_path(key, EVIDENCE)} is missing"
        return finding(Outcome.REGRESSION, text, commands.compile(key))
    if before is None or after is None:
        if baseline.metrics == candidate.metrics:
            return finding(Outcome.PASSED, "the same record")
        text = "the baseline was recorded without its answers: no test can pair the images"
        return finding(Outcome.INCONCLUSIVE, text)
    for side, evidence, top1 in (("baseline", before, tops[0]), ("candidate", after, tops[1])):
        if not abs(evidence.answers().mean() - top1) < 1e-9:  # nor where it is no number
            text = f"the {side}'s top-1 is not that of its answers: records of two runs"
            return finding(Outcome.INVALID, text, commands.compile(key))
    if (before.test_digest, before.images) != (after.test_digest, after.images):
        text = "the test splits differ: accuracies of different images are not compared"
        return finding(Outcome.INVALID, text)
    return _flips(key, before, after, tops)


def _flips(key: str, before: Evidence, after: Evidence, tops: tuple[float, float]) -> Flips:
    was_right, is_right = before.answers(), after.answers()
    lost = int(np.count_nonzero(was_right & ~is_right))
    won = int(np.count_nonzero(is_right & ~was_right))
    return Flips(key, before.images, lost, won, *tops)


def decide(
    flips: Sequence[Flips], tests: int, gate: Gate, commands: Commands
) -> tuple[list[Finding], float | None]:
    """A finding for each, and the least power that any of them had (None without any).

    The accuracies' share of `gate.false_alarms` is as large as their share of all `tests`;
    within it Holm's correction holds. The power is that at Holm's strictest step.
    """
    level = gate.false_alarms * len(flips) / tests if tests else 0.0
    adjusted = holm([mcnemar(flip.lost, flip.won) for flip in flips])
    findings, powers = [], []
    for flip, p in zip(flips, adjusted, strict=True):
        power = mcnemar_power(
            flip.images, flip.lost + flip.won, gate.max_top1_loss, gate.false_alarms / tests
        )
        powers.append(power)
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
        figures = (flip.baseline, flip.candidate)
        findings.append(
            Finding(flip.key, MEASURE, outcome, *figures, text, commands.judge(flip.key))
        )
    return findings, min(powers, default=None)
