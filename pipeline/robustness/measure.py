"""The stage `robustness`: a student, its teachers and its artifacts on changed test images."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ArtifactRecord
from pipeline.backends.base.registry import backend
from pipeline.compile.evidence import split_digest
from pipeline.core.errors import PipelineError
from pipeline.data.records import MANIFEST, PACKED, Manifest, load_split
from pipeline.export.evaluate import Runner
from pipeline.networks.inference import predict, set_up_torch, training_device
from pipeline.networks.pixels import PixelsToLogits
from pipeline.networks.records import TEACHERS, ModelCard
from pipeline.networks.shipped import shipped
from pipeline.networks.weights import check_card, load_pixels_to_logits
from pipeline.robustness.adversarial import Attacker
from pipeline.robustness.answers import Drawn, ask, figures
from pipeline.robustness.autoattack import attacks_for, require_autoattack
from pipeline.robustness.corruptions import CORRUPTIONS
from pipeline.robustness.params import Robustness, RobustnessParams
from pipeline.robustness.records import (
    AUTOATTACK,
    FGSM,
    PGD,
    STUDENT,
    ArtifactRow,
    Protocol,
    RobustnessRecord,
    record_file,
)


def measure(params: RobustnessParams, student: str) -> RobustnessRecord:
    """Stage `robustness@S`: write metrics/robustness/S.json.

    Corrupted images are the same for all networks. Adversarial ones are made on the float student
    and given to all. An artifact that cannot run here gets the status `not_measured`, one that its
    runtime does not open `failed`, each with its reason. Nothing is chosen by what is measured.

    Args:
        params: which artifacts, images and attacks.
        student: the student S.

    Returns:
        What was recorded.

    Raises:
        PipelineError: for weights, artifacts or data that are missing, damaged or of another run,
            logits that are not finite, and AutoAttack without its package.
    """
    settings = params.robustness
    versions = require_autoattack() if settings.autoattack else {}
    versions |= {name: importlib.metadata.version(name) for name in ("torch", "pillow", "scipy")}
    set_up_torch(params.seed)
    manifest = Manifest.read(PACKED / MANIFEST)
    pixels, labels = load_split(manifest.final)
    drawn = Drawn(draw(len(labels), settings.images, params.seed), pixels, labels)
    model, card = _network(shipped(student, params.prune.enabled).folder, manifest)
    teachers = {f"teacher/{name}": name for name in params.teachers.enabled}
    networks = {STUDENT: _runner(model)}
    networks |= {
        key: _runner(_network(TEACHERS / name, manifest)[0]) for key, name in teachers.items()
    }
    opened = {
        artifact.key: _opened(artifact, card) for artifact in params.backends.artifacts((student,))
    }
    networks |= {key: runner for key, (_, runner) in opened.items() if runner is not None}
    attacks = (FGSM, PGD, *((AUTOATTACK,) if settings.autoattack else ()))
    attacker = Attacker(model, settings.attack, params.seed)
    answers = ask(networks, drawn, settings.strengths, attacks, attacker, params.seed)
    references = {STUDENT: STUDENT, **teachers}
    found = figures(answers, list(networks), settings.strengths, references)
    record = RobustnessRecord(
        test_digest=split_digest(manifest),
        images=len(drawn.numbers),
        of_images=len(labels),
        protocol=_protocol(settings, params.seed),
        autoattack=attacks_for(len(manifest.classes)) if settings.autoattack else (),
        versions=versions,
        unrounded=answers.unrounded,
        student=found[STUDENT],
        teachers={name: found[key] for key, name in teachers.items()},
        artifacts={
            key: row.model_copy(update={"measured": found.get(key)})
            for key, (row, _) in opened.items()
        },
    )
    record.write(record_file(student))
    return record


def _protocol(settings: Robustness, seed: int) -> Protocol:
    return Protocol(
        seed=seed,
        strengths=settings.strengths,
        corruptions=tuple(CORRUPTIONS),
        **settings.attack.model_dump(),
    )


def draw(size: int, images: int | None, seed: int) -> NDArray[np.int64]:
    """Numbers of images of a split, ascending: as many as are asked for, or all of them.

    Args:
        size: images in the split.
        images: how many are drawn; None: all.
        seed: of the draw.
    """
    if images is None or images >= size:
        return np.arange(size)
    return np.sort(np.random.default_rng(seed).choice(size, images, replace=False))


def _network(folder: Path, manifest: Manifest) -> tuple[PixelsToLogits, ModelCard]:
    model, card = load_pixels_to_logits(folder)
    check_card(card, manifest, folder)
    return model.requires_grad_(False).to(training_device()), card


def _runner(model: PixelsToLogits) -> Runner:
    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = predict(model, images).numpy()
        return logits

    return run


def _opened(artifact: Artifact, card: ModelCard) -> tuple[ArtifactRow, Runner | None]:
    """Its row without figures, and the artifact in its runtime; None where that is impossible."""
    record, spec = ArtifactRecord.read_whole(artifact.folder), backend(artifact.backend)
    if record.weights_digest != card.weights_digest:
        raise PipelineError(
            "was compiled from other weights than the student has now",
            where=str(artifact.folder),
            fix=f"run `dvc repro compile@{artifact.backend}-{artifact.student}`",
        )
    evaluator = spec.evaluator()
    row = ArtifactRow(status="measured", evaluated_with=evaluator, digests=record.digests)
    if evaluator is None:
        changes = {"status": "not_measured", "reason": spec.unmeasurable()}
        return row.model_copy(update=changes), None
    try:
        return row, spec.load(artifact.folder / record.model_file, os.cpu_count() or 1)
    except PipelineError as error:
        changes = {"status": "failed", "reason": error.what, "evaluated_with": None}
        return row.model_copy(update=changes), None
