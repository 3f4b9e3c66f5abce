"""What the compile stage records about an artifact."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ARTIFACT_FILE, ArtifactRecord
from pipeline.core.errors import PipelineError
from pipeline.core.records import DetailRecord, Record
from pipeline.data.recall import Recall


class Attempt(Record):
    """An int8 artifact that a rung of the ladder made, or why it could not."""

    rung: str
    recipe: str
    val_top1: float | None = Field(description="through the runtime itself; null if it failed")
    val_drop: float | None = Field(description="val top-1 of the float student, minus `val_top1`")
    val_chance: float | None = Field(
        None,
        description="p-value of a loss beyond quantize.max_drop (McNemar's exact test); else null",
    )
    seconds: float = Field(description="to make and to evaluate it")
    size_bytes: int | None
    failure: str | None = None
    kept: bool = False


class LayerNoise(Record):
    """How far the output of a conv or linear layer in int8 is from the float student's."""

    name: str = Field(description="of the module in the student")
    snr_db: float | None = Field(description="signal to noise in dB; null where both are equal")


METRICS_FILE, EVIDENCE_FILE = "metrics.json", "evidence.json"
"""In an artifact's folder; the stage `collect` copies them to where git keeps them."""


class CompiledMetrics(DetailRecord):
    """metrics/compiled/B/S/P.json: the whole test split through `evaluated_with`."""

    line_per_entry = ("ladder",)

    top1: float
    balanced_accuracy: float = Field(description="mean recall over the classes")
    recall: Recall
    top1_drop: float = Field(description="top-1 of the float student in torch, minus `top1`")
    agreement: float = Field(description="share of images with the argmax of the float student")
    lost: int = Field(description="images that only the float student gets right")
    won: int = Field(description="images that only the artifact gets right")
    max_logit_error: float
    mean_logit_error: float
    snr_db: float | None = Field(description="of the logits, in dB; null where they are equal")
    images: int
    size_bytes: int
    int8_mac_share: float
    evaluated_with: str = Field(description="the runtime and version that gave the answers")
    ladder: tuple[Attempt, ...] = Field((), description="of int8, in order; one of them is kept")
    undecided: str | None = Field(
        None, description="of int8: why val is too small to decide quantize.max_drop; else null"
    )
    layers: tuple[LayerNoise, ...] = Field((), description="of int8, in order of execution, on val")
    digests: dict[str, str] = Field({}, description="SHA-256 of every file of the artifact")


def compiled_metrics(artifact: Artifact) -> CompiledMetrics:
    """The collected metrics of an artifact, which are those of the files in models/compiled.

    Raises:
        PipelineError: for metrics or an artifact.json that is missing, damaged or of another run.
    """
    metrics = CompiledMetrics.read(artifact.metrics)
    check_owner(artifact, artifact.metrics, metrics.digests)
    return metrics


def check_owner(artifact: Artifact, file: Path, digests: dict[str, str]) -> None:
    """Raise `PipelineError` unless a record belongs to the artifact in models/compiled.

    Args:
        artifact: whose it should be.
        file: of the record.
        digests: of the artifact's files, as the record has them.
    """
    if digests != ArtifactRecord.read(artifact.folder / ARTIFACT_FILE).digests:
        raise PipelineError(
            f"is about other files than those in {artifact.folder}",
            where=str(file),
            fix="remove it and run `dvc repro`",
        )
