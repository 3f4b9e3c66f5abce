"""The stage `attribution`: where the teachers, a float student and its artifacts look."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.attribution.agreement import pearson
from pipeline.attribution.examples import Examples, choose
from pipeline.attribution.explain import Work, check_sanity, explain_artifact, explain_torch
from pipeline.attribution.gradcam import require_captum
from pipeline.attribution.networks import asked_artifacts, load_network
from pipeline.attribution.occlusion import Sample
from pipeline.attribution.params import AttributionParams
from pipeline.attribution.places import strips
from pipeline.attribution.records import (
    EXAMPLES_FILE,
    MAPS,
    MAPS_FILE,
    AttributionRecord,
    Explained,
    record_file,
    title,
)
from pipeline.backends.base.artifact import Artifact
from pipeline.compile.evidence import split_digest
from pipeline.core.files import sha256, whole_folder
from pipeline.data.packing import draw
from pipeline.data.records import PACKED, Manifest, load_calibration, load_split
from pipeline.networks.inference import set_up_torch
from pipeline.networks.records import TEACHERS
from pipeline.networks.shipped import shipped


def attribute(params: AttributionParams, student: str) -> AttributionRecord:
    """Stage `attribution@S`: metrics/attribution/S.json and models/attribution/S.

    Maps are of images of the test split that the seed draws, evenly by class. All maps of an image
    are about the class that the float student answers, so that they can be compared.

    Args:
        params: what the stage reads.
        student: the student S.

    Returns:
        What was recorded.

    Raises:
        PipelineError: where Captum is not installed, the patch does not fit the images, and for a
            network or artifact that is missing, damaged or of another run.
    """
    start = time.monotonic()
    require_captum()
    set_up_torch(params.seed)
    artifacts = asked_artifacts(params, student)
    manifest = Manifest.read(PACKED / "manifest.json")
    calibration = load_calibration(manifest)
    work = _prepare(params, student, manifest, calibration)
    own = explain_torch(work, "student", student, load_network(work.folder, manifest))
    networks = [
        explain_torch(work, "teacher", name, load_network(TEACHERS / name, manifest))
        for name in params.teachers.enabled
    ]
    networks.append(own)
    networks += [explain_artifact(work, *its) for its in artifacts.items()]
    sanity = check_sanity(work, networks, calibration, params.seed)
    with whole_folder(MAPS / student) as folder:
        _write_maps(work, folder)
        _examples(work, networks).write(folder / EXAMPLES_FILE)
        digests = tuple((name, sha256(folder / name)) for name in (MAPS_FILE, EXAMPLES_FILE))
    int8 = [its.occlusion for its in networks if its.occlusion and _is_int8(its)]
    record = AttributionRecord(
        images=len(work.sample),
        minutes=round((time.monotonic() - start) / 60, 2),
        int8_pearson=min((its.pearson.mean for its in int8 if its.pearson), default=None),
        int8_iou=min((its.iou.mean for its in int8 if its.iou), default=None),
        random_pearson=max(
            (its.pearson.mean for its in sanity[0].random if its.pearson), default=None
        ),
        settings=_settings(params),
        drawn=(split_digest(manifest), hashlib.sha256(work.sample.places.tobytes()).hexdigest()),
        networks=tuple(networks),
        sanity=sanity,
        digests=digests,
    )
    record.write(record_file(student))
    return record


def _prepare(
    params: AttributionParams, student: str, manifest: Manifest, calibration: NDArray[np.uint8]
) -> Work:
    """The images, and what is the same for all networks."""
    settings = params.attribution
    along = strips(manifest.image_size, settings.grid, settings.patch)
    images, labels = load_split(manifest.final)
    random = np.random.default_rng(params.seed)
    places = draw(labels, min(settings.images, len(labels)), random)
    fill = np.round(calibration.mean(axis=0)).astype(np.uint8)
    sample = Sample(images, places, labels[places], fill, along)
    noise = random.random((len(places), *(settings.grid,) * 2))
    folder = shipped(student, params.prune.enabled).folder
    return Work(settings, student, folder, sample, noise)


def _settings(params: AttributionParams) -> tuple[str, ...]:
    its = params.attribution
    return (
        f"grid {its.grid}", f"patch {its.patch:g}", f"seed {params.seed}",
        f"other reason below {its.other_reason:g}",
    )  # fmt: skip


def _is_int8(its: Explained) -> bool:
    return its.kind == "artifact" and Artifact.parse(its.name).int8


def _write_maps(work: Work, folder: Path) -> None:
    """maps.npz: `places` and `targets` [N], and by network and kind float32 [N, G, G]."""
    arrays: dict[str, NDArray[Any]] = {"places": work.sample.places, "targets": work.own.answers}
    maps = {f"occlusion/{name}": its.maps for name, its in work.looked.items()}
    maps |= {f"Grad-CAM/{name}": its for name, its in work.cams.items()}
    arrays |= {name: its.astype(np.float32) for name, its in maps.items()}
    np.savez_compressed(folder / MAPS_FILE, allow_pickle=False, **arrays)


def _examples(work: Work, networks: list[Explained]) -> Examples:
    """The images that the report shows, with the maps of all networks but float artifacts."""
    int8 = [its.name for its in networks if _is_int8(its) and its.name in work.looked]
    own, sample, settings = work.own, work.sample, work.settings
    count = len(sample)
    answers = np.array([work.looked[name].answers for name in int8], np.int64).reshape(-1, count)
    alike = np.array([pearson(work.looked[name].maps, own.maps) for name in int8])
    chosen = choose(
        own.answers, sample.labels, answers, alike.reshape(-1, count), settings.other_reason,
        settings.examples,
    )  # fmt: skip
    at = np.array([i for _, i in chosen], np.int64)
    teachers = [title(its.kind, its.name) for its in networks if its.kind == "teacher"]
    shown = [*teachers, work.float_student, *int8]
    looked = [work.looked[name] for name in shown]
    return Examples(
        kinds=np.array([kind for kind, _ in chosen], np.str_),
        places=sample.places[at],
        images=np.asarray(sample.images[sample.places[at]]),
        labels=sample.labels[at],
        names=np.array(shown, np.str_),
        maps=np.stack([its.maps[at].astype(np.float32) for its in looked], axis=1),
        answers=np.stack([its.answers[at] for its in looked], axis=1),
        confidence=np.stack([its.confidence[at].astype(np.float32) for its in looked], axis=1),
        strips=sample.strips,
    )
