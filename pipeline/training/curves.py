"""Training curves while a run goes on: by DVCLive and, on demand, TensorBoard."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.core.files import write_whole
from pipeline.training.records import CURVES

TENSORBOARD = Path(".work/tensorboard")


class Curves:
    """One series per metric in metrics/curves/NAME/, with a value per epoch.

    Args:
        name: of the network.
        rows: the epochs that are finished already, where a run is resumed.
        tensorboard: write .work/tensorboard/NAME/, too.
        quiet: write nothing. Of several processes only one writes.
    """

    def __init__(
        self, name: str, rows: list[dict[str, float]], *, tensorboard: bool, quiet: bool
    ) -> None:
        self._logs: list[Any] = []
        if not quiet:
            self._logs.append(_live(CURVES / name))
            if tensorboard:
                self._logs.append(_TensorBoard(name))
        for row in rows:
            self.log(row)

    def log(self, row: Mapping[str, float]) -> None:
        """Append the values of one epoch, by metric; the files are written at once."""
        for log in self._logs:
            for metric, value in row.items():
                log.log_metric(metric, value)
            log.next_step()


def _live(folder: Path) -> Any:
    """DVCLive, or its layout without it: a machine that only trains needs no DVC."""
    try:
        from dvclive.live import Live
    except ImportError:
        print(
            "DVCLive is not installed (pip install 'edgestill[dvc]'): the curves are written in "
            "its layout without it",
            file=sys.stderr,
        )
        return _Plain(folder)
    # dvc.yaml of the project tracks the files: DVCLive shall make no dvc.yaml or experiment.
    return Live(dir=str(folder), dvcyaml=None, report=None, save_dvc_exp=False)


class _Plain:
    """Writes the files that DVCLive writes: a table per metric and the latest values."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._step = 0
        self._latest: dict[str, float] = {}
        self._series: dict[str, list[float]] = {}

    def log_metric(self, metric: str, value: float) -> None:
        self._latest[metric] = value
        self._series.setdefault(metric, []).append(value)

    def next_step(self) -> None:
        for metric, values in self._series.items():
            lines = [f"step\t{metric}", *(f"{step}\t{value}" for step, value in enumerate(values))]
            file = self._folder / "plots" / "metrics" / f"{metric}.tsv"
            write_whole(file, "\n".join(lines) + "\n")
        summary = self._latest | {"step": self._step}
        write_whole(self._folder / "metrics.json", json.dumps(summary, indent=4) + "\n")
        self._step += 1


def tensorboard_writer() -> Any:
    """torch's SummaryWriter; `PipelineError` with the command where TensorBoard is missing."""
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError:
        raise PipelineError(
            "TensorBoard is not installed",
            where="training.tensorboard",
            fix="pip install 'edgestill[tensorboard]', or set it to false",
        ) from None


class _TensorBoard:
    def __init__(self, name: str) -> None:
        writer, folder = tensorboard_writer(), TENSORBOARD / name
        shutil.rmtree(folder, ignore_errors=True)  # a resumed run writes all rows again
        self._writer = writer(str(folder))
        self._step = 0

    def log_metric(self, metric: str, value: float) -> None:
        self._writer.add_scalar(metric, value, self._step)

    def next_step(self) -> None:
        self._writer.flush()
        self._step += 1
