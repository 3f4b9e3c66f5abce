"""The study is a pipeline of its own on the same rooms: its graph is right, and it runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core.params import Selection
from pipeline.data.params import FetchParams, PrepareParams
from pipeline.distill.params import DistillParams, RecordingParams
from pipeline.training.params import TeacherParams
from tests.test_graph import ROOT, needed

STUDY = ROOT / "study"
STAGES = {
    name: stage.get("do", stage)
    for name, stage in yaml.safe_load((STUDY / "dvc.yaml").read_text())["stages"].items()
}
SHARED = ("fetch", "prepare", "train_teacher")
READ: dict[str, type[Selection]] = {
    "fetch": FetchParams,
    "prepare": PrepareParams,
    "train_teacher": TeacherParams,
    "record_teacher": RecordingParams,
    "arm": DistillParams,
}


def own_scripts(name: str) -> set[str]:
    """A script of the study and those in its folder that it imports."""
    found, waiting = set(), [name]
    while waiting:
        script = waiting.pop()
        found.add(script)
        text = (STUDY / f"{script}.py").read_text()
        imported = set(re.findall(r"^(?:from|import) (\w+)", text, re.M)) - found
        waiting += [other for other in imported if (STUDY / f"{other}.py").exists()]
    return found


def groups(stage: str) -> set[str]:
    """The groups of params.yaml that a stage depends on."""
    return {entry for entry in STAGES[stage]["params"] if isinstance(entry, str)} - {"profiles"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_rooms_and_scripts_it_imports(stage: str) -> None:
    deps = STAGES[stage]["deps"]
    if stage in SHARED:
        assert STAGES[stage]["cmd"].split()[:3] == ["python", "-m", f"stages.{stage}"]
        scripts, rooms = {f"../stages/{stage}.py"}, needed(stage)
    else:
        assert STAGES[stage]["cmd"].split()[:2] == ["python", f"{stage}.py"]
        own = own_scripts(stage)
        scripts = {f"{name}.py" for name in own}
        rooms = set().union(*(needed(f"../study/{name}") for name in own))
    assert {dep for dep in deps if dep.endswith(".py")} == scripts
    assert {dep for dep in deps if dep.startswith("../pipeline")} == {f"../{r}" for r in rooms}


@pytest.mark.parametrize("stage", READ)
def test_a_stage_depends_on_the_groups_it_reads(stage: str) -> None:
    assert groups(stage) == set(READ[stage].model_fields)


def test_params_hold_no_group_that_no_stage_reads() -> None:
    tree = yaml.safe_load((STUDY / "params.yaml").read_text())
    assert set(tree) == set().union(*map(groups, STAGES)) | {"profile", "profiles"}


def test_the_lock_file_holds_no_stage_that_is_gone() -> None:
    arms = yaml.safe_load((STUDY / "arms.yaml").read_text())["arms"]
    known = (STAGES.keys() - {"arm"}) | {f"arm@{name}" for name in arms}
    assert set(yaml.safe_load((STUDY / "dvc.lock").read_text())["stages"]) <= known


COMMANDS = """
import importlib, shlex, sys
for command in sys.argv[1:]:
    words = [word for word in shlex.split(command) if word not in ("python", "-m")]
    sys.argv = words
    importlib.import_module(words[0].removesuffix(".py")).main()
"""
"""Runs the commands of dvc.yaml in one process, which imports torch once."""


def run(folder: Path, *commands: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, *commands],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def copied(folder: Path, *names: str) -> Path:
    for name in ("params.yaml", "arms.yaml", *(file.name for file in STUDY.glob("*.py")), *names):
        (shutil.copytree if (STUDY / name).is_dir() else shutil.copy)(STUDY / name, folder / name)
    return folder


def edit(file: Path, **changes: Any) -> None:
    tree = yaml.safe_load(file.read_text())
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        node = tree
        for key in path:
            node = node[key]
        node[last] = value
    file.write_text(yaml.safe_dump(tree, sort_keys=False))


def test_the_recorded_results_are_those_of_the_recorded_runs(tmp_path: Path) -> None:
    run(copied(tmp_path, "metrics"), STAGES["summary"]["cmd"])
    for name in ("results.md", "results.json"):
        assert (tmp_path / name).read_text() == (STUDY / name).read_text()


def test_the_study_runs_from_images_to_the_table(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    images = {"size": 600, "image_size": [3, 28, 28], "num_classes": 3}
    edit(
        folder / "params.yaml", data__name="FakeData", data__options=images, data__limit=64,
        teachers__zoo__resnet__views__epochs=1, views__epochs=1,
        teachers__zoo__resnet__training__batch_size=32, distill__training__batch_size=32,
    )  # fmt: skip
    arms = yaml.safe_load((folder / "arms.yaml").read_text())["arms"]
    two = {name: arms[name] for name in ("alone", "kl_rkd")}
    edit(folder / "arms.yaml", seeds=[1, 2], arms=two)
    commands: list[str] = []
    for stage in STAGES.values():
        by_hand = [f"{stage['cmd']} --arm {arm}" for arm in two]
        commands += by_hand if stage is STAGES["arm"] else [stage["cmd"]]
    run(folder, *commands)
    for stage in STAGES.values():
        for out in (*stage.get("outs", ()), *stage.get("metrics", ())):
            path = out if isinstance(out, str) else next(iter(out))
            for arm in two:
                assert (folder / path.replace("${key}", arm)).exists()
    table = (folder / "results.md").read_text()
    assert "1 epochs of 64 training images" in table
    assert re.search(r"^\| alone \| [\d.]+ ± [\d.]+ \|", table, re.M)
    assert re.search(r"^\| kl_rkd \| [\d.]+ ± [\d.]+ \|", table, re.M)
