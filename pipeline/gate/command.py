"""`python -m pipeline gate`: read both sides, judge, say it; every error is a verdict, too."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.core.errors import PipelineError
from pipeline.core.params import load
from pipeline.gate.judge import judge
from pipeline.gate.latency import RERUN, Slowdown
from pipeline.gate.params import GateParams
from pipeline.gate.show import show
from pipeline.gate.snapshot import Snapshot, baseline_files, folder_files, save, take
from pipeline.gate.verdict import ALL, Commands, Finding, Note, Outcome, Verdict
from pipeline.report.device_rows import on_devices


@dataclass(frozen=True)
class Request:
    """What was typed. `baseline`: a git revision, a folder with metrics/, or a saved file."""

    baseline: str = "HEAD"
    only: str | None = None
    rerun: bool = False
    baseline_models: Path | None = None


def gate(request: Request, *, as_json: bool) -> int:
    """Judge the records in metrics/ and print the verdict; the exit code.

    0 passed, 1 a regression, 2 invalid (an error that the user can mend among it: 1 would call
    it a regression), 3 inconclusive, unless params.yaml lets that pass.
    """
    inconclusive: Literal["pass", "fail"] = "fail"
    try:
        params = load(GateParams)
        inconclusive = params.gate.inconclusive
        verdict = verdict_on(request, params)
    except PipelineError as error:
        verdict = Verdict(request.baseline, (_error("gate", error, request, request.baseline),))
    if as_json:
        print(json.dumps(verdict.as_json(inconclusive), indent=2, ensure_ascii=False))
    else:
        show(verdict, inconclusive)
    return verdict.exit_code(inconclusive)


def save_records(path: Path) -> None:
    """What is recorded here as one file, which `--baseline` takes where git is not at hand."""
    save(folder_files(Path()), path)


def verdict_on(request: Request, params: GateParams) -> Verdict:
    """Raises `PipelineError` where the baseline is none, or nothing is called `only`."""
    name, files = baseline_files(request.baseline)
    asked = [artifact.key for artifact in params.backends.artifacts(params.students.enabled)]
    baseline, candidate = take(name, files), take("metrics", folder_files(Path()), asked)
    models = request.baseline_models
    commands = Commands(name, str(models) if models else None)
    if request.only is not None:
        _require(request.only, [*candidate.rows, *baseline.rows])
    reruns: Mapping[str, Finding | Slowdown] = {}
    failure: tuple[Finding, ...] = ()
    if request.rerun:
        try:
            reruns = _rerun(request, baseline, candidate, params, commands)
        except PipelineError as error:
            failure = (_error(RERUN, error, request, name),)
    verdict = judge(baseline, candidate, params.gate, params.limits, commands, reruns)
    failed, told = _devices()
    verdict = replace(
        verdict, findings=(*failure, *verdict.findings, *failed), notes=(*verdict.notes, *told)
    )
    return verdict.about(request.only) if request.only else verdict


def _devices() -> tuple[list[Finding], list[Note]]:
    """What devices said of the bundles that are here: a failed verdict is a regression."""
    findings, notes = [], []
    for one in on_devices([]):
        key = one.about.bundle.artifact.key
        if one.failed and one.current:
            text = f"{one.device}: {one.verified}"
            command = "python verify.py --json FILE, in this bundle on that device"
            findings.append(Finding(key, "device", Outcome.REGRESSION, None, None, text, command))
        else:
            cells = one.cells()
            notes.append(
                Note(
                    key,
                    f"on {cells['Device']}: p50 {cells['p50 ms']} ms, {one.verified}, "
                    f"bundle {cells['Bundle']}",
                )
            )
    return findings, notes


def _rerun(
    request: Request,
    baseline: Snapshot,
    candidate: Snapshot,
    params: GateParams,
    commands: Commands,
) -> Mapping[str, Finding | Slowdown]:
    from pipeline.gate.rerun import baseline_models, rerun  # the benchmark and ONNX

    keys = [key for key in candidate.rows if key in baseline.rows]
    if request.only is not None:
        keys = [key for key in keys if key == request.only]
    with baseline_models(baseline.name, request.baseline_models) as models:
        return rerun(keys, models, params, commands)


def _require(key: str, known: list[str]) -> None:
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1) or [", ".join(dict.fromkeys(known))]
        raise PipelineError(
            f"neither side has an artifact `{key}`", where="--only", fix=f"name {close[0]}"
        )


def _error(measure: str, error: PipelineError, request: Request, baseline: str) -> Finding:
    commands = Commands(baseline, str(request.baseline_models) if request.baseline_models else None)
    key = request.only or ALL
    command = commands.rerun(key) if request.rerun else commands.judge(key)
    place = f"{error.where}: " if error.where else ""
    text = place + error.what + (f"; {error.fix}" if error.fix else "")
    return Finding(ALL, measure, Outcome.INVALID, None, None, text, command)
