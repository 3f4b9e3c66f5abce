"""What git keeps of an artifact: whole, compact, and no columns of `dvc metrics show`."""

from __future__ import annotations

import pytest

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import FloatLayer
from pipeline.cli.params import Params
from pipeline.compile.evidence import Evidence
from pipeline.compile.records import Attempt, CompiledMetrics, LayerNoise
from pipeline.core.errors import PipelineError
from pipeline.core.records import DetailRecord
from tests.compile.conftest import shown_by_dvc
from tests.conftest import STUDENT

ATTEMPT = Attempt(
    rung="ranges", recipe="percentile", val_top1=0.1 + 0.2, val_drop=1e-9, seconds=2.5,
    size_bytes=9, failure=None,
)  # fmt: skip


@pytest.fixture
def artifact(workspace: Params) -> Artifact:
    """Records with something in every field."""
    (found, *_) = workspace.backends.artifacts((STUDENT,))
    noise = (LayerNoise(name="stem", snr_db=12.5), LayerNoise(name="head", snr_db=None))
    update = {"ladder": (ATTEMPT, ATTEMPT), "layers": noise}
    CompiledMetrics.read(found.metrics).model_copy(update=update).write(found.metrics)
    evidence = Evidence.read(found.evidence)
    layers = (FloatLayer(name="Größe", macs=3),)
    execution = evidence.execution.model_copy(update={"macs": 7, "in_float": layers})
    evidence.model_copy(update={"execution": execution}).write(found.evidence)
    return found


def test_metrics_are_one_line_per_field_and_per_attempt(artifact: Artifact) -> None:
    metrics = CompiledMetrics.read(artifact.metrics)
    assert metrics.ladder[0] == ATTEMPT and metrics.layers[1].snr_db is None
    assert metrics.to_json() == artifact.metrics.read_text()
    lines = artifact.metrics.read_text().splitlines()
    assert len(lines) == 2 + len(CompiledMetrics.model_fields) + len(metrics.ladder) + 1 + 1
    assert '"top1": 1.0,' in lines and sum("percentile" in line for line in lines) == 2


def test_evidence_is_one_line_per_field(artifact: Artifact) -> None:
    evidence = Evidence.read(artifact.evidence)
    assert evidence.execution.in_float[0].name == "Größe" and evidence.answers().all()
    assert evidence.to_json() == artifact.evidence.read_text()
    lines = artifact.evidence.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("[{", "}]")
    assert len(lines) == 2 + len(Evidence.model_fields) + 1  # its digest


def test_dvc_shows_no_number_of_them(artifact: Artifact) -> None:
    assert shown_by_dvc(artifact.metrics) == shown_by_dvc(artifact.evidence) == {}


@pytest.mark.parametrize("content", ["{}", "[]", "[{}, {}]", "3", "[{"])
@pytest.mark.parametrize("kind", [CompiledMetrics, Evidence])
def test_anything_else_is_refused_with_its_path(kind: type[DetailRecord], content: str) -> None:
    with pytest.raises(PipelineError, match=f"a/b.json: not a {kind.__name__} record"):
        kind.parse(content.encode(), "a/b.json")
