"""The verdict for people: the outcome, then what did not pass, with a command to repeat it."""

from __future__ import annotations

from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.gate.verdict import ALL, Finding, Note, Outcome, Verdict
from pipeline.report.results import UNKNOWN

_STYLES = {
    Outcome.REGRESSION: "red",
    Outcome.INVALID: "red",
    Outcome.INCONCLUSIVE: "yellow",
    Outcome.PASSED: "green",
}
_FORMATS = {
    "top-1": "{:.4f}",
    "recall": "{:.4f}",
    "limits": "{:.4f}",
    "corrupted": "{:.4f}",
    "pgd": "{:.4f}",
    "size": "{:,.0f}",
    "int8 share": "{:.1%}",
    "attribution": "{:.4f}",
    "latency": "{:.3f}",
    "latency, rerun": "{:.3f}",
}


def show(verdict: Verdict, inconclusive: Literal["pass", "fail"]) -> None:
    """Print the verdict."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 120  # logs wrap long lines themselves
    console.print(Text(headline(verdict, inconclusive), style=f"bold {_STYLES[verdict.outcome]}"))
    gravest = sorted(
        (finding for finding in verdict.findings if finding.outcome is not Outcome.PASSED),
        key=lambda finding: list(Outcome).index(finding.outcome),
    )
    if gravest:
        console.print(_table(gravest))
    for number, finding in enumerate(gravest, 1):
        command = verdict.commands.of(finding)
        console.print(f"[{number}] {finding.detail}\n    {command}", soft_wrap=True)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in verdict.counts.items())
    console.print(f"{len(verdict.findings)} comparisons: {counts}", soft_wrap=True)
    for line in _grouped(verdict.notes):
        console.print(line, soft_wrap=True, style="dim")


def headline(verdict: Verdict, inconclusive: Literal["pass", "fail"]) -> str:
    """One line: the outcome, the number of findings with it, and the baseline."""
    outcome, total = verdict.outcome, len(verdict.findings)
    count = "" if outcome is Outcome.PASSED else f"{verdict.counts[outcome]} of "
    allowed = outcome is Outcome.INCONCLUSIVE and inconclusive == "pass"
    suffix = " (which params.yaml lets pass)" if allowed else ""
    return f"{outcome.upper()}: {count}{total} comparisons with {verdict.commands.baseline}{suffix}"


def _table(findings: list[Finding]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("", "Outcome", "Artifact", "Measure"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("Baseline", "Candidate"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for number, finding in enumerate(findings, 1):
        figures = [_figure(finding.measure, v) for v in (finding.baseline, finding.candidate)]
        key = "all" if finding.key == ALL else finding.key
        cells = (f"[{number}]", finding.outcome, key, finding.measure, *figures)
        shown.add_row(*map(Text, cells), style=_STYLES[finding.outcome])
    return shown


def _figure(measure: str, value: float | None) -> str:
    return UNKNOWN if value is None else _FORMATS.get(measure, "{:g}").format(value)


def _grouped(notes: tuple[Note, ...]) -> list[str]:
    """Each distinct note in one line with its artifacts."""
    keys: dict[str, list[str]] = {}
    for note in notes:
        keys.setdefault(note.text, []).append(note.key)
    return [
        text if named == [ALL] else f"{text}: {', '.join(named)}" for text, named in keys.items()
    ]
