"""What the export records beside the ONNX file."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.records import Record

ONNX = Path("models/onnx")


class Parity(Record):
    """models/onnx/S/parity.json: ONNX Runtime's logits compared with torch's on the test split."""

    images: int
    same_argmax: float
    max_logit_error: float
    mean_logit_error: float
    opset: int
    versions: dict[str, str]
