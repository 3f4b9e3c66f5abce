"""The group `export` of params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.core.params import Group, Selection, Whole
from pipeline.networks.params import PrunedStudents, Students


class Export(Group):
    """How students are exported."""

    opset: Annotated[Whole, Field(ge=18, le=23)] = Field(description="of the ONNX file")


class ExportParams(Selection):
    """What the stage `export` reads."""

    students: Students
    prune: PrunedStudents = PrunedStudents()
    export: Export
