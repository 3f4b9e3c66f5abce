"""What the report says of pruned students."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.backends.base.records import ArtifactRecord
from pipeline.cli.params import Params, load_params
from pipeline.compile.evidence import Evidence
from pipeline.compile.records import CompiledMetrics
from pipeline.core.errors import PipelineError
from pipeline.data.records import PACKED, Manifest
from pipeline.networks.records import PRUNED
from pipeline.prune.records import PRUNING, Measured, Pruning
from pipeline.report.pruned_section import beside_section, pruned_section, verdicts
from pipeline.report.results import Row, gather
from tests.conftest import STUDENT, fill_workspace

CUT, NARROW = "mnv4_pruned", "mnv4_narrow"
MEASURED = Measured(
    backend="tflite", precision="int8", kb=700, kb_before=1300, p50_ms=0.041, p50_ms_before=0.068,
    p50_share=0.6, p50_share_interval=(0.59, 0.61),
)  # fmt: skip


def pruning(measured: Measured | None = None) -> Pruning:
    return Pruning(
        target="macs" if measured is None else "p50", share=0.6, reached=0.598,
        macs=2_700_000, macs_before=4_600_000, weights=300_000, weights_before=950_000,
        measured=measured, steps=(), fixed=("classifier",),
        top1_before=0.91, top1=0.912, lost=100, won=120, images=10_000, versions={},
    )  # fmt: skip


def copy_artifacts(params: Params, name: str, macs: int, wrong: int) -> None:
    """Artifacts of another student: those of `STUDENT` with other MACs and wrong answers."""
    labels = np.load(PACKED / "test_labels.npy")
    logits = 5 * np.eye(3, dtype=np.float32)[labels]
    logits[:wrong] = -logits[:wrong]
    for artifact in params.backends.artifacts((STUDENT,)):
        other = replace(artifact, student=name)
        record = ArtifactRecord.read(artifact.folder / "artifact.json")
        execution = record.execution.model_copy(update={"macs": macs})
        record = record.model_copy(update={"student": name, "execution": execution})
        other.folder.mkdir(parents=True)
        (other.folder / "model.onnx").write_bytes((artifact.folder / "model.onnx").read_bytes())
        record.write(other.folder / "artifact.json")
        manifest = Manifest.read(PACKED / "manifest.json")
        Evidence.of(record, manifest, logits, labels).write(other.evidence)
        metrics = CompiledMetrics.read(artifact.metrics)
        changes = {"top1": 1 - wrong / len(labels), "digests": record.digests}
        metrics.model_copy(update=changes).write(other.metrics)


@pytest.fixture
def pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """The workspace with a pruned twin of its student, and a narrower student."""
    monkeypatch.chdir(tmp_path)
    fill_workspace()
    tree = yaml.safe_load(Path("params.yaml").read_text())
    zoo = tree["students"]["zoo"]
    zoo |= {CUT: zoo[STUDENT], NARROW: zoo[STUDENT] | {"arch": "mobilenetv4_conv_small_035"}}
    tree["students"]["enabled"] = [STUDENT, CUT, NARROW]
    tree["prune"]["enabled"] = [CUT]
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    pruning().write(PRUNED / CUT / PRUNING)
    params = load_params()
    for artifact in params.backends.artifacts((STUDENT,)):
        record = ArtifactRecord.read(artifact.folder / "artifact.json")
        execution = record.execution.model_copy(update={"macs": 1000})
        record.model_copy(update={"execution": execution}).write(artifact.folder / "artifact.json")
    return params


def rows(params: Params) -> tuple[list[Row], dict[str, ArtifactRecord]]:
    found = gather(params)
    return found, {row.name: ArtifactRecord.read_whole(row.artifact.folder) for row in found}


def test_nothing_is_told_where_nothing_is_pruned(workspace: Params) -> None:
    assert pruned_section(workspace).rows == ()
    found, artifacts = rows(workspace)
    assert beside_section(workspace, found, artifacts).rows == ()
    assert verdicts(workspace, found, artifacts) == []


@pytest.mark.parametrize("measured", [None, MEASURED])
def test_before_and_after(pruned: Params, measured: Measured | None) -> None:
    pruning(measured).write(PRUNED / CUT / PRUNING)
    section = pruned_section(pruned)
    (cells,) = (dict(zip(section.columns, row, strict=True)) for row in section.rows)
    assert cells["Change"] == "+0.0020" and cells["MACs"] == "2,700,000"
    assert cells["95% of the change"] == "-0.0009 to +0.0049"
    expected = ("60% of MACs", "–") if measured is None else ("60% of p50 on LiteRT int8", "0.041")  # noqa: RUF001
    assert (cells["Goal"], cells["p50 ms"]) == expected


def test_a_pruned_student_stands_beside_its_twin_and_no_larger_students(pruned: Params) -> None:
    copy_artifacts(pruned, CUT, 900, wrong=3)
    copy_artifacts(pruned, NARROW, 950, wrong=0)  # better, but larger
    found, artifacts = rows(pruned)
    section = beside_section(pruned, found, artifacts)
    assert {row[1] for row in section.rows} == {STUDENT}
    assert section.rows[0][4:6] == ("-0.1000", "-0.2119 to +0.0244")
    assert verdicts(pruned, found, artifacts) == []


@pytest.mark.parametrize(("wrong", "told"), [(2, True), (3, True), (4, False)])
def test_a_student_that_is_no_larger_and_as_good_is_named(
    pruned: Params, wrong: int, told: bool
) -> None:
    copy_artifacts(pruned, CUT, 900, wrong=3)
    copy_artifacts(pruned, NARROW, 900, wrong=wrong)
    found, artifacts = rows(pruned)
    said = verdicts(pruned, found, artifacts)
    assert len(said) == told
    if told:
        assert said[0].startswith(f"Pruning {CUT} did not pay: {NARROW} has 900 multiply")
    assert {row[1] for row in beside_section(pruned, found, artifacts).rows} == {STUDENT, NARROW}


def test_a_missing_record_is_an_error(pruned: Params) -> None:
    (PRUNED / CUT / PRUNING).unlink()
    with pytest.raises(PipelineError, match="there is no Pruning record"):
        pruned_section(pruned)
