"""The gate's result: a finding per artifact and measure, and the verdict over all of them."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from pipeline.backends.base.artifact import Artifact


class Outcome(StrEnum):
    """The gravest first."""

    REGRESSION = "regression"
    INVALID = "invalid"
    INCONCLUSIVE = "inconclusive"
    PASSED = "passed"


EXIT_CODES = {Outcome.PASSED: 0, Outcome.REGRESSION: 1, Outcome.INVALID: 2, Outcome.INCONCLUSIVE: 3}

_FIELDS = ("key", "measure", "outcome", "baseline", "candidate", "detail")
"""Of a finding in JSON, in this order."""


class Repeat(StrEnum):
    """How to repeat a finding: the commands of `Commands`."""

    JUDGE = "judge"
    RERUN = "rerun"
    COMPILE = "compile"


ALL = "*"
"""The key of a finding or note about all artifacts."""


@dataclass(frozen=True)
class Finding:
    """One comparison of an artifact."""

    key: str
    """`S/B/P`, or `ALL`."""
    measure: str
    outcome: Outcome
    detail: str
    baseline: float | None = None
    candidate: float | None = None
    command: str = Repeat.JUDGE
    """Repeats the comparison or computes what is missing: a `Repeat` or a command line."""


@dataclass(frozen=True)
class Note:
    """A remark about an artifact that does not affect the verdict."""

    key: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """All findings of a gate run."""

    commands: Commands
    findings: tuple[Finding, ...]
    notes: tuple[Note, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The gravest outcome of the findings; `INVALID` if there are none."""
        found = {finding.outcome for finding in self.findings}
        return next((outcome for outcome in Outcome if outcome in found), Outcome.INVALID)

    @property
    def counts(self) -> dict[Outcome, int]:
        """How many findings have each outcome."""
        counter = Counter(finding.outcome for finding in self.findings)
        return {outcome: counter[outcome] for outcome in Outcome}

    def exit_code(self, inconclusive: Literal["pass", "fail"]) -> int:
        """The exit code of the command; `inconclusive` is the setting of params.yaml."""
        if self.outcome is Outcome.INCONCLUSIVE and inconclusive == "pass":
            return 0
        return EXIT_CODES[self.outcome]

    def about(self, key: str) -> Verdict:
        """The part about one artifact, judged together with all others."""
        return Verdict(
            self.commands,
            tuple(finding for finding in self.findings if finding.key in (key, ALL)),
            tuple(note for note in self.notes if note.key in (key, ALL)),
        )

    def as_json(self, inconclusive: Literal["pass", "fail"]) -> dict[str, Any]:
        """Everything, for `json.dumps`."""
        return {
            "outcome": self.outcome,
            "exit_code": self.exit_code(inconclusive),
            "baseline": self.commands.baseline,
            "counts": self.counts,
            "findings": [
                {name: getattr(finding, name) for name in _FIELDS}
                | {"command": self.commands.of(finding)}
                for finding in self.findings
            ],
            "notes": [asdict(note) for note in self.notes],
        }


@dataclass(frozen=True)
class Commands:
    """Commands that repeat a finding, with `baseline` as the user named it."""

    baseline: str
    models: str | None = None

    def of(self, finding: Finding) -> str:
        """The command line that belongs to a finding."""
        repeat = finding.command
        line: str = getattr(self, repeat)(finding.key) if isinstance(repeat, Repeat) else repeat
        return line

    def judge(self, key: str) -> str:
        """Compare the records of one artifact again."""
        words = ["python", "-m", "pipeline", "gate", "--baseline", self.baseline]
        return shlex.join([*words, *([] if key == ALL else ["--only", key])])

    def rerun(self, key: str) -> str:
        """Time one artifact side by side with the baseline's."""
        models = ["--baseline-models", self.models] if self.models else []
        return shlex.join([*shlex.split(self.judge(key)), "--rerun", *models])

    def compile(self, key: str) -> str:
        """Compile one artifact again."""
        artifact = Artifact.parse(key)
        return shlex.join(["dvc", "repro", f"compile@{artifact.backend}-{artifact.student}"])
