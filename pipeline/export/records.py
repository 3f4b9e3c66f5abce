"""What the export records beside the ONNX file."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipeline.core.files import checked
from pipeline.core.records import Record

ONNX = Path("models/onnx")

PARITY = "parity.json"
EXPORTED = ("model.onnx", "layers.json", "test_logits.npy")
"""In a student's folder, beside `PARITY`."""


class Parity(Record):
    """models/onnx/S/parity.json: ONNX Runtime's logits compared with torch's on the test split."""

    images: int
    same_argmax: float
    max_logit_error: float
    mean_logit_error: float
    opset: int
    versions: dict[str, str]
    digests: dict[str, str] = Field({}, description="SHA-256 of every other file in the folder")


def check_export(student: str) -> Path:
    """models/onnx/S/, whose files are those that were exported.

    Raises:
        PipelineError: for a file that is missing, damaged or of another run.
    """
    folder = ONNX / student
    digests = Parity.read(folder / PARITY).digests
    for name in EXPORTED:
        checked(folder / name, digests.get(name))
    return folder
