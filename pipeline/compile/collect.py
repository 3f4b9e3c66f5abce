"""The stage `collect`: the metrics and evidence of every artifact, as git keeps them."""

from __future__ import annotations

import shutil

from pipeline.backends.base.artifact import COMPILED_METRICS, EVIDENCE
from pipeline.backends.base.params import ArtifactParams
from pipeline.compile.records import EVIDENCE_FILE, METRICS_FILE
from pipeline.core.errors import PipelineError
from pipeline.core.files import whole_folder


def collect(params: ArtifactParams) -> int:
    """Copy the records of all artifacts from models/compiled to metrics/compiled and evidence.

    DVC's run cache restores compile stages only if all of their outputs are in DVC's cache, so it
    is another stage that writes what git keeps. Records of other artifacts disappear.

    Returns:
        The number of artifacts.

    Raises:
        PipelineError: for an artifact that is not compiled.
    """
    artifacts = params.backends.artifacts(params.students.enabled)
    for folder, name in ((COMPILED_METRICS, METRICS_FILE), (EVIDENCE, EVIDENCE_FILE)):
        with whole_folder(folder) as scratch:
            for artifact in artifacts:
                source, target = artifact.folder / name, artifact.within(scratch)
                if not source.is_file():
                    raise PipelineError("is missing", where=str(source), fix="run `dvc repro`")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    return len(artifacts)
