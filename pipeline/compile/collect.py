"""The stage `collect`: the metrics and evidence of every artifact, as git keeps them."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.backends.base.artifact import COMPILED_METRICS, EVIDENCE
from pipeline.backends.base.params import ArtifactParams
from pipeline.compile.evidence import Evidence
from pipeline.compile.records import EVIDENCE_FILE, METRICS_FILE, CompiledMetrics
from pipeline.core.files import whole_folder
from pipeline.core.records import Record

_COLLECTED: tuple[tuple[Path, str, type[Record]], ...] = (
    (COMPILED_METRICS, METRICS_FILE, CompiledMetrics),
    (EVIDENCE, EVIDENCE_FILE, Evidence),
)


def collect(params: ArtifactParams) -> int:
    """Copy the records of all artifacts from models/compiled to metrics/compiled and evidence.

    DVC's run cache restores compile stages only if all of their outputs are in DVC's cache, so it
    is another stage that writes what git keeps. Records of other artifacts disappear.

    Returns:
        The number of artifacts.

    Raises:
        PipelineError: for an artifact that is not compiled, and a damaged record.
    """
    artifacts = params.backends.artifacts(params.students.enabled)
    for folder, name, kind in _COLLECTED:
        with whole_folder(folder) as scratch:
            for artifact in artifacts:
                source, target = artifact.folder / name, artifact.within(scratch)
                kind.read(source)  # it is what it says it is, before git keeps it
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    return len(artifacts)
