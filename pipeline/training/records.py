"""What a training run records: its curves and the accuracies of the network."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

from pydantic import Field

from pipeline.core.files import checked
from pipeline.core.records import METRICS, Record
from pipeline.data.recall import Recall

CURVES = METRICS / "curves"


class ModelMetrics(Record):
    """metrics/teachers/T.json and metrics/students/S.json: accuracies of the float network."""

    val_top1: float
    top1: float = Field(description="on test")
    recall: Recall | None = Field(None, description="on test; null in older records")
    parameters: int
    curves: tuple[str, ...] = Field(
        (), description="SHA-256 of the curve of each field of `Epoch`, in order"
    )
    rounded: tuple[float, ...] = Field(
        (), description="in epochs, where the phase under int8's rounding begins and ends"
    )

    def curve(self, name: str) -> tuple[Epoch, ...]:
        """The training curve of this network.

        Args:
            name: of the network.

        Raises:
            PipelineError: for a file that is missing, damaged or of another run.
        """
        for file, digest in zip_longest(curve_files(name).values(), self.curves):
            checked(file, digest)
        return read_curve(name)


class Epoch(Record):
    """One point of the training curves that DVCLive keeps in metrics/curves/NAME/."""

    train_loss: float
    val_loss: float
    val_top1: float
    lr: float


def curve_files(name: str) -> dict[str, Path]:
    """DVCLive's tab-separated files of the training curve `name`, by field of `Epoch`."""
    plots = CURVES / name / "plots" / "metrics"
    return {field: plots / f"{field}.tsv" for field in Epoch.model_fields}


def read_curve(name: str) -> tuple[Epoch, ...]:
    """The training curve of a teacher or a student; `ModelMetrics.curve` checks it first."""
    columns = {
        field: [line.split("\t")[1] for line in file.read_text().splitlines()[1:]]
        for field, file in curve_files(name).items()
    }
    rows = zip(*columns.values(), strict=True)
    return tuple(Epoch.model_validate(dict(zip(columns, row, strict=True))) for row in rows)
