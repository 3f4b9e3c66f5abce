"""The examples of docs/extending.md work as they stand there, from packages of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ArtifactRecord
from pipeline.bundle.records import Bundle
from pipeline.compile.records import METRICS_FILE, CompiledMetrics
from pipeline.core.files import sha256
from pipeline.core.params import _merge
from pipeline.data.records import CALIBRATION, PACKED, Manifest
from pipeline.export.records import ONNX
from pipeline.networks.records import STUDENTS
from pipeline.networks.weights import load_pixels_to_logits
from pipeline.training.records import ModelMetrics
from tests.conftest import PARAMS, STUDENT, write_training
from tests.sharing import describe
from tests.students import CHANNELS, CLASSES, SIZE, draw, student_folder

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILE = re.compile(r"^`(?P<path>[\w./-]+)`:\n\n```\w+\n(?P<text>.*?)^```$", re.M | re.S)
PARAMS_SNIPPET = re.compile(r"^In `params.yaml`.*?```yaml\n(.*?)^```$", re.M | re.S)
PACKAGES = ("edgestill-huber", "edgestill-onnx-reference", "edgestill-csv", "edgestill-ends")

Run = Callable[..., str]


def section(package: str) -> str:
    """The part of the page that shows a package."""
    (found,) = (part for part in PAGE.split("\n## ") if f"`{package}/pyproject.toml`" in part)
    return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Run]:
    """Install a package as pip would, work in an empty folder with its params, and run Python."""

    def install(package: str) -> Run:
        target = tmp_path / "packages"
        files = {m["path"]: m["text"] for m in FILE.finditer(section(package))}
        for name, text in files.items():
            file = target / Path(name).relative_to(package)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        project = tomllib.loads(files[f"{package}/pyproject.toml"])["project"]
        information = target / f"{package.replace('-', '_')}-{project['version']}.dist-info"
        information.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {project['version']}\n"
        (information / "METADATA").write_text(metadata)
        lines = []
        for group, points in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
        (information / "entry_points.txt").write_text("\n".join(lines))

        workspace = tmp_path / "workspace"
        workspace.mkdir()
        monkeypatch.chdir(workspace)
        change_params(yaml.safe_load(PARAMS_SNIPPET.search(section(package))[1]))
        path = os.pathsep.join([str(target), str(ROOT)])

        def python(*arguments: object, **environment: str) -> str:
            done = subprocess.run(
                [sys.executable, *map(str, arguments)],
                env=os.environ | {"PYTHONPATH": path} | environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        return python

    return install


def change_params(changes: dict[str, Any]) -> None:
    """Write params.yaml, the project's with changes, into the current folder."""
    file = Path("params.yaml")
    tree = yaml.safe_load((file if file.exists() else PARAMS).read_text())
    file.write_text(yaml.safe_dump(_merge(tree, changes)))


@pytest.fixture
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], None]:
    """Fills the current folder with all that compiling and bundling a small student needs."""
    made = student_folder("relu", tmp_path_factory)

    def fill() -> None:
        for folder in (STUDENTS / STUDENT, ONNX / STUDENT):
            shutil.copytree(made, folder)
        PACKED.mkdir(parents=True)
        CALIBRATION.mkdir(parents=True)
        calibration, _ = draw(64, seed=3)
        np.save(CALIBRATION / "images.npy", calibration)
        for seed, split in ((4, "val"), (5, "test")):
            for part, array in zip(("images", "labels"), draw(60, seed), strict=True):
                np.save(PACKED / f"{split}_{part}.npy", array)
        images, labels = (np.load(PACKED / f"test_{part}.npy") for part in ("images", "labels"))
        model, card = load_pixels_to_logits(made)
        with torch.no_grad():
            np.save(ONNX / STUDENT / "test_logits.npy", model(torch.from_numpy(images)).numpy())
        counts = dict(zip(CLASSES, np.bincount(labels).tolist(), strict=True))
        Manifest(
            source="drawn", licence="none", classes=CLASSES, image_size=SIZE,
            stored_size=SIZE, channels=CHANNELS,
            counts=dict.fromkeys(("train", "val", "test"), counts),
            digests={file.name: sha256(file) for file in PACKED.iterdir()},
            calibration_digest=sha256(CALIBRATION / "images.npy"),
            mean=(0.0,) * 3, std=(1.0,) * 3, rejected=(),
        ).write(PACKED / "manifest.json")  # fmt: skip
        describe()
        metrics = ModelMetrics(val_top1=card.val_top1, top1=1.0, parameters=card.parameters)
        metrics.write(Path("metrics/students") / f"{STUDENT}.json")
        write_training("teachers", "resnet")
        change_params({"students": {"enabled": [STUDENT]}})

    return fill


def test_the_page_shows_these_packages() -> None:
    shown = {Path(match["path"]).parts[0] for match in FILE.finditer(PAGE)}
    assert shown == set(PACKAGES)


def test_a_loss_of_another_package_trains_a_student_from_params(run: Callable[[str], Run]) -> None:
    python = run("edgestill-huber")
    python("-c", "from tests.test_extending import train_a_step; train_a_step()")


def train_a_step() -> None:
    """In a process that has the package: the loss of params.yaml moves the student."""
    from pipeline.cli.params import load_params
    from pipeline.core.errors import PipelineError
    from pipeline.distill.losses.registry import find_loss
    from tests.distill.conftest import distillation, split

    terms = load_params().distill.losses
    objective = distillation(terms).train()
    images, labels = (torch.from_numpy(array[:32]) for array in split(1))
    optimizer = torch.optim.SGD(objective.model.parameters(), lr=0.01)
    values = []
    for _ in range(8):
        found = objective(images, labels)
        assert list(found) == ["huber", "cross_entropy"]
        values.append(found["huber"].item())
        optimizer.zero_grad()
        sum(found.values()).backward()
        optimizer.step()
    assert values[-1] < values[0]
    wrong = terms[0].model_copy(update={"options": {"delta": 0.0}})
    with pytest.raises(PipelineError, match="`delta` of `huber` must be above 0"):
        find_loss(wrong)


def test_a_backend_of_another_package_compiles_and_ships_a_bundle_that_verifies_itself(
    run: Callable[[str], Run], exported: Callable[[], None]
) -> None:
    python = run("edgestill-onnx-reference")
    exported()
    change_params({"backends": {"enabled": ["onnx_reference"]}})
    python("-m", "stages.compile", "--backend", "onnx_reference", "--student", STUDENT)
    python("-m", "stages.collect")
    artifact = Artifact(STUDENT, "onnx_reference", "fp32")
    metrics = CompiledMetrics.read(artifact.metrics)
    assert metrics.agreement == 1 and metrics.evaluated_with.startswith("onnx ")
    assert ArtifactRecord.read_whole(artifact.folder).execution.macs > 0

    python("-m", "stages.bundle")
    bundle = Bundle.read(artifact.bundle / "bundle.json")
    assert bundle.backend == "onnx_reference"
    assert "PASSED" in python(artifact.bundle / "verify.py", PYTHONPATH="")
    assert "ONNX reference" in (artifact.bundle / "README.md").read_text()


def test_a_source_of_another_package_fetches_and_prepares_images(
    run: Callable[[str], Run], tmp_path: Path
) -> None:
    python = run("edgestill-csv")
    images = tmp_path / "images"
    images.mkdir()
    lines = ["file,label,split"]
    for i in range(40):
        label, split = ("dark", "bright")[i % 2], "train" if i < 28 else "test"
        Image.new("L", (12, 12), 5 * i + 40 * (i % 2)).save(images / f"{i}.png")
        lines.append(f"{i}.png,{label},{split}")
    (images / "labels.csv").write_text("\n".join(lines) + "\n")
    change_params({"data": {"folder": str(images), "val_fraction": 0.2}})
    python("-m", "stages.fetch")
    before = Path("data/raw/labels.csv").read_text()
    python("-m", "stages.prepare")
    manifest = Manifest.read(PACKED / "manifest.json")
    assert manifest.classes == ("bright", "dark")
    assert manifest.channels == 1 and manifest.image_size == 12
    assert sum(manifest.counts["test"].values()) == 12 and manifest.size("val") > 0

    Image.new("L", (12, 12), 0).save(images / "3.png")
    python("-m", "stages.fetch")
    assert Path("data/raw/labels.csv").read_text() != before


def test_a_rung_of_another_package_climbs_the_ladder(
    run: Callable[[str], Run], exported: Callable[[], None]
) -> None:
    python = run("edgestill-ends")
    exported()
    labels = np.load(PACKED / "val_labels.npy")
    np.save(PACKED / "val_labels.npy", (labels + (np.arange(60) < 6)) % len(CLASSES))  # int8 loses
    describe()
    change_params({"backends": {"onnxruntime": {"precisions": ["int8"]}}})
    change_params({"quantize": {"significance": 1.0}})  # the float student loses them, too
    python("-m", "stages.compile", "--backend", "onnxruntime", "--student", STUDENT)
    made = Artifact(STUDENT, "onnxruntime", "int8").folder
    metrics = CompiledMetrics.read(made / METRICS_FILE)
    tried = [attempt for attempt in metrics.ladder if attempt.rung == "ends"]
    assert metrics.ladder[0].rung == "default" and len(tried) == 2
    assert all(attempt.failure is None and attempt.val_top1 for attempt in tried)
    assert all("in float: " in attempt.recipe for attempt in tried)
