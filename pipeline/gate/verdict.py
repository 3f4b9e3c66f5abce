"""What the gate says: a finding per artifact and measure, and the verdict over all of them."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from pipeline.backends.base.artifact import Artifact


class Outcome(StrEnum):
    REGRESSION = "regression"
    INVALID = "invalid"
    INCONCLUSIVE = "inconclusive"
    PASSED = "passed"


EXIT_CODES = {
    Outcome.PASSED: 0,
    Outcome.REGRESSION: 1,
    Outcome.INVALID: 2,
    Outcome.INCONCLUSIVE: 3,
}


ALL = "*"
"""The key of what is about every artifact."""


@dataclass(frozen=True)
class Finding:
    """One comparison: of the artifact `key`, `S/B/P` or all, in one `measure`."""

    key: str
    measure: str
    outcome: Outcome
    baseline: float | None
    candidate: float | None
    detail: str
    command: str


@dataclass(frozen=True)
class Note:
    """Something to know of an artifact that is no finding."""

    key: str
    text: str


@dataclass(frozen=True)
class Verdict:
    baseline: str
    findings: tuple[Finding, ...]
    notes: tuple[Note, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The gravest of the findings' outcomes, in the order of `Outcome`.

        A regression that was found is one, whatever else could not be judged.
        """
        found = {finding.outcome for finding in self.findings}
        return next((outcome for outcome in Outcome if outcome in found), Outcome.INVALID)

    @property
    def counts(self) -> dict[Outcome, int]:
        counter = Counter(finding.outcome for finding in self.findings)
        return {outcome: counter[outcome] for outcome in Outcome}

    def exit_code(self, inconclusive: Literal["pass", "fail"]) -> int:
        if self.outcome is Outcome.INCONCLUSIVE and inconclusive == "pass":
            return 0
        return EXIT_CODES[self.outcome]

    def about(self, key: str) -> Verdict:
        """The part that is about one artifact, judged among all of them."""
        return Verdict(
            self.baseline,
            tuple(finding for finding in self.findings if finding.key in (key, ALL)),
            tuple(note for note in self.notes if note.key in (key, ALL)),
        )

    def as_json(self, inconclusive: Literal["pass", "fail"]) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "exit_code": self.exit_code(inconclusive),
            "baseline": self.baseline,
            "counts": self.counts,
            "findings": [asdict(finding) for finding in self.findings],
            "notes": [asdict(note) for note in self.notes],
        }


@dataclass(frozen=True)
class Commands:
    """What shows a finding once more, for the baseline as commands name it."""

    baseline: str
    models: str | None = None

    def judge(self, key: str) -> str:
        words = ["python", "-m", "pipeline", "gate", "--baseline", self.baseline]
        return shlex.join([*words, *([] if key == ALL else ["--only", key])])

    def rerun(self, key: str) -> str:
        models = ["--baseline-models", self.models] if self.models else []
        return shlex.join([*shlex.split(self.judge(key)), "--rerun", *models])

    def compile(self, key: str) -> str:
        artifact = Artifact.parse(key)
        return f"dvc repro compile@{artifact.backend}-{artifact.student}"
