"""What the stage `quantize_aware` records."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipeline.core.errors import PipelineError
from pipeline.core.files import checked
from pipeline.core.records import METRICS, Record

QUANTIZE_AWARE = Path("models/quantize_aware")
"""A folder per student: weights, card and `model.onnx`, or nothing but the status."""

METRICS_FOLDER = METRICS / "quantize_aware"
STATUS = "status.json"


class QuantizeAwareStatus(Record):
    """models/quantize_aware/S/status.json: whether the folder has weights."""

    trained: bool
    reason: str | None = Field(None, description="why there are no weights")
    onnx_digest: str | None = Field(None, description="SHA-256 of `model.onnx`; null without one")


class QuantizeAwareMetrics(Record):
    """metrics/quantize_aware/S.json: accuracy of the weights under simulated int8 rounding."""

    val_top1: float | None = Field(description="null where nothing was trained")


def trained_weights(student: str) -> Path:
    """The folder of the weights that `quantize_aware` trained.

    Raises:
        PipelineError: where there are none, or its ONNX file is damaged or of another run.
    """
    folder = QUANTIZE_AWARE / student
    status = QuantizeAwareStatus.read(folder / STATUS)
    if not status.trained:
        raise PipelineError(
            f"there are no weights of quantization-aware training: {status.reason}",
            where=str(folder),
            fix="change that in params.yaml, and run `dvc repro`",
        )
    checked(folder / "model.onnx", status.onnx_digest)
    return folder
