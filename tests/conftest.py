"""What several rooms' tests share: a project folder with one tiny, real, compiled student in
it, and a disk that is soon full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.job import Job
from pipeline.backends.base.records import ArtifactRecord, ExecutionReport
from pipeline.backends.base.registry import backend, backend_names
from pipeline.backends.base.spec import Backend, versions
from pipeline.backends.tflite import convert as tflite_convert
from pipeline.cli.params import Params, load_params
from pipeline.compile.evidence import Evidence
from pipeline.compile.records import CompiledMetrics
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256, write_whole
from pipeline.core.patches import no_reports
from pipeline.core.records import METRICS
from pipeline.data.recall import Recall
from pipeline.data.records import PACKED, Manifest
from pipeline.latency.records import LATENCIES
from pipeline.networks.records import WEIGHTS, ModelCard, Normalisation
from pipeline.training.records import ModelMetrics, curve_files
from tests.sharing import locked, of_all_workers

PARAMS = Path(__file__).parents[1] / "params.yaml"
COLOURS = ("red", "green", "blue")
SIZE = 8
STUDENT = "mnv4_small_050"
RUNTIMES = {"onnxruntime": "onnxruntime 1.32.0", "tensorrt": "onnxruntime 1.32.0 on the same graph"}

EXECUTION = ExecutionReport(
    macs=0,
    in_float=(),
    per_channel=None,
    partitions=None,
    input_type="uint8",
    output_type="float32",
)
"""Of a classifier that only takes means."""


def pytest_configure() -> None:
    """As for every command: no library reports to its maker."""
    no_reports()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The whole pipeline first: it takes longest, and two workers should end together."""
    items.sort(key=lambda item: item.path.name != "test_smoke.py")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is asked of a backend whose packages, an optional extra, are not installed."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    for value in (given.get("name"), given.get("its")):
        its = backend(value) if value in backend_names() else value
        if not isinstance(its, Backend):
            continue
        try:
            versions(its.packages)
        except PipelineError as error:
            pytest.skip(f"{error.what}: pip install '.[{its.name}]'")


@pytest.fixture(scope="session", autouse=True)
def conversions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Conversions to LiteRT, a second or more each, are made once for all workers.

    One at a time, as two would take twice as long.
    """
    root = of_all_workers(tmp_path_factory) / "converted"
    once = tflite_convert.Conversions._once

    def shared(
        its: tflite_convert.Conversions, job: Job, kind: str, make: Callable[[Job], bytes]
    ) -> bytes:
        file = root / f"{tflite_convert.conversion_key(job, kind)}.tflite"
        with locked(root.with_suffix(".lock")):
            if not file.exists():
                write_whole(file, once(its, job, kind, make))
        return file.read_bytes()

    with patch.object(tflite_convert.Conversions, "_once", shared):
        yield


def brightest_channel() -> onnx.ModelProto:
    """A classifier of colours: each logit is the mean of one channel, (x - 128) / 64."""
    values = {
        "centre": np.float32(128),
        "scale": np.float32(1 / 64),
        "axes": np.array([1, 2], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "centre"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["normalised"]),
        helper.make_node("ReduceMean", ["normalised", "axes"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "brightest_channel",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """The current folder holds what `benchmark`, `report` and `predict` read."""
    monkeypatch.chdir(tmp_path)
    return fill_workspace()


def fill_workspace() -> Params:
    """One student, at fp32 for ONNX Runtime and at fp16 for TensorRT, in the current folder."""
    tree = yaml.safe_load(PARAMS.read_text())
    precisions = {"onnxruntime": ["fp32"], "tensorrt": ["fp16"]}
    tree["students"]["enabled"] = [STUDENT]
    tree["backends"] = {"enabled": list(precisions)} | {
        name: {"precisions": asked} for name, asked in precisions.items()
    }
    tree["benchmark"] = {"threads": 1, "rounds": 3, "min_runs": 5, "min_seconds": 0.005}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    params = load_params()
    _write_data()
    for artifact in params.backends.artifacts(params.students.enabled):
        _write_artifact(artifact)
    write_training("teachers", params.teachers.enabled[0])
    write_training("students", STUDENT)
    return params


def _write_data() -> None:
    PACKED.mkdir(parents=True)
    labels = np.arange(30) % 3
    images = np.random.default_rng(0).integers(0, 100, (30, SIZE, SIZE, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[..., label] += 100
    np.save(PACKED / "test_images.npy", images)
    np.save(PACKED / "test_labels.npy", labels)
    counts = dict.fromkeys(COLOURS, 10)
    Manifest(
        source="three colours",
        licence="none",
        classes=COLOURS,
        image_size=SIZE,
        stored_size=SIZE,
        channels=3,
        counts={"train": counts, "val": counts, "test": counts},
        digests={
            f"test_{part}.npy": sha256(PACKED / f"test_{part}.npy") for part in ("images", "labels")
        },
        calibration_digest="c" * 64,
        mean=(128.0,) * 3,
        std=(64.0,) * 3,
        rejected=(),
    ).write(PACKED / "manifest.json")


def _write_artifact(artifact: Artifact) -> None:
    folder = artifact.folder
    folder.mkdir(parents=True)
    onnx.save(brightest_channel(), folder / "model.onnx")
    record = ArtifactRecord(
        student=artifact.student,
        backend=artifact.backend,
        precision=artifact.precision,
        model_file="model.onnx",
        quantizer=None,
        weights_digest="e" * 64,
        calibration_digest=None,
        image_size=SIZE,
        stored_size=SIZE,
        channels=3,
        classes=COLOURS,
        execution=EXECUTION,
        versions={"onnx": onnx.__version__},
        digests={"model.onnx": sha256(folder / "model.onnx")},
    )
    record.write(folder / "artifact.json")
    manifest = Manifest.read(PACKED / "manifest.json")
    labels = np.load(PACKED / "test_labels.npy")
    logits = 5 * np.eye(3, dtype=np.float32)[labels]
    Evidence.of(record, manifest, logits, labels).write(artifact.evidence)
    metrics = flawless(folder / "model.onnx", 0.0, RUNTIMES[artifact.backend])
    metrics.model_copy(update={"digests": record.digests}).write(artifact.metrics)


def write_latencies(medians_ms: dict[str, float]) -> None:
    """120 latencies around each median, of the reference and artifacts by `S/B/P`."""
    LATENCIES.parent.mkdir(parents=True, exist_ok=True)
    spread = np.linspace(-0.3, 0.5, 120) ** 3 + 1
    np.savez(
        LATENCIES,
        **{f"{key}/ns": (1e6 * p50 * spread).astype(np.int64) for key, p50 in medians_ms.items()},
    )


def flawless(model: Path, int8_mac_share: float, runtime: str) -> CompiledMetrics:
    """The metrics of an artifact that answers exactly as its float student does."""
    return CompiledMetrics(
        top1=1.0,
        balanced_accuracy=1.0,
        recall=Recall(images=(10,) * 3, right=(10,) * 3),
        top1_drop=0.0,
        agreement=1.0,
        lost=0,
        won=0,
        max_logit_error=0.0,
        mean_logit_error=0.0,
        snr_db=None,
        images=30,
        size_bytes=model.stat().st_size,
        int8_mac_share=int8_mac_share,
        evaluated_with=runtime,
    )


def write_training(kind: str, name: str) -> None:
    """The card, metrics and curve of a network, with a file in place of its weights."""
    folder = Path("models") / kind / name
    write_whole(folder / WEIGHTS, "weights")
    ModelCard(
        arch="resnet10t", args={}, stem_stride="auto", stem_pool="auto", image_size=SIZE,
        input_size=SIZE, channels=3, classes=COLOURS,
        normalisation=Normalisation(mean=(128.0,) * 3, std=(64.0,) * 3), parameters=1234, seed=0,
        epochs=3, best_epoch=2, val_top1=0.9, data_digest="d" * 64, versions={},
        weights_digest=sha256(folder / WEIGHTS),
    ).write(folder / "card.json")  # fmt: skip
    curves = curve_files(name)
    for field, file in curves.items():
        lines = ["step\t" + field, *(f"{step}\t{0.5 / (step + 1)}" for step in range(3))]
        write_whole(file, "\n".join(lines) + "\n")
    digests = tuple(map(sha256, curves.values()))
    recall = Recall(images=(10,) * 3, right=(10, 9, 5))
    metrics = ModelMetrics(val_top1=0.9, top1=0.8, recall=recall, parameters=1234, curves=digests)
    metrics.write(METRICS / kind / f"{name}.json")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)
