"""What a training run records: its curves and the accuracies of the network."""

from __future__ import annotations

from pydantic import Field

from pipeline.core.errors import PipelineError
from pipeline.core.records import METRICS, Record

CURVES = METRICS / "curves"


class ModelMetrics(Record):
    """metrics/teachers/T.json and metrics/students/S.json: accuracies of the float network."""

    val_top1: float
    top1: float = Field(description="on test")
    parameters: int


class Epoch(Record):
    """One point of the training curves that DVCLive keeps in metrics/curves/NAME/."""

    train_loss: float
    val_loss: float
    val_top1: float
    lr: float


def read_curve(name: str) -> tuple[Epoch, ...]:
    """The training curve of a teacher or a student, from DVCLive's tab-separated files.

    Raises:
        PipelineError: for a missing file.
    """
    plots = CURVES / name / "plots" / "metrics"
    columns: dict[str, list[str]] = {}
    for field in Epoch.model_fields:
        file = plots / f"{field}.tsv"
        if not file.exists():
            raise PipelineError("the curve is missing", where=str(file), fix="run `dvc repro`")
        columns[field] = [line.split("\t")[1] for line in file.read_text().splitlines()[1:]]
    rows = zip(*columns.values(), strict=True)
    return tuple(Epoch.model_validate(dict(zip(columns, row, strict=True))) for row in rows)
