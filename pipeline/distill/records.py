"""What is recorded beside the teachers' logits."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipeline.core.records import Record

TEACHER_LOGITS = Path("models/teacher_logits")


class TeacherLogitsRecord(Record):
    """models/teacher_logits/signals.json: whose logits lie beside it, and for which views."""

    teachers: dict[str, str] = Field(
        description="by teacher, in order: SHA-256 of its weights and card"
    )
    views: str = Field(description="digest of the images, the augmentation, its seed and code")
    epochs: int
    samples: int
    classes: int
    top_k: int | None
