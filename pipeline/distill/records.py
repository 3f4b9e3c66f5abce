"""The record of the teacher logits."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipeline.core.records import Record

TEACHER_LOGITS = Path("models/teacher_logits")


class TeacherLogitsRecord(Record):
    """models/teacher_logits/record.json: of which teachers and views the logits beside it are."""

    teachers: dict[str, str] = Field(
        description="by teacher, in order: SHA-256 of its weights and card"
    )
    views: str = Field(description="digest of the images, the augmentation, its seed and code")
    epochs: int
    samples: int
    classes: int
    top_k: int | None
    temperature: float | None = Field(None, description="where `top_k` is not null: see `compress`")
    digests: dict[str, str] = Field({}, description="SHA-256 of the arrays, by path beside it")
