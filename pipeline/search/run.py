"""The process of one training: `python -m pipeline.search.run student|record` in its folder.

It ends when its stdin does, and so with the worker that started it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from pipeline.compile.params import CompileParams
from pipeline.compile.student import compile_student
from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.core.records import METRICS
from pipeline.distill.params import DistillParams, RecordingParams
from pipeline.distill.recording import record_teacher_logits
from pipeline.distill.student import distill_student
from pipeline.export.onnx import export_student
from pipeline.export.params import ExportParams
from pipeline.networks.records import STUDENTS, ModelCard
from pipeline.search.records import CANDIDATE, RESULT, RungResult
from pipeline.training.records import ModelMetrics


def main() -> None:
    threading.Thread(target=_end_with_worker, daemon=True).start()
    if sys.argv[1] == "record":
        record_teacher_logits(load(RecordingParams))
        return
    start = time.monotonic()
    metrics_file = METRICS / "students" / f"{CANDIDATE}.json"
    if not metrics_file.exists():
        distill_student(load(DistillParams), CANDIDATE)
    export_student(CANDIDATE, load(ExportParams).export.opset)
    params = load(CompileParams)
    (name,) = params.backends.enabled
    ((_, compiled),) = compile_student(params, name, CANDIDATE)
    RungResult(
        epochs=ModelCard.read_beside(STUDENTS / CANDIDATE).epochs,
        top1=compiled.top1,
        balanced=compiled.balanced_accuracy,
        float_top1=ModelMetrics.read(metrics_file).top1,
        kb=compiled.size_bytes / 1000,
        int8_mac_share=compiled.int8_mac_share,
        seconds=round(time.monotonic() - start, 1),
    ).write(Path(RESULT))


def _end_with_worker() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    run(main)
