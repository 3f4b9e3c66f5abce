"""A data source of another installed package works as the project's own do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.data.records import Manifest, load_calibration, load_split
from tests.data.test_prepare import ROOT

MODULE = '''
import os

import numpy as np
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.data.sources import Samples


class Shades:
    """`options.per_class` grey squares of 10 pixels for each of two classes, dark and light."""

    def check(self, data):
        if "per_class" not in data.options:
            raise PipelineError("per_class is missing", where="data.options")

    def fetch(self, data, folder):
        self.check(data)
        np.save(folder / "shades.npy", np.arange(2 * data.options["per_class"], dtype=np.uint8))

    def samples(self, data, folder):
        count = len(np.load(folder / "shades.npy"))
        return Samples(
            source="shades", licence="none", classes=("dark", "light"),
            labels=np.arange(count) // (count // 2), splits=np.full(count, "train"),
        )

    def reader(self, data, folder):
        (folder / f"reader-{os.getpid()}").touch()
        shades = np.load(folder / "shades.npy")

        def read(index):
            if index == 3:
                raise ValueError("this one is broken")
            return Image.new("L", (10, 10), int(shades[index]))

        return read


SHADES = Shades()
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that names the source, and the package that registers it."""
    info = tmp_path / "site" / "shades-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "shades.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shades\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgestill.sources]\nshades = shades:SHADES\n")
    (tmp_path / "project").mkdir()
    return configured(tmp_path / "project", source="shades", options={"per_class": 100})


def configured(project: Path, **data: object) -> Path:
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["data"] |= data
    (project / "params.yaml").write_text(yaml.safe_dump(tree))
    return project


def stage(project: Path, name: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(project.parent / "site"), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", f"stages.{name}"], cwd=project,
        env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True,
    )  # fmt: skip


def test_another_packages_source_is_fetched_and_prepared(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fetch", "prepare"):
        done = stage(project, name)
        assert done.returncode == 0, done.stderr
    monkeypatch.chdir(project)
    manifest = Manifest.read(Path("data/packed/manifest.json"))
    assert (manifest.source, manifest.classes) == ("shades", ("dark", "light"))
    assert (manifest.image_size, manifest.channels) == (10, 1)  # `auto`: found by probing
    assert [rejected.file for rejected in manifest.rejected] == ["image 3"]
    seen = set()
    for split in manifest.counts:
        images, labels = load_split(split)
        assert images.shape[1:] == (10, 10, 1)
        assert np.array_equal(images[:, 0, 0, 0] >= 100, labels)
        seen |= set(images[:, 0, 0, 0].tolist())
    assert seen == set(range(200)) - {3}
    assert len(load_calibration(manifest)) == manifest.size("train")
    assert list(Path("data/raw").glob("reader-*"))


def test_a_wrong_option_is_that_sources_own_error(project: Path) -> None:
    configured(project, source="shades", options={})
    done = stage(project, "fetch")
    assert done.returncode == 1 and done.stderr == "error: data.options: per_class is missing\n"
    assert not (project / "data" / "raw").exists()


def test_an_unknown_source_is_named_with_the_nearest_one(project: Path) -> None:
    configured(project, source="shade")
    done = stage(project, "fetch")
    assert done.returncode == 1 and "did you mean `shades`?" in done.stderr
