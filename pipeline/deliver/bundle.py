"""Stage `bundle`: a compiled artifact becomes a folder that a device needs nothing beside.

What runs on the device lies in on-device/ and is copied as it is. It is written for Python 3.8
and imports nothing of this package; the hyphen keeps the folder from being part of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base import Backend, versions
from pipeline.backends.registry import backend
from pipeline.contracts import (
    BUNDLES,
    PACKED,
    Artifact,
    CompiledMetrics,
    Manifest,
    artifact_folder,
    bundle_folder,
    compiled_metrics_file,
    load_split,
)
from pipeline.deliver.bundle_record import Bundle, Golden, Preprocessing, Tolerances
from pipeline.deliver.model_card import Lineage, model_card
from pipeline.errors import PipelineError
from pipeline.files import sha256, whole_folder, write_whole
from pipeline.measure import latency
from pipeline.measure.fingerprint import read_fingerprint
from pipeline.params import Params
from pipeline.progress import track

GOLDEN_IMAGES = 32
SHARED = (
    "on-device/bench.py",
    "on-device/common.py",
    "on-device/pixels.py",
    "on-device/run.py",
    "on-device/verify.py",
)
OWN = {
    "onnxruntime": {"runtime.py": "on-device/runtime_onnxruntime.py"},
    "openvino": {"runtime.py": "on-device/runtime_openvino.py"},
    "tflite": {
        "runtime.py": "on-device/runtime_tflite.py",
        "phone.py": "on-device/phone.py",
        "examples/Classifier.kt": "on-device/examples/Classifier.kt",
        "examples/Classifier.swift": "on-device/examples/Classifier.swift",
        "examples/classifier.cc": "on-device/examples/classifier.cc",
        "examples/decode.h": "on-device/examples/decode.h",
        "examples/preprocess.h": "on-device/examples/preprocess.h",
    },
    "tensorrt": {
        "runtime.py": "on-device/runtime_tensorrt.py",
        "build_engine.py": "on-device/build_engine.py",
        "graph.py": "on-device/runtime_onnxruntime.py",
    },
}
"""Source by name in the bundle, of what one backend needs and others don't."""
ENGINE = "model.engine"
PORTABLE = "model.onnx"
"""What TensorRT builds an engine from. Engines are not shipped: they fit one GPU only."""

STEPS = (
    "turn the image as its EXIF orientation says",
    "scale 16 bits to 8",
    "put transparent images on white",
    "convert to {colour}",
    "unless it has that size: resize the shorter side to {size} (bilinear, antialiased) and cut "
    "out the centre",
)


def write_bundles(params: Params) -> list[Bundle]:
    """models/bundles/S-B-P/ for every enabled student, backend and precision.

    Nothing else stays in models/bundles. The same artifacts, test images and machine give the
    same bytes. Raises `PipelineError` for an artifact that is missing, changed or of other data
    than data/packed, and for a runtime that cannot run here.
    """
    manifest = Manifest.read(PACKED / "manifest.json")
    images, labels = load_split("test")
    chosen = golden_indices(len(images))
    tests = (np.ascontiguousarray(images[chosen]), labels[chosen])
    asked = [(s, b, p) for s in params.students.enabled for b, p in params.backends.pairs()]
    lineages = {student: Lineage.read(student, params) for student in params.students.enabled}
    written = []
    with whole_folder(BUNDLES) as scratch:
        for student, name, precision in track(asked, "bundle", len(asked), "bundles"):
            folder = scratch / bundle_folder(student, name, precision).name
            folder.mkdir()
            lineage = lineages[student]
            written.append(_write_bundle(lineage, name, precision, manifest, tests, folder))
    return written


def golden_indices(images: int) -> NDArray[np.int64]:
    """Indices int64 [n] of at most 32 out of `images` test images, evenly spread."""
    count = min(GOLDEN_IMAGES, images)
    return np.linspace(0, images - 1, count).round().astype(np.int64)


def _write_bundle(
    lineage: Lineage,
    name: str,
    precision: str,
    manifest: Manifest,
    tests: tuple[NDArray[np.uint8], NDArray[np.int64]],
    folder: Path,
) -> Bundle:
    student = lineage.student.name
    compiled = artifact_folder(student, name, precision)
    artifact = _artifact(compiled, manifest)
    metrics = CompiledMetrics.read(compiled_metrics_file(student, name, precision))
    images, labels = tests
    logits, answered_by = _answers(backend(name), compiled / artifact.model_file, images)
    np.savez(folder / "golden.npz", images=images, labels=labels, logits=logits)
    digests = {file: digest for file, digest in artifact.digests.items() if file != ENGINE}
    for file in digests:
        shutil.copyfile(compiled / file, folder / file)
    bundle = Bundle(
        student=student,
        backend=name,
        precision=precision,
        model_file=PORTABLE if artifact.model_file == ENGINE else artifact.model_file,
        input=artifact.input,
        output=artifact.output,
        image_size=artifact.image_size,
        channels=artifact.channels,
        classes=artifact.classes,
        install=_install(name),
        quantizer=artifact.quantizer,
        calibration_digest=artifact.calibration_digest,
        versions=artifact.versions,
        digests=digests,
        top1=metrics.top1,
        top1_drop=metrics.top1_drop,
        test_images=metrics.images,
        evaluated_with=metrics.evaluated_with,
        golden=Golden(images=len(images), answered_by=answered_by, cpu=read_fingerprint().cpu),
        tolerances=tolerances(name, precision, logits),
    )
    bundle.write(folder / "bundle.json")
    _preprocessing(artifact).write(folder / "preprocess.json")
    write_whole(folder / "labels.txt", "".join(f"{label}\n" for label in artifact.classes))
    card = model_card(bundle, artifact, metrics, manifest, lineage)
    write_whole(folder / "README.md", card)
    _copy_scripts(name, folder)
    _write_sums(folder)
    return bundle


def _artifact(folder: Path, manifest: Manifest) -> Artifact:
    """The record of a compiled folder whose files are those that were compiled."""
    artifact = Artifact.read_whole(folder)
    for field in ("classes", "image_size", "channels"):
        if getattr(artifact, field) != getattr(manifest, field):
            raise PipelineError(
                f"{field}: {getattr(artifact, field)}, but {getattr(manifest, field)} in {PACKED}",
                where=str(folder / "artifact.json"),
                fix="run `dvc repro`",
            )
    for label in artifact.classes:
        if len(label.splitlines()) != 1:
            raise PipelineError(
                f"the class name {label!r} is not one line of labels.txt",
                where=str(folder / "artifact.json"),
                fix="rename the class in the data",
            )
    return artifact


def _answers(
    runtime: Backend, model: Path, images: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], str]:
    """Logits float32 [N, classes] of the images, one by one as on the device, and by whom."""
    answered_by = runtime.evaluator()
    if answered_by is None:
        raise PipelineError(
            f"{runtime.name} is not installed: its answers cannot be bundled",
            where=str(model),
            fix="`python -m pipeline doctor` prints the command that installs it",
        )
    run = runtime.load(model, threads=1)
    logits = np.concatenate([run(images[i : i + 1]) for i in range(len(images))])
    if not np.isfinite(logits).all():
        raise PipelineError("some logits are not finite numbers", where=str(model))
    return logits, answered_by


def tolerances(name: str, precision: str, logits: NDArray[np.float32]) -> Tolerances:
    """What another machine may differ by, for golden `logits` [N, classes].

    Shares of the largest golden logit, from what was seen between kernels: float32 2e-6; int8
    0.07 at most and 0.012 in the mean; int8 that overflows on x86 without VNNI, which is a
    defect, 0.11 to 0.25.
    """
    if precision == "int8":
        same, largest, mean = 0.9, 0.12, 0.02
        reason = (
            "int8 kernels round differently on other CPUs, GPUs and versions, and one step of "
            "rounding grows through the layers; products that overflow lie beyond this"
        )
    elif name == "tensorrt":
        same, largest, mean = 0.9, 0.02, 0.004
        reason = "half floats have 11 bits, and the engine adds them in an order of its own"
    else:
        same, largest, mean = 0.96, 2e-4, 5e-5
        reason = (
            "float32 sums differ by their order, about 1e-6; bfloat16 and half floats, which "
            "some runtimes take unasked, lie beyond this"
        )
    scale = float(np.abs(logits).max())
    return Tolerances(
        min_same_argmax=same,
        max_logit_error=float(f"{largest * scale:.3g}"),
        mean_logit_error=float(f"{mean * scale:.3g}"),
        reason=reason,
    )


def _install(name: str) -> dict[str, tuple[str, ...]]:
    """Commands that install what runtime.py imports, at the version that answered here; for
    TensorRT also what graph.py imports."""

    def pinned(package: str) -> str:
        return f"pip install {package}=={versions((package,))[package]}"

    if name == "tensorrt":
        engine = ("pip install 'tensorrt>=10.3'", "pip install tensorrt-rtx-cu13")
        return {"runtime": engine, "graph": (pinned("onnxruntime"),)}
    if name == "tflite":
        old = "pip install tflite-runtime==2.14.0 'numpy<2'"  # the last, for Python up to 3.11
        return {"runtime": (pinned("ai-edge-litert"), old)}
    return {"runtime": (pinned(name),)}


def _preprocessing(artifact: Artifact) -> Preprocessing:
    colour: Literal["grey", "RGB"] = "grey" if artifact.channels == 1 else "RGB"
    return Preprocessing(
        size=artifact.image_size,
        channels=artifact.channels,
        colour=colour,
        steps=tuple(step.format(colour=colour, size=artifact.image_size) for step in STEPS),
    )


def _copy_scripts(name: str, folder: Path) -> None:
    here = Path(__file__).parent
    for source in SHARED:
        shutil.copyfile(here / source, folder / Path(source).name)
    for target, source in OWN[name].items():
        (folder / target).parent.mkdir(exist_ok=True)
        shutil.copyfile(here / source, folder / target)
    shutil.copyfile(latency.__file__, folder / "latency.py")


def _write_sums(folder: Path) -> None:
    """SHA256SUMS of every other file, as `sha256sum --check` reads it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    lines = [f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    write_whole(folder / "SHA256SUMS", "".join(lines))
