"""An artifact is one student, compiled for one backend at one precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator

from pipeline.core.params import check_name
from pipeline.core.records import METRICS
from pipeline.core.text import shorten

COMPILED = Path("models/compiled")
COMPILED_METRICS = METRICS / "compiled"
EVIDENCE = METRICS / "evidence"
SUMMARY = METRICS / "summary"
BUNDLES = Path("models/bundles")


@dataclass(frozen=True, order=True)
class Artifact:
    """The name of an artifact, and where everything about it lies.

    Example:
        >>> artifact = Artifact.parse("mnv4/tflite/int8")
        >>> str(artifact.folder)
        'models/compiled/tflite/mnv4/int8'
    """

    student: str
    backend: str
    precision: str

    @classmethod
    def parse(cls, key: str) -> Self:
        """From `key`: STUDENT/BACKEND/PRECISION. Raises `ValueError` for another shape."""
        student, backend, precision = key.split("/")
        return cls(student, backend, precision)

    @property
    def key(self) -> str:
        """STUDENT/BACKEND/PRECISION, which identifies it in records and on the command line."""
        return f"{self.student}/{self.backend}/{self.precision}"

    @property
    def slug(self) -> str:
        """STUDENT-BACKEND-PRECISION, for names of folders and ids of a page."""
        return f"{self.student}-{self.backend}-{self.precision}"

    @property
    def int8(self) -> bool:
        """Whether it is quantized to int8."""
        return self.precision == "int8"

    @property
    def folder(self) -> Path:
        """The compiled files, `artifact.json` among them."""
        return COMPILED / self.backend / self.student / self.precision

    @property
    def metrics(self) -> Path:
        """Its accuracy and how it was made: a `CompiledMetrics`."""
        return self.within(COMPILED_METRICS)

    @property
    def evidence(self) -> Path:
        """Its answer to every test image and how it is executed: an `Evidence`."""
        return self.within(EVIDENCE)

    @property
    def summary(self) -> Path:
        """Its main figures, as `dvc metrics show` prints them."""
        return SUMMARY / f"{self.slug}.json"

    @property
    def bundle(self) -> Path:
        """The folder that ships."""
        return BUNDLES / self.slug

    def within(self, folder: Path) -> Path:
        """Its file in a folder of records that has one file per artifact."""
        return folder / self.backend / self.student / f"{self.precision}.json"

    def __str__(self) -> str:
        return self.key


def _check_key(key: str) -> str:
    parts = key.split("/")
    if len(parts) != 3:
        raise ValueError(f"`{shorten(key)}` is not STUDENT/BACKEND/PRECISION")
    return "/".join(map(check_name, parts))


ArtifactKey = Annotated[str, AfterValidator(_check_key)]
"""`Artifact.key` in a record, whose names become parts of paths and commands."""
