"""params.yaml: every mistake has one clear message, every profile is whole."""

from __future__ import annotations

import math
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.bundle.params import BundleParams
from pipeline.cli.params import Params, load_params
from pipeline.compile.params import CompileParams
from pipeline.core.errors import PipelineError
from pipeline.core.params import Group, Selection, load
from pipeline.data.params import FetchParams, PrepareParams
from pipeline.distill.params import DistillParams, RecordingParams
from pipeline.export.params import ExportParams
from pipeline.gate.params import GateParams
from pipeline.latency.params import BenchmarkParams
from pipeline.report.params import ReportParams
from pipeline.training.params import TeacherParams

SHIPPED = Path(__file__).parents[2] / "params.yaml"
TREE = yaml.safe_load(SHIPPED.read_text())
SELECTIONS = (
    FetchParams, PrepareParams, TeacherParams, RecordingParams, DistillParams, ExportParams,
    CompileParams, BenchmarkParams, BundleParams, ReportParams, GateParams,
)  # fmt: skip


def write(folder: Path, change: dict[str, Any]) -> Path:
    """The shipped file with dotted keys set to other values."""
    tree = deepcopy(TREE)
    for dotted, value in change.items():
        *path, last = dotted.split(".")
        node = tree
        for key in path:
            node = node[key]
        node[last] = value
    file = folder / "params.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.mark.parametrize("profile", TREE["profiles"])
def test_every_shipped_profile_is_valid(tmp_path: Path, profile: str) -> None:
    assert load_params(write(tmp_path, {"profile": profile})).profile == profile


def test_a_profile_overrides_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    teachers = {"zoo": {"resnet": {"views": {"epochs": 7}}}}
    over = {group: {} for group in TREE["profiles"]["cpu"]} | {"teachers": teachers}
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
        ({"teachers.zoo.resnet.training.freeze": "all"}, "freeze"),
        ({"distill.training.batch_size": "many"}, "distill.training.batch_size"),
        ({"backends.openvino.precisions": ["int4"]}, "input should be 'fp32' or 'int8'"),
        ({"students.enabled": ["mnv3_smal_050"]}, "did you mean `mnv3_small_050`?"),
        ({"students.enabled": []}, "students.enabled"),
        ({"profile": "cpuu"}, "`cpuu` is not in `profiles`; did you mean `cpu`?"),
        ({"profiles.cpu.students": {}}, "a profile cannot override this"),
        ({"profiles.cpu": {"data": {}}}, "profiles.cpu.teachers is missing"),
        ({"profiles.cpu.data": {"folder": "x"}}, "set data.folder instead"),
        ({"profiles.cpu.teachers": {"enabled": []}}, "set teachers.enabled instead"),
        ({"teachers.zoo.resnet.network.weights": "/tmp/x"}, "inside `checkpoints`"),
        ({"students.zoo.mnv3_small_050.weights": "../x.pth"}, "inside `checkpoints`"),
        ({"students.zoo.mnv3_small_050.normalisation": {"mean": [0], "std": [1]}}, "belongs to a"),
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
        (
            {"quantize.rungs": ["default", "ranges", "ranges"]},
            "quantize.rungs: names `ranges` twice",
        ),
        ({"backends.openvino.precisons": []}, "backends.openvino.precisons: unknown key; did you"),
        ({"backends.openvino": None}, "backends.openvino: missing"),
        ({"backends.enabled": ["openvinno"]}, "`openvinno` among the backends; did you mean `open"),
        ({"backends.tflight": {}}, "`tflight` among the backends; did you mean `tflite`?"),
        ({"quantize.rungs": []}, "quantize.rungs: tuple should have at least 1 item"),
        ({"quantize.min_int8_share": 2}, "quantize.min_int8_share: input should be less than or"),
        ({"limits.max_latency_ms": 1}, "limits.max_latency_ms: unknown key"),
        ({"profiles.cpu.gaet": {}}, "profiles.cpu.gaet: a profile cannot override this; did you"),
        ({"students.zoo.resnet": {"arch": "a"}, "students.enabled": ["resnet"]}, "rename one"),
        (
            {"students.zoo.mnv3_small_050.recipe": {"epoch": 3}},
            "students.zoo.mnv3_small_050.recipe.epoch: unknown key; did you mean `epochs`?",
        ),
        (
            {"students.zoo.mnv3_small_050.recipe": {"training": {"lr": -1}}},
            "students.zoo.mnv3_small_050.recipe.training.lr: input should be",
        ),
        (
            {
                "students.zoo.mnv3_small_050.recipe": {
                    "losses": [{"name": "hint", "weight": 1, "taps": ["a"], "teacher": "x"}]
                }
            },
            "students.zoo.mnv3_small_050.recipe.losses names the teacher `x`",
        ),
        ({"profiles.cpu": 5}, "profiles.cpu: expected a mapping (found 5)"),
        ({"profiles.cpu.data": [1]}, "profiles.cpu.data: expected a mapping (found [1])"),
        ({"profiles": 5}, "profile: `cpu` is not in `profiles`"),
        ({"students.enabled": ["mnv4_small_050"] * 2}, "names `mnv4_small_050` twice"),
        ({"teachers.enabled": ["resnet"] * 2}, "names `resnet` twice"),
        ({"backends.enabled": ["tflite"] * 2}, "names `tflite` twice"),
        ({"backends.tflite.precisions": ["int8", "int8"]}, "names `int8` twice"),
        ({"data.folder": ""}, "data.folder: a folder inside or beside the project is needed"),
        ({"data.folder": "./"}, "data.folder: a folder inside or beside the project is needed"),
        (
            {
                "students.zoo.mnv3_small_050.weights": "a.pth",
                "students.zoo.mnv3_small_050.normalisation": {"mean": [1], "std": [0]},
            },
            "has a mean in",
        ),
        (
            {"data.name": "x" * 10**4},
            "at most 200 characters (found 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        ),
        ({"students.enabled": list("abcdefghijkl")}, "`enabled` names `a`"),
        ({"quantize.rungs": [1] * 20}, "rungs.7: input should be a valid string (found 1); and 1"),
    ],
)
def test_a_mistake_is_named_with_its_place(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(PipelineError) as error:
        load_params(write(tmp_path, change))
    assert said in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'params.yaml'}: ")
    assert ": :" not in str(error.value)


NUMBERS = {
    "data.calibration_images": (10**7, True, 512.0, "512"),
    "data.val_fraction": (math.nan, "0.1", True),
    "data.channels": (True, 2),
    "data.limit": (10**30, 0),
    "teachers.zoo.resnet.views.epochs": (10**30, -1, 2.5),
    "teachers.zoo.resnet.views.augment": (
        {"shift": 10**6},
        {"mixup": math.inf},
        {"mixup": math.nan},
    ),
    "teachers.zoo.resnet.training.batch_size": (10**30, 1),
    "teachers.zoo.resnet.training.weight_decay": (math.inf, math.nan, 1e9),
    "distill.training.lr": (1e30, math.inf, 0, "0.1"),
    "distill.training.accumulate": (10**30,),
    "distill.training.clip_norm": (math.inf, 1e300),
    "distill.training.ema": (math.nan, 1.0),
    "distill.losses": ([{"name": "kl", "weight": math.inf}], [{"name": "kl", "weight": 1e300}]),
    "students.zoo.mnv4_small_050.stem_stride": (True, 3),
    "quantize.float_layers": (10**30,),
    "distill.int8_phase": (1, -0.1),
    "benchmark.threads": (10**30, 0),
    "benchmark.rounds": (10**30,),
    "benchmark.min_seconds": (1e300, math.inf),
    "limits.max_kb": (math.inf,),
    "gate.max_slowdown": (math.inf, 1e300),
    "gate.rerun_rounds": (10**30,),
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in NUMBERS.items() for value in values]
)
def test_a_number_that_makes_no_sense_is_refused(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(PipelineError, match=f"{re.escape(key)}|beyond 64 bits"):
        load_params(write(tmp_path, {key: value}))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(PipelineError) as error:
        load_params(write(tmp_path, {"data.x": 1, "gate.y": 2}))
    assert "data.x" in str(error.value) and "gate.y" in str(error.value)


def groups(kind: type[Selection]) -> set[str]:
    """The groups of params.yaml that a stage reads."""
    return set(kind.model_fields)


def overridable(kind: type[Selection]) -> set[str]:
    """Those of them that a profile may override."""
    kinds = {name: info.annotation for name, info in kind.model_fields.items()}
    found = {name: its for name, its in kinds.items() if isinstance(its, type)}
    return {name for name, its in found.items() if issubclass(its, Group) and its.overridable}


def test_all_groups_together_are_what_the_stages_and_the_gate_read() -> None:
    assert groups(Params) == set().union(*map(groups, SELECTIONS)) == TREE.keys() - {"profiles"}


@pytest.mark.parametrize("profile", TREE["profiles"])
def test_every_profile_names_every_group_that_it_may_override(profile: str) -> None:
    assert TREE["profiles"][profile].keys() == overridable(Params)


@pytest.mark.parametrize("kind", SELECTIONS)
def test_a_stage_is_stopped_by_the_groups_that_it_reads_and_by_no_other(
    tmp_path: Path, kind: type[Selection]
) -> None:
    every = {name for name, value in TREE.items() if isinstance(value, dict)} - {"profiles"}
    others = {f"{group}.enabeld": 1 for group in every - groups(kind)}
    others |= {f"profiles.cpu.{group}": {"x": 1} for group in overridable(Params) - groups(kind)}
    assert load(kind, write(tmp_path, others)) == load(kind, SHIPPED)
    partly = {"backends"}  # which checks its settings when they are read
    partly |= {
        name
        for name, field in kind.model_fields.items()
        if getattr(field.annotation, "model_config", {}).get("extra") == "ignore"
    }
    for group in every & groups(kind) - partly:
        with pytest.raises(PipelineError, match=rf"{group}\.enabeld: unknown key"):
            load(kind, write(tmp_path, {f"{group}.enabeld": 1}))
    for group in overridable(kind):
        with pytest.raises(PipelineError, match=rf"{group}\.x: unknown key"):
            load(kind, write(tmp_path, {f"profiles.cpu.{group}": {"x": 1}}))


def test_a_mistake_in_the_gate_stops_no_training_but_is_found_by_check(tmp_path: Path) -> None:
    file = write(tmp_path, {"gate.max_slowdwn": 1})
    assert load(DistillParams, file).distill.losses
    with pytest.raises(PipelineError, match="did you mean `max_slowdown`"):
        load_params(file)


def test_a_stage_is_told_of_wrong_settings_of_a_backend_when_it_reads_them(tmp_path: Path) -> None:
    params = load(CompileParams, write(tmp_path, {"backends.openvino": {"precisions": ["int4"]}}))
    assert params.backends.settings("tflite").precisions
    with pytest.raises(PipelineError, match=r"backends\.openvino\.precisions.*'fp32' or 'int8'"):
        params.backends.settings("openvino")


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="run from the project's root"):
        load_params(tmp_path / "params.yaml")


def test_broken_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("profile: [")
    with pytest.raises(PipelineError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")
