"""The stage `compile`: a student for one backend, at every precision that is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.accuracy.metrics import lost_and_won, signal_to_noise
from pipeline.accuracy.paired import mcnemar, too_few
from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.job import Compiled, Compiler, Job, opened_bytes
from pipeline.backends.base.records import ARTIFACT_FILE, ArtifactRecord
from pipeline.backends.base.registry import backend
from pipeline.backends.base.spec import Backend, versions
from pipeline.compile.evidence import Evidence
from pipeline.compile.inside import Inside, look_inside
from pipeline.compile.ladder import Climbed, climb
from pipeline.compile.params import CompileParams
from pipeline.compile.records import EVIDENCE_FILE, METRICS_FILE, CompiledMetrics
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256, whole_folder
from pipeline.data.answers import agreement, top1
from pipeline.data.recall import Recall
from pipeline.data.records import (
    MANIFEST,
    PACKED,
    Arrays,
    Manifest,
    load_calibration,
    load_split,
)
from pipeline.export.evaluate import logits_of
from pipeline.export.records import ONNX, check_export
from pipeline.export.session import load
from pipeline.networks.records import Layers, ModelCard
from pipeline.networks.shipped import shipped

MIN_FLOAT_AGREEMENT = 0.99
"""Below this share of torch's answers an fp32 artifact is broken, not imprecise."""

_NAMED = 5  # float layers in an error


def compile_student(
    params: CompileParams, name: str, student: str
) -> Iterator[tuple[Artifact, CompiledMetrics]]:
    """Stage `compile@B-S`: all precisions of a student for the backend `name`, one by one.

    They share one process and one compiler, because imports take longer than most artifacts do
    and precisions share conversions.

    Yields:
        Each artifact once it is recorded.

    Raises:
        PipelineError: see `compile_artifact`.
    """
    spec, settings = backend(name), params.backends.settings(name)
    spec.check(settings)  # names a missing package before a converter's import fails
    compiler = spec.compiler(settings)
    for precision in settings.precisions:
        artifact = Artifact(student, name, precision)
        yield artifact, compile_artifact(params, spec, compiler, artifact)


def compile_artifact(
    params: CompileParams, spec: Backend, compiler: Compiler, artifact: Artifact
) -> CompiledMetrics:
    """Compile an artifact and evaluate it on the test split.

    An int8 artifact climbs the ladder of `params.quantize`, judged on val, before the test split is
    read. The artifact's folder, metrics and evidence included, appears only if the compiler
    succeeds, the runtime executes the precision that was asked for, and the logits are sound.

    Args:
        params: the ladder and its limits.
        spec: the artifact's backend.
        compiler: of that backend.
        artifact: what to make.

    Returns:
        The metrics, as they were recorded.

    Raises:
        PipelineError: for a student that is not exported, a package that is missing, and an
            artifact that is not what was asked for.
    """
    tools = versions(spec.packages)
    job = _job(artifact, shipped(artifact.student, params.prune.enabled).folder)
    least = params.quantize.min_int8_share
    climbed, inside, undecided = None, Inside(), None
    with whole_folder(artifact.folder) as folder:
        if artifact.int8:
            val = load_split("val")
            climbed = _climb(spec, compiler, job, params, val, folder)
            level, most = params.quantize.significance, params.quantize.max_drop
            undecided = too_few("val", len(val[1]), level, most, "quantize.max_drop")
            job, compiled = climbed.job, climbed.compiled
            inside = look_inside(spec, compiler, job, folder / compiled.model_file, val[0])
        else:
            compiled = compiler.compile(job, folder)
            check_execution(job, compiled, least)
        record = _record(job, compiled, inside, tools, folder)
        model = folder / compiled.model_file
        images, labels = load_split(job.manifest.final)
        logits = _finite_logits(spec, job, model, images)
        metrics = CompiledMetrics(
            **_beside_float(job, logits, labels),
            images=len(labels),
            size_bytes=opened_bytes(model),
            int8_mac_share=compiled.execution.int8_mac_share,
            evaluated_with=str(spec.evaluator()),
            ladder=climbed.attempts if climbed else (),
            undecided=undecided,
            layers=inside.layers,
            digests=record.digests,
        )
        metrics.write(folder / METRICS_FILE)
        Evidence.of(record, job.manifest, logits, labels).write(folder / EVIDENCE_FILE)
    return metrics


def _where(job: Job) -> str:
    return f"compile of {job.artifact}"


def _climb(
    spec: Backend, compiler: Compiler, job: Job, params: CompileParams, val: Arrays, folder: Path
) -> Climbed:
    """The first int8 artifact that loses little enough on val, or the one that loses least."""
    images, labels = val
    float_top1 = ModelCard.read_beside(job.weights).val_top1

    @cache
    def float_logits() -> NDArray[np.float32]:
        return logits_of(load(str(job.onnx), os.cpu_count() or 1), images, label=_where(job))

    def judge(candidate: Job, compiled: Compiled, made: Path) -> tuple[float, float | None]:
        check_execution(candidate, compiled, params.quantize.min_int8_share)
        logits = _finite_logits(spec, job, made / compiled.model_file, images)
        reached = top1(logits, labels)
        if float_top1 - reached <= params.quantize.max_drop:
            return reached, None
        return reached, mcnemar(*lost_and_won(logits, float_logits(), labels))

    return climb(compiler, job, params.quantize, float_top1, judge, folder)


def _job(artifact: Artifact, weights: Path) -> Job:
    """What to compile; `weights` is the folder of the network that ships for the student."""
    exported = check_export(artifact.student)
    manifest = Manifest.read(PACKED / MANIFEST)
    return Job(
        artifact=artifact,
        onnx=exported / "model.onnx",
        weights=weights,
        calibration=load_calibration(manifest),
        layers=Layers.read(exported / "layers.json").layers,
        manifest=manifest,
        rounded=ModelCard.read_beside(weights).int8_phase > 0,
    )


def check_execution(job: Job, compiled: Compiled, least: float) -> None:
    """Raise `PipelineError` unless the runtime executes what was asked for.

    Args:
        job: what was asked for.
        compiled: what came of it.
        least: see `quantize.min_int8_share`.
    """
    execution = compiled.execution
    if (execution.input_type, execution.output_type) != ("uint8", "float32"):
        raise PipelineError(
            f"takes {execution.input_type} and gives {execution.output_type}, "
            "where raw pixels are uint8 and logits float32",
            where=_where(job),
            fix="report the network and the versions of the tools",
        )
    if not job.artifact.int8:
        return
    names = {layer.name for layer in execution.in_float}
    if rounded := [name for name in compiled.kept_float if name not in names]:
        raise PipelineError(
            f"asked to keep {', '.join(rounded)} in float, but the runtime computes it in int8",
            where=_where(job),
            fix="leave `float_layers` out of quantize.rungs",
        )
    stray = [layer for layer in execution.in_float if layer.name not in compiled.kept_float]
    share = sum(layer.macs for layer in stray) / execution.macs if execution.macs else 1.0
    if share > 1 - least:
        more = f" and {len(stray) - _NAMED} more" if len(stray) > _NAMED else ""
        raise PipelineError(
            f"asked for int8, but the runtime computes {share:.1%} of the multiply-accumulates in "
            f"float: {', '.join(map(str, stray[:_NAMED]))}{more}",
            where=_where(job),
            fix="leave int8 out of this backend's precisions, choose another network, or lower "
            "quantize.min_int8_share",
        )


def _finite_logits(
    spec: Backend, job: Job, model: Path, images: NDArray[np.uint8]
) -> NDArray[np.float32]:
    logits = logits_of(spec.load(model, os.cpu_count() or 1), images, label=_where(job))
    if not np.isfinite(logits).all():
        raise PipelineError("some logits are not finite numbers", where=_where(job))
    return logits


def _beside_float(
    job: Job, logits: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, Any]:
    """The figures of `CompiledMetrics` that `logits` and those of the float student give."""
    reference = np.load(ONNX / job.artifact.student / "test_logits.npy")
    if len(reference) != len(logits):
        raise PipelineError(
            "test_logits.npy belongs to another test split",
            where=str(ONNX / job.artifact.student),
            fix="run `dvc repro`",
        )
    same = agreement(logits, reference)
    if job.artifact.precision == "fp32" and same < MIN_FLOAT_AGREEMENT:
        raise PipelineError(
            f"agrees with torch on only {same:.1%} of the test images: the conversion is broken",
            where=_where(job),
            fix="report the network and the versions of the tools",
        )
    error = np.abs(logits - reference)
    lost, won = lost_and_won(logits, reference, labels)
    recall = Recall.of(logits, labels)
    return {
        "top1": recall.top1,
        "balanced_accuracy": recall.balanced,
        "recall": recall,
        "top1_drop": top1(reference, labels) - recall.top1,
        "agreement": same,
        "lost": lost,
        "won": won,
        "max_logit_error": float(error.max()),
        "mean_logit_error": float(error.mean()),
        "snr_db": signal_to_noise(logits, reference),
    }


def _record(
    job: Job, compiled: Compiled, inside: Inside, tools: dict[str, str], folder: Path
) -> ArtifactRecord:
    """Write artifact.json, the last file of the folder."""
    artifact, int8 = job.artifact, job.artifact.int8
    record = ArtifactRecord(
        **asdict(artifact),
        model_file=compiled.model_file,
        quantizer=f"{compiled.quantizer}; {job.recipe}" if int8 else compiled.quantizer,
        weights_digest=ModelCard.read_beside(job.weights).weights_digest,
        calibration_digest=job.manifest.calibration_digest if int8 else None,
        image_size=job.manifest.image_size,
        stored_size=job.manifest.stored_size,
        channels=job.manifest.channels,
        classes=job.manifest.classes,
        execution=compiled.execution,
        exact_input_images=inside.exact_input_images,
        micro=compiled.micro,
        versions=tools,
        digests={
            file.relative_to(folder).as_posix(): sha256(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        },
        notes=(*compiled.notes, *inside.notes),
    )
    record.write(folder / ARTIFACT_FILE)
    return record
