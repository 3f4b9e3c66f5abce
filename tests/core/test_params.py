"""params.yaml: every mistake has one clear message, every profile is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli.params import (
    load_params,
)
from pipeline.core.errors import PipelineError

SHIPPED = Path(__file__).parents[1] / "params.yaml"


def write(folder: Path, change: dict[str, Any]) -> Path:
    """The shipped file with dotted keys set to other values."""
    tree = yaml.safe_load(SHIPPED.read_text())
    for dotted, value in change.items():
        *path, last = dotted.split(".")
        node = tree
        for key in path:
            node = node[key]
        node[last] = value
    file = folder / "params.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.mark.parametrize("profile", yaml.safe_load(SHIPPED.read_text())["profiles"])
def test_every_shipped_profile_is_valid(tmp_path: Path, profile: str) -> None:
    assert load_params(write(tmp_path, {"profile": profile})).profile == profile


def test_a_profile_overrides_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    teachers = {"zoo": {"resnet": {"views": {"epochs": 7}}}}
    over = {group: {} for group in OVERRIDABLE} | {"teachers": teachers}
    plain = load_params(SHIPPED)
    params = load_params(write(tmp_path, {"profiles.cpu": over}))
    assert params.teachers.zoo["resnet"].views.epochs == 7
    assert params.teachers.zoo["resnet"].training == plain.teachers.zoo["resnet"].training
    assert params.model_copy(update={"teachers": plain.teachers}) == plain


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data.val_fracton": 0.1}, "data.val_fracton: unknown key; did you mean `val_fraction`?"),
        ({"datta": {}}, "datta: unknown key; did you mean `data`?"),
        (
            {"teachers.zoo.resnet.views.epoch": 3},
            "teachers.zoo.resnet.views.epoch: unknown key; did you mean `epochs`?",
        ),
        (
            {"students.zoo.mnv3_small_050.arhc": "x"},
            "students.zoo.mnv3_small_050.arhc: unknown key; did you mean `arch`?",
        ),
        ({"data.val_fraction": 1.5}, "data.val_fraction: input should be less than or equal to"),
        ({"benchmark.rounds": "many"}, "benchmark.rounds: input should be a valid integer"),
        ({"benchmark.extra_rounds": -1}, "benchmark.extra_rounds: input should be greater than"),
        ({"benchmark.batch": -1}, "benchmark.batch: input should be greater than or equal to 0"),
        ({"teachers.zoo.resnet.source": "guess"}, "source: input should be 'train', 'checkpoint'"),
        ({"backends.openvino.precisions": ["int4"]}, "input should be 'fp32' or 'int8'"),
        ({"students.enabled": ["mnv3_smal_050"]}, "did you mean `mnv3_small_050`?"),
        ({"students.enabled": []}, "students.enabled"),
        ({"profile": "cpuu"}, "`cpuu` is not in `profiles`; did you mean `cpu`?"),
        ({"profiles.cpu.students": {}}, "a profile cannot override this"),
        ({"profiles.cpu": {"data": {}}}, "profiles.cpu.teachers is missing"),
        ({"profiles.cpu.data": {"folder": "x"}}, "set data.folder instead"),
        ({"profiles.cpu.teachers": {"enabled": []}}, "set teachers.enabled instead"),
        ({"teachers.zoo.resnet.source": "checkpoint"}, "`checkpoint` is set exactly when"),
        ({"teachers.zoo.resnet.checkpoint": "/tmp/x"}, "`checkpoint` is set exactly when"),
        ({"teachers.weights": {"resnet": 2}, "teachers.combine": "best"}, "to `combine: mean`"),
        ({"profile": ["cpu"]}, "is not in `profiles`"),
        ({"teachers.enabled": ["resnett"]}, "did you mean `resnet`?"),
        ({"teachers.enabled": []}, "teachers.enabled"),
        ({"teachers.weights": {"other": 1.0}}, "`weights` names `other`"),
        (
            {"distill.losses": [{"name": "hint", "weight": 1, "taps": ["a"], "teacher": "x"}]},
            "distill.losses names the teacher `x`",
        ),
        ({"quantize.rungs": ["ranges"]}, "`rungs` begin with `default`"),
        ({"quantize.rungs": ["default", "ranges", "ranges"]}, "`rungs` names one twice"),
        ({"quantize.rungs": ["default", "prayer"]}, "quantize.rungs.1: input should be 'default'"),
        ({"quantize.training.epochs": 9}, "quantize.training.epochs: 9 are more than the 2 of"),
        ({"students.zoo.resnet": {"arch": "a"}, "students.enabled": ["resnet"]}, "rename one"),
    ],
)
def test_a_mistake_is_named_with_its_place(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(PipelineError) as error:
        load_params(write(tmp_path, change))
    assert said in str(error.value)
    assert str(tmp_path / "params.yaml") in str(error.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(PipelineError) as error:
        load_params(write(tmp_path, {"data.x": 1, "gate.y": 2}))
    assert "data.x" in str(error.value) and "gate.y" in str(error.value)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="run from the project's root"):
        load_params(tmp_path / "params.yaml")


def test_broken_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("profile: [")
    with pytest.raises(PipelineError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")
