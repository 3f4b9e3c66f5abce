"""Stage `bundle`: writes each compiled artifact as a folder that runs on a device by itself.

The scripts in on-device/ are copied into it. They are written for Python 3.8 and import nothing of
this package; the hyphen keeps Python from importing them as a part of it.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.artifact import BUNDLES, Artifact
from pipeline.backends.base.records import ARTIFACT_FILE, ArtifactRecord
from pipeline.backends.base.registry import backend
from pipeline.backends.base.spec import Backend
from pipeline.bundle.model_card import Lineage, model_card
from pipeline.bundle.params import BundleParams
from pipeline.bundle.records import Bundle, Golden, Preprocessing, Tolerances
from pipeline.compile.records import compiled_metrics
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256, whole_folder, write_whole
from pipeline.core.progress import track
from pipeline.data import images as image_files
from pipeline.data.records import PACKED, Arrays, Manifest, load_split
from pipeline.latency import harness
from pipeline.latency.fingerprint import read_fingerprint

GOLDEN_IMAGES = 32
SHARED = ("bench.py", "common.py", "run.py", "verify.py")
"""Scripts of every bundle, from on-device/."""
PAGE = Path(__file__).parent / "on-device" / "web"
"""The page of bundles whose backend has a runtime for browsers."""

_COPIED = {
    "input", "output", "image_size", "stored_size", "channels", "classes", "quantizer",
    "calibration_digest",
    "versions",
}  # fmt: skip
"""Fields that a bundle's record has from the artifact's."""

STEPS = (
    "turn the image as its EXIF orientation says",
    "scale 16 bits to 8",
    "put transparent images on white",
    "convert to {colour}",
    "unless it has that size: resize the shorter side to {resize} (bilinear, antialiased)",
    "cut out the centre of {size} x {size} pixels",
)


def write_bundles(params: BundleParams) -> list[Bundle]:
    """Write models/bundles/S-B-P/ for every enabled student, backend and precision.

    Nothing else stays in models/bundles. The same artifacts, test images and machine give the
    same bytes.

    Raises:
        PipelineError: for an artifact that is missing, changed or of other data than data/packed,
            and for a runtime that cannot run here.
    """
    manifest = Manifest.read(PACKED / "manifest.json")
    images, labels = load_split("test")
    chosen = golden_indices(len(images))
    tests = (np.ascontiguousarray(images[chosen]), labels[chosen])
    asked = params.backends.artifacts(params.students.enabled)
    lineages = {student: Lineage.read(student, params) for student in params.students.enabled}
    written = []
    with whole_folder(BUNDLES) as scratch:
        for artifact in track(asked, "bundle", len(asked), "bundles"):
            folder = scratch / artifact.bundle.name
            folder.mkdir()
            lineage = lineages[artifact.student]
            written.append(_write_bundle(artifact, lineage, manifest, tests, folder))
    return written


def golden_indices(images: int) -> NDArray[np.int64]:
    """Indices int64 [n] of at most 32 out of `images` test images, evenly spread."""
    count = min(GOLDEN_IMAGES, images)
    return np.linspace(0, images - 1, count).round().astype(np.int64)


def _write_bundle(
    artifact: Artifact, lineage: Lineage, manifest: Manifest, tests: Arrays, folder: Path
) -> Bundle:
    its, compiled = backend(artifact.backend), artifact.folder
    record = _record(compiled, manifest)
    metrics = compiled_metrics(artifact)
    images, labels = tests
    logits, answered_by = _answers(its, compiled / record.model_file, images)
    np.savez(folder / "golden.npz", images=images, labels=labels, logits=logits)
    digests = {f: digest for f, digest in record.digests.items() if f not in its.device_built}
    for file in digests:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(compiled / file, folder / file)
    bundle = Bundle(
        **asdict(artifact),
        **record.model_dump(include=_COPIED),
        model_file=its.portable or record.model_file,
        install=its.install(),
        proven=dict(its.proven),
        digests=digests,
        top1=metrics.top1,
        top1_drop=metrics.top1_drop,
        test_images=metrics.images,
        evaluated_with=metrics.evaluated_with,
        golden=Golden(images=len(images), answered_by=answered_by, cpu=read_fingerprint().cpu),
        tolerances=tolerances(its, artifact.precision, logits),
    )
    bundle.write(folder / "bundle.json")
    _preprocessing(record).write(folder / "preprocess.json")
    write_whole(folder / "labels.txt", "".join(f"{label}\n" for label in record.classes))
    card = model_card(bundle, record, metrics, manifest, lineage)
    write_whole(folder / "README.md", card)
    _copy_scripts(its, folder)
    its.add_files(record, folder)
    _write_sums(folder)
    return bundle


def _record(folder: Path, manifest: Manifest) -> ArtifactRecord:
    """The record of a compiled folder, checked against its files and the data."""
    artifact, where = ArtifactRecord.read_whole(folder), str(folder / ARTIFACT_FILE)
    for field in ("classes", "image_size", "stored_size", "channels"):
        own, packed = getattr(artifact, field), getattr(manifest, field)
        if own != packed:
            what = f"{field}: {own}, but {packed} in {PACKED}"
            raise PipelineError(what, where=where, fix="run `dvc repro`")
    for label in artifact.classes:
        if len(label.splitlines()) != 1:
            what = f"the class name {label!r} is not one line of labels.txt"
            raise PipelineError(what, where=where, fix="rename the class in the data")
    return artifact


def _answers(
    its: Backend, model: Path, images: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], str]:
    """Logits float32 [N, classes], computed one by one as on the device, and the runtime."""
    answered_by = its.evaluator()
    if answered_by is None:
        raise PipelineError(
            f"{its.title} is not installed: its answers cannot be bundled",
            where=str(model),
            fix="`python -m pipeline doctor` prints the command that installs it",
        )
    run = its.load(model, threads=1, batch=1)
    logits = np.concatenate([run(images[i : i + 1]) for i in range(len(images))])
    if not np.isfinite(logits).all():
        raise PipelineError("some logits are not finite numbers", where=str(model))
    return logits, answered_by


def tolerances(its: Backend, precision: str, logits: NDArray[np.float32]) -> Tolerances:
    """The backend's relative tolerances in units of the recorded `logits` [N, classes]."""
    relative = its.tolerances[precision]
    scale = float(np.abs(logits).max())
    return Tolerances(
        min_same_argmax=relative.min_same_argmax,
        max_logit_error=float(f"{relative.max_error * scale:.3g}"),
        mean_logit_error=float(f"{relative.mean_error * scale:.3g}"),
        reason=relative.reason,
    )


def _preprocessing(artifact: ArtifactRecord) -> Preprocessing:
    colour: Literal["grey", "RGB"] = "grey" if artifact.channels == 1 else "RGB"
    size, resize = artifact.image_size, artifact.stored_size
    return Preprocessing(
        size=size,
        resize=resize,
        channels=artifact.channels,
        colour=colour,
        steps=tuple(step.format(colour=colour, size=size, resize=resize) for step in STEPS),
    )


def _copy_scripts(its: Backend, folder: Path) -> None:
    scripts = {name: Path(__file__).parent / "on-device" / name for name in SHARED}
    scripts |= {"harness.py": Path(harness.__file__), "pixels.py": Path(image_files.__file__)}
    scripts |= its.bundle_files()
    if "web/runtime.js" in scripts:
        scripts |= {f"web/{file.name}": file for file in PAGE.iterdir() if file.is_file()}
    for target, source in scripts.items():
        (folder / target).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, folder / target)


def _write_sums(folder: Path) -> None:
    """SHA256SUMS of every other file, as `sha256sum --check` reads it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    lines = [f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    write_whole(folder / "SHA256SUMS", "".join(lines))
