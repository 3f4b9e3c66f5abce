"""The stage that every backend shares: compile, inspect, evaluate, record."""

from __future__ import annotations

import argparse
import os
import typing
from pathlib import Path

import numpy as np

from pipeline.backends.base import Backend, Compiled, Job, versions
from pipeline.contracts import (
    ONNX,
    PACKED,
    STUDENTS,
    Artifact,
    CompiledMetrics,
    Manifest,
    artifact_folder,
    compiled_metrics_file,
    load_calibration,
    load_split,
)
from pipeline.errors import PipelineError
from pipeline.files import sha256, whole_folder
from pipeline.measure.accuracy import agreement, logits_of, top1
from pipeline.params import Backends

MIN_INT8_SHARE = 0.5
MIN_FLOAT_AGREEMENT = 0.99
"""Below this share of torch's answers an fp32 artifact is broken, not imprecise."""


def compile_from_command_line(backend: Backend) -> None:
    """`--student S --precision P`: run the stage `compile_<backend>@S-P`."""
    parser = argparse.ArgumentParser(description=f"Compile a student for {backend.name}.")
    parser.add_argument("--student", required=True, help="a name of students.zoo")
    parser.add_argument("--precision", required=True, help=" or ".join(precisions(backend.name)))
    arguments = parser.parse_args()
    metrics = compile_student(backend, arguments.student, arguments.precision)
    print(
        f"{arguments.student} {backend.name} {arguments.precision}: top-1 {metrics.top1:.4f} "
        f"(drop {metrics.top1_drop:+.4f}), {metrics.size_bytes / 1000:,.0f} kB, "
        f"int8 share {metrics.int8_op_share:.2f}, by {metrics.evaluated_with}"
    )


def compile_student(backend: Backend, student: str, precision: str) -> CompiledMetrics:
    """Write the artifact of `student` at `precision` and how it does on the test split.

    models/compiled/B/S-P/ and metrics/compiled/B-S-P.json appear only if the compiler ends
    well, the runtime really executes the precision, and its logits are sound; otherwise
    `PipelineError`.
    """
    where = f"compile {backend.name}@{student}-{precision}"
    if precision not in precisions(backend.name):
        raise PipelineError(
            f"the backend {backend.name} has no precision `{precision}`",
            where=where,
            fix=f"it knows {', '.join(precisions(backend.name))}",
        )
    tools = versions(backend.packages)
    job = _job(student, precision)
    with whole_folder(artifact_folder(student, backend.name, precision)) as folder:
        compiled = backend.compile(job, folder)
        if precision == "int8" and compiled.int8_op_share < MIN_INT8_SHARE:
            raise PipelineError(
                f"asked int8, but the runtime executes {1 - compiled.int8_op_share:.0%} of the "
                "convolutions and products in float",
                where=where,
                fix="leave int8 out of this backend's precisions, or choose another network",
            )
        metrics = _evaluate(backend, job, compiled, folder, where)
        _record(backend, job, compiled, tools, folder)
        metrics.write(compiled_metrics_file(student, backend.name, precision))
    return metrics


def precisions(backend: str) -> tuple[str, ...]:
    """The precisions that params.yaml may ask of `backend`."""
    group = typing.get_type_hints(Backends)[backend]
    names = typing.get_type_hints(group)["precisions"]
    return typing.get_args(typing.get_args(names)[0])


def _job(student: str, precision: str) -> Job:
    onnx = ONNX / student / "model.onnx"
    if not onnx.is_file():
        raise PipelineError(
            f"`{student}` has not been exported", where=str(onnx), fix="run `dvc repro`"
        )
    return Job(
        student=student,
        precision=precision,
        onnx=onnx,
        student_folder=STUDENTS / student,
        calibration=load_calibration(),
        manifest=Manifest.read(PACKED / "manifest.json"),
    )


def _evaluate(
    backend: Backend, job: Job, compiled: Compiled, folder: Path, where: str
) -> CompiledMetrics:
    evaluator = backend.evaluator()
    if evaluator is None:
        raise PipelineError(f"{backend.name} cannot run on this machine", where=where)
    images, labels = load_split("test")
    reference = np.load(ONNX / job.student / "test_logits.npy")
    if len(reference) != len(images):
        raise PipelineError(
            "torch's logits are of another test split",
            where=str(ONNX / job.student),
            fix="run `dvc repro`",
        )
    model = folder / compiled.model_file
    logits = logits_of(backend.load(model, os.cpu_count() or 1), images, label=where)
    if not np.isfinite(logits).all():
        raise PipelineError("some logits are not finite numbers", where=where)
    metrics = CompiledMetrics(
        top1=top1(logits, labels),
        top1_drop=top1(reference, labels) - top1(logits, labels),
        agreement=agreement(logits, reference),
        max_logit_error=float(np.abs(logits - reference).max()),
        images=len(images),
        size_bytes=_size(model),
        int8_op_share=compiled.int8_op_share,
        evaluated_with=evaluator,
        ships_with=backend.name,
    )
    if job.precision == "fp32" and metrics.agreement < MIN_FLOAT_AGREEMENT:
        raise PipelineError(
            f"gives torch's answer on {metrics.agreement:.1%} of the test images only: "
            "the conversion is broken",
            where=where,
            fix="report the network and the versions of the tools",
        )
    return metrics


def _size(model: Path) -> int:
    """Bytes that the runtime opens: the model, and OpenVINO's weights beside it."""
    weights = model.with_suffix(".bin")
    return model.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)


def _record(
    backend: Backend, job: Job, compiled: Compiled, tools: dict[str, str], folder: Path
) -> None:
    int8 = job.precision == "int8"
    Artifact(
        student=job.student,
        backend=backend.name,
        precision=job.precision,
        model_file=compiled.model_file,
        quantizer=compiled.quantizer,
        calibration_digest=job.manifest.calibration_digest if int8 else None,
        image_size=job.manifest.image_size,
        channels=job.manifest.channels,
        classes=job.manifest.classes,
        operators=compiled.operators,
        int8_op_share=compiled.int8_op_share,
        versions=tools,
        digests={
            file.relative_to(folder).as_posix(): sha256(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        },
        notes=compiled.notes,
    ).write(folder / "artifact.json")
