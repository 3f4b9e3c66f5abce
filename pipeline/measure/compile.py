"""The stage that every backend shares: compile, inspect, evaluate, record."""

from __future__ import annotations

import os
import typing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base import Backend, Compiled, Job, opened_bytes, versions
from pipeline.contracts import (
    CARD,
    COMPILED,
    COMPILED_METRICS,
    ONNX,
    PACKED,
    STUDENTS,
    Artifact,
    Attempt,
    CompiledMetrics,
    Manifest,
    ModelCard,
    ProductLayers,
    artifact_folder,
    compiled_metrics_file,
    load_calibration,
    load_split,
)
from pipeline.errors import PipelineError
from pipeline.files import sha256, whole_folder
from pipeline.measure.accuracy import (
    agreement,
    logits_of,
    lost_and_won,
    signal_to_noise,
    top1,
)
from pipeline.measure.evidence import EVIDENCE, Evidence, evidence_file
from pipeline.measure.inside import Inside, look_inside
from pipeline.params import Backends, Params, load_params
from pipeline.quantize.ladder import Climbed, climb
from pipeline.stage import student_argument

MIN_INT8_MAC_SHARE = 0.98
"""An int8 artifact with fewer of its multiply-accumulates in int8 has been left in float."""
MIN_FLOAT_AGREEMENT = 0.99
"""Below this share of torch's answers an fp32 artifact is broken, not imprecise."""
_RETRAINED = "its weights went on learning under int8's rounding: they are not the float student's"
_NAMED = 5  # float products in an error


def compile_from_command_line(backend: Backend) -> None:
    """`--student S`: run the stage `compile_<backend>@S`, all its precisions in one process.

    Loading torch and a converter takes longer than most artifacts do.
    """
    params = load_params()
    student = student_argument(params)
    for outputs in (COMPILED, COMPILED_METRICS, EVIDENCE):  # also where no precision is asked for
        (outputs / backend.name / student).mkdir(parents=True, exist_ok=True)
    for precision in getattr(params.backends, backend.name).precisions:
        metrics = compile_student(params, backend, student, precision)
        for attempt in metrics.ladder:
            print(_told(attempt))
        print(
            f"{student} {backend.name} {precision}: top-1 {metrics.top1:.4f} "
            f"(drop {metrics.top1_drop:+.4f}), {metrics.size_bytes / 1000:,.0f} kB, "
            f"{metrics.int8_mac_share:.1%} of MACs in int8, by {metrics.evaluated_with}",
            flush=True,
        )


def _told(attempt: Attempt) -> str:
    """One line of the ladder."""
    if attempt.val_drop is None:
        return f"  {attempt.rung}, {attempt.recipe}: {attempt.failure}"
    kept = ", kept" if attempt.kept else ""
    return (
        f"  {attempt.rung}, {attempt.recipe}: {attempt.val_drop:+.4f} on val, "
        f"{attempt.seconds:.0f} s{kept}"
    )


def compile_student(
    params: Params, backend: Backend, student: str, precision: str
) -> CompiledMetrics:
    """Write the artifact of `student` at `precision` and how it does on the test split.

    int8 climbs the ladder of `params.quantize`, judged on val, before test is looked at.
    models/compiled/B/S/P/, metrics/compiled/B/S/P.json and metrics/evidence/B/S/P.json appear
    only if the compiler ends well, the runtime really executes the precision, and its logits
    are sound; otherwise `PipelineError`.
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
    attempts: tuple[Attempt, ...] = ()
    inside = Inside()
    with whole_folder(artifact_folder(student, backend.name, precision)) as folder:
        if precision == "int8":
            climbed = _climb(backend, job, params, folder, where)
            job, compiled, attempts = climbed.job, climbed.compiled, climbed.attempts
            inside = look_inside(backend, job, folder / compiled.model_file, where)
        else:
            compiled = backend.compile(job, folder)
            _check(job, compiled, where)
        artifact = _record(backend, job, compiled, inside, tools, folder)
        model = folder / compiled.model_file
        evaluator = backend.evaluator()
        if evaluator is None:
            raise PipelineError(f"{backend.name} cannot run on this machine", where=where)
        logits, labels = _answers(backend, model, where)
        metrics = CompiledMetrics(
            **_beside_float(job, logits, labels, where),
            images=len(labels),
            size_bytes=opened_bytes(model),
            int8_mac_share=compiled.proof.int8_mac_share,
            evaluated_with=evaluator,
            ships_with=backend.name,
            ladder=attempts,
            layers=inside.layers,
        )
        evidence = Evidence.of(artifact, job.manifest, logits, labels)
        metrics.write(compiled_metrics_file(student, backend.name, precision))
        evidence.write(evidence_file(student, backend.name, precision))
    return metrics


def _climb(backend: Backend, job: Job, params: Params, folder: Path, where: str) -> Climbed:
    """The first int8 artifact that loses little enough on val, or the one that loses least."""
    images, labels = load_split("val")
    threads = os.cpu_count() or 1
    float_top1 = ModelCard.read(job.student_folder / CARD).val_top1

    def retrained(plain: Job) -> Job:
        from pipeline.quantize.retrain import retrain  # seconds of torch, for the last rung alone

        return retrain(params, plain)

    def judge(candidate: Job, compiled: Compiled, made: Path) -> float:
        _check(candidate, compiled, where)
        runner = backend.load(made / compiled.model_file, threads)
        return top1(logits_of(runner, images, label=where), labels)

    return climb(backend, job, params.quantize, float_top1, judge, retrained, folder)


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
        layers=ProductLayers.read(ONNX / student / "layers.json").layers,
        manifest=Manifest.read(PACKED / "manifest.json"),
    )


def _check(job: Job, compiled: Compiled, where: str) -> None:
    """Raise `PipelineError` unless the runtime executes what was asked."""
    proof = compiled.proof
    if (proof.input_type, proof.output_type) != ("uint8", "float32"):
        raise PipelineError(
            f"takes {proof.input_type} and gives {proof.output_type}, "
            "where raw pixels are uint8 and logits float32",
            where=where,
            fix="report the network and the versions of the tools",
        )
    if job.precision != "int8":
        return
    names = {product.name for product in proof.float_products}
    if rounded := [name for name in compiled.kept_float if name not in names]:
        raise PipelineError(
            f"meant to keep {', '.join(rounded)} in float, but the runtime computes it in int8",
            where=where,
            fix="leave `float_layers` out of quantize.rungs",
        )
    stray = [p for p in proof.float_products if p.name not in compiled.kept_float]
    share = sum(product.macs for product in stray) / proof.macs if proof.macs else 1.0
    if share > 1 - MIN_INT8_MAC_SHARE:
        more = f" and {len(stray) - _NAMED} more" if len(stray) > _NAMED else ""
        raise PipelineError(
            f"asked int8, but the runtime computes {share:.1%} of the multiply-accumulates in "
            f"float: {', '.join(map(str, stray[:_NAMED]))}{more}",
            where=where,
            fix="leave int8 out of this backend's precisions, or choose another network",
        )


def _answers(
    backend: Backend, model: Path, where: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The artifact's logits [N, C] for the test split, and its labels [N]."""
    images, labels = load_split("test")
    logits = logits_of(backend.load(model, os.cpu_count() or 1), images, label=where)
    if not np.isfinite(logits).all():
        raise PipelineError("some logits are not finite numbers", where=where)
    return logits, labels


def _beside_float(
    job: Job, logits: NDArray[np.float32], labels: NDArray[np.int64], where: str
) -> dict[str, Any]:
    """The figures of `CompiledMetrics` that `logits` and those of the float student give."""
    reference = np.load(ONNX / job.student / "test_logits.npy")
    if len(reference) != len(logits):
        raise PipelineError(
            "torch's logits are of another test split",
            where=str(ONNX / job.student),
            fix="run `dvc repro`",
        )
    same = agreement(logits, reference)
    if job.precision == "fp32" and same < MIN_FLOAT_AGREEMENT:
        raise PipelineError(
            f"gives torch's answer on {same:.1%} of the test images only: the conversion is broken",
            where=where,
            fix="report the network and the versions of the tools",
        )
    error = np.abs(logits - reference)
    lost, won = lost_and_won(logits, reference, labels)
    return {
        "top1": top1(logits, labels),
        "top1_drop": top1(reference, labels) - top1(logits, labels),
        "agreement": same,
        "lost": lost,
        "won": won,
        "max_logit_error": float(error.max()),
        "mean_logit_error": float(error.mean()),
        "snr_db": signal_to_noise(logits, reference),
    }


def _record(
    backend: Backend,
    job: Job,
    compiled: Compiled,
    inside: Inside,
    tools: dict[str, str],
    folder: Path,
) -> Artifact:
    """Write artifact.json, the last file of the folder."""
    int8 = job.precision == "int8"
    artifact = Artifact(
        student=job.student,
        backend=backend.name,
        precision=job.precision,
        model_file=compiled.model_file,
        quantizer=f"{compiled.quantizer}; {job.recipe}" if int8 else compiled.quantizer,
        calibration_digest=job.manifest.calibration_digest if int8 else None,
        image_size=job.manifest.image_size,
        channels=job.manifest.channels,
        classes=job.manifest.classes,
        proof=compiled.proof,
        exact_input_images=inside.exact_input_images,
        versions=tools,
        digests={
            file.relative_to(folder).as_posix(): sha256(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        },
        notes=(
            *compiled.notes,
            *inside.notes,
            *((_RETRAINED,) if job.student_folder != STUDENTS / job.student else ()),
        ),
    )
    artifact.write(folder / "artifact.json")
    return artifact
