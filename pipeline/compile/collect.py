"""The stage `collect`: the metrics and evidence of every artifact, as git keeps them."""

from __future__ import annotations

import shutil

from pipeline.backends.base.artifact import COMPILED_METRICS, EVIDENCE
from pipeline.backends.base.params import ArtifactParams
from pipeline.compile.evidence import Evidence
from pipeline.compile.records import EVIDENCE_FILE, METRICS_FILE, CompiledMetrics, check_owner
from pipeline.core.files import whole_folder


def collect(params: ArtifactParams) -> int:
    """Copy the records of all artifacts from models/compiled to metrics/compiled and evidence.

    DVC's run cache restores compile stages only if all of their outputs are in DVC's cache, so it
    is another stage that writes what git keeps. Records of other artifacts disappear.

    Returns:
        The number of artifacts.

    Raises:
        PipelineError: for an artifact that is not compiled, and for a record that is damaged or of
            another artifact.
    """
    artifacts = params.backends.artifacts(params.students.enabled)
    for artifact in artifacts:  # all of them, before anything is replaced
        for name, kind in ((METRICS_FILE, CompiledMetrics), (EVIDENCE_FILE, Evidence)):
            file = artifact.folder / name
            check_owner(artifact, file, kind.read(file).digests)
    for folder, name in ((COMPILED_METRICS, METRICS_FILE), (EVIDENCE, EVIDENCE_FILE)):
        with whole_folder(folder) as scratch:
            for artifact in artifacts:
                source, target = artifact.folder / name, artifact.within(scratch)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    return len(artifacts)
