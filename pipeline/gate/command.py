"""`python -m pipeline gate`: read both sides, compare them and print the verdict."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.core.arguments import require
from pipeline.core.errors import PipelineError
from pipeline.core.params import load
from pipeline.gate.judge import Reruns, judge
from pipeline.gate.latency import RERUN
from pipeline.gate.params import GateParams
from pipeline.gate.show import show
from pipeline.gate.snapshot import Snapshot, baseline_files, folder_files, save, take
from pipeline.gate.verdict import ALL, Commands, Finding, Note, Outcome, Verdict
from pipeline.report.device_rows import on_devices


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    baseline: str = "HEAD"
    """A git revision, a folder with metrics/, or a saved file."""
    only: str | None = None
    rerun: bool = False
    baseline_models: Path | None = None

    def commands(self, baseline: str) -> Commands:
        """Commands that repeat the findings against `baseline`."""
        return Commands(baseline, str(self.baseline_models) if self.baseline_models else None)


def gate(request: Request, *, as_json: bool) -> int:
    """Compare the records in metrics/ with a baseline and print the verdict.

    Returns:
        The exit code: 0 passed, 1 regression, 2 invalid, 3 inconclusive (0 if params.yaml lets
        that pass). A `PipelineError` is an invalid verdict, so that 1 always means a regression.
    """
    inconclusive: Literal["pass", "fail"] = "fail"
    try:
        params = load(GateParams)
        inconclusive = params.gate.inconclusive
        verdict = verdict_on(request, params)
    except PipelineError as error:
        commands = request.commands(request.baseline)
        verdict = Verdict(commands, (_error("gate", error, request, commands),))
    if as_json:
        print(json.dumps(verdict.as_json(inconclusive), indent=2, ensure_ascii=False))
    else:
        show(verdict, inconclusive)
    return verdict.exit_code(inconclusive)


def save_records(path: Path) -> None:
    """Write the records of metrics/ into one file, a baseline for machines without git."""
    save(folder_files(Path()), path)


def verdict_on(request: Request, params: GateParams) -> Verdict:
    """Compare both sides.

    Raises:
        PipelineError: for a baseline without records, and an unknown artifact in `request.only`.
    """
    name, files = baseline_files(request.baseline)
    asked = [artifact.key for artifact in params.backends.artifacts(params.students.enabled)]
    baseline, candidate = take(name, files), take("metrics", folder_files(Path()), asked)
    commands = request.commands(name)
    if request.only is not None:
        require(request.only, candidate.rows | baseline.rows, "artifact", "--only")
    reruns: Reruns = {}
    failure: tuple[Finding, ...] = ()
    if request.rerun:
        try:
            reruns = _rerun(request, baseline, candidate, params)
        except PipelineError as error:
            failure = (_error(RERUN, error, request, commands),)
    verdict = judge(baseline, candidate, params, commands, reruns)
    failed, notes = _devices()
    verdict = replace(
        verdict, findings=(*failure, *verdict.findings, *failed), notes=(*verdict.notes, *notes)
    )
    return verdict.about(request.only) if request.only else verdict


def _devices() -> tuple[list[Finding], list[Note]]:
    """Imported results of devices; a failed verification of a current bundle is a regression."""
    findings, notes = [], []
    for one in on_devices([]):
        key = one.about.bundle.artifact.key
        if one.failed and one.current:
            text = f"{one.device}: {one.verified}"
            command = "python verify.py --json FILE, in this bundle on that device"
            findings.append(Finding(key, "device", Outcome.REGRESSION, text, command=command))
        else:
            cells = one.cells()
            figures = f"p50 in ms: {cells['p50 ms']}; {one.verified}; bundle {cells['Bundle']}"
            notes.append(Note(key, f"on {cells['Device']}: {figures}"))
    return findings, notes


def _rerun(request: Request, baseline: Snapshot, candidate: Snapshot, params: GateParams) -> Reruns:
    from pipeline.gate.rerun import baseline_models, rerun  # the benchmark and ONNX

    recorded = baseline.rows
    keys = [key for key in candidate.rows if key in recorded and recorded[key].metrics]
    if request.only is not None:
        keys = [key for key in keys if key == request.only]
    if not keys:
        return {}
    with baseline_models(baseline.name, request.baseline_models) as models:
        return rerun(keys, models, params)


def _error(measure: str, error: PipelineError, request: Request, commands: Commands) -> Finding:
    key = request.only or ALL
    command = commands.rerun(key) if request.rerun else commands.judge(key)
    place = f"{error.where}: " if error.where else ""
    text = place + error.what + (f"; {error.fix}" if error.fix else "")
    return Finding(ALL, measure, Outcome.INVALID, text, command=command)
