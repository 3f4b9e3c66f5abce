"""The stage `collect`: git keeps the records of every artifact that is asked for, and no others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.backends.base.artifact import COMPILED_METRICS, EVIDENCE
from pipeline.cli.params import Params
from pipeline.compile.collect import collect
from pipeline.compile.records import CompiledMetrics
from pipeline.core.errors import PipelineError


def compiled(params: Params) -> None:
    """Put the records of the workspace where `compile` writes them."""
    for artifact in params.backends.artifacts(params.students.enabled):
        shutil.copy(artifact.metrics, artifact.folder / "metrics.json")
        shutil.copy(artifact.evidence, artifact.folder / "evidence.json")


def kept() -> dict[Path, bytes]:
    files = [*COMPILED_METRICS.rglob("*.json"), *EVIDENCE.rglob("*.json")]
    return {file: file.read_bytes() for file in files}


def test_records_are_copied_and_those_of_other_artifacts_disappear(workspace: Params) -> None:
    compiled(workspace)
    before = kept()
    (COMPILED_METRICS / "onnxruntime/gone").mkdir()
    (COMPILED_METRICS / "onnxruntime/gone/int8.json").write_text("{}")
    assert collect(workspace) == 2
    assert kept() == before


def test_an_artifact_without_records_is_named_and_nothing_is_lost(workspace: Params) -> None:
    compiled(workspace)
    before = kept()
    missing = workspace.backends.artifacts(workspace.students.enabled)[1].folder / "metrics.json"
    missing.unlink()
    with pytest.raises(PipelineError, match=f"{missing}: there is no CompiledMetrics record"):
        collect(workspace)
    assert kept() == before


def test_a_record_of_another_artifact_is_named_and_nothing_is_lost(workspace: Params) -> None:
    compiled(workspace)
    before = kept()
    foreign = workspace.backends.artifacts(workspace.students.enabled)[1].folder / "metrics.json"
    metrics = CompiledMetrics.read(foreign)
    metrics.model_copy(update={"digests": {"model.onnx": "0" * 64}}).write(foreign)
    with pytest.raises(PipelineError, match="about other files") as error:
        collect(workspace)
    assert error.value.where == str(foreign) and kept() == before
