"""`gate --rerun`: time the artifacts of the baseline and the candidate in the same rounds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.backends.base.artifact import COMPILED, Artifact
from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.registry import backend
from pipeline.core.errors import PipelineError
from pipeline.core.files import temporary_folder
from pipeline.gate.latency import RERUN, Slowdown, compare_side_by_side
from pipeline.gate.params import GateParams
from pipeline.gate.verdict import Finding, Outcome, Repeat
from pipeline.latency.benchmark import reference_target, write_test_images
from pipeline.latency.rounds import Measured, measure
from pipeline.latency.workers import Target

Answer = Finding | Slowdown


@contextmanager
def baseline_models(baseline: str, folder: Path | None) -> Iterator[Path]:
    """The baseline's models/compiled: `folder`, or beside its metrics, or fetched with DVC.

    Raises:
        PipelineError: where they are not available, with the command to get them.
    """
    beside = Path(baseline) / COMPILED
    if folder is not None or beside.is_dir():
        yield folder or beside
        return
    if Path(baseline).exists():
        raise PipelineError(
            f"the baseline's artifacts are not available: there is no {beside}",
            fix="name their folder with --baseline-models",
        )
    with temporary_folder() as scratch:
        fetched = scratch / "compiled"
        words = ["get", ".", str(COMPILED), "--rev", baseline, "--out", str(fetched)]
        done = subprocess.run([sys.executable, "-m", "dvc", *words], capture_output=True, text=True)
        if done.returncode or not fetched.is_dir():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise PipelineError(
                "the baseline's artifacts are not available: DVC says: "
                + (lines[0] if lines else f"exit code {done.returncode}"),
                fix=f"`dvc get . {COMPILED} --rev {baseline} --out FOLDER`, "
                "then --baseline-models FOLDER",
            )
        yield fetched


def rerun(keys: Sequence[str], models: Path, params: GateParams) -> dict[str, Answer]:
    """Time both versions of each artifact that this machine can run.

    Each pair is measured alone with the reference, so that its rounds lie close together.

    Args:
        keys: artifacts `S/B/P` of both sides.
        models: the baseline's models/compiled.
        params: the settings of the benchmark and the gate.

    Returns:
        By key, the slow-down to be tested, or a finding that says why it was not measured.
    """
    rounds = params.gate.rerun_rounds
    extra = params.benchmark.extra_rounds * rounds // params.benchmark.rounds
    settings = params.benchmark.model_copy(update={"rounds": rounds, "extra_rounds": extra})
    answers: dict[str, Answer] = {}
    with temporary_folder() as scratch:
        reference, images = reference_target(scratch), write_test_images(scratch)
        for key in keys:
            artifact = Artifact.parse(key)
            name = artifact.backend
            if backend(name).unmeasurable():
                continue
            targets = [reference]
            for side, root in (("baseline", models), ("candidate", COMPILED)):
                folder = root / artifact.folder.relative_to(COMPILED)
                try:
                    file = folder / ArtifactRecord.read_whole(folder).model_file
                except PipelineError as error:
                    answers[key] = _unmeasured(key, Outcome.INVALID, f"{side}: {error}")
                    break
                targets.append(Target(side, name, file, images))
            else:
                answers[key] = _answer(key, measure(targets, settings, params.seed))
    return answers


def _answer(key: str, measured: Measured) -> Answer:
    baseline, candidate = measured.rows["baseline"], measured.rows["candidate"]
    if baseline.latency_ms is None:
        text = f"the baseline's artifact fails here: {baseline.reason}"
        return _unmeasured(key, Outcome.INVALID, text)
    if candidate.latency_ms is None:
        text = f"the baseline's artifact runs here, this one fails: {candidate.reason}"
        return _unmeasured(key, Outcome.REGRESSION, text)
    disturbed = sum(one.kept and one.spoiled is not None for one in measured.conditions)
    return compare_side_by_side(key, baseline, candidate, disturbed)


def _unmeasured(key: str, outcome: Outcome, text: str) -> Finding:
    return Finding(key, RERUN, outcome, " ".join(text.split()), command=Repeat.RERUN)
