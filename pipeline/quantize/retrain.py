"""The ladder's last rung: other weights, which int8's rounding hurts less."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from pipeline.backends.base import Job, Recipe
from pipeline.contracts import PACKED, Manifest
from pipeline.distill.checkpoints import run_key
from pipeline.distill.quantization_aware import quantization_aware_student
from pipeline.distill.teachers import teacher_digest
from pipeline.export.onnx import export_onnx
from pipeline.files import sha256, whole_folder
from pipeline.networks.build import load_pixels_to_logits
from pipeline.params import Params

TRAINED = Path(".work/quantization_aware")
"""Outside the stages' outputs: the first backend that needs it trains, for all of them."""


def retrain(params: Params, job: Job) -> Job:
    """The job of the student after quantization-aware distillation, with the plain recipe.

    What was trained before, for another backend, is found by a digest of all that decides it.
    """
    key = run_key(
        job.student,
        sha256(job.student_folder / "model.safetensors"),
        params.model_dump_json(include={"seed", "students", "teachers", "views", "signals"}),
        params.distill.model_dump_json(),
        params.quantize.training.model_dump_json(),
        params.export.model_dump_json(),
        {name: teacher_digest(name) for name in params.teachers.enabled},
        Manifest.read(PACKED / "manifest.json").digests,
    )
    folder = TRAINED / f"{job.student}-{key}"
    if not folder.exists():
        for old in TRAINED.glob(f"{job.student}-*"):
            shutil.rmtree(old)
        with whole_folder(folder) as scratch:
            quantization_aware_student(params, job.student, scratch / "student")
            model, card = load_pixels_to_logits(scratch / "student")
            export_onnx(model, card, params.export.opset, scratch / "model.onnx")
    return replace(
        job, onnx=folder / "model.onnx", student_folder=folder / "student", recipe=Recipe()
    )
