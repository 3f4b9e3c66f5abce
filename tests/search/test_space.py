"""search.yaml: what a space stands for in a student, and what is said of a mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli.params import load_params
from pipeline.core.errors import PipelineError
from pipeline.distill.params import own_recipe
from pipeline.networks.build import build_network
from pipeline.networks.params import Student
from pipeline.search.params import SPACES, Space, read_search
from pipeline.search.space import check_values, networks, student_of

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
SEARCH = {
    "target": {"backend": "tflite", "min_top1": 0.9},
    "budget": {"hours": 1},
    "space": {"lr": {"low": 0.001, "high": 0.01}},
}


def test_a_point_becomes_a_student_with_a_recipe_of_its_own() -> None:
    known = networks(Space(student=("mnv4_small_050",)), PARAMS.students)
    choice = {
        "student": "mnv4_small_050", "stem_stride": 2, "epochs": 7, "lr": 0.004,
        "temperature": 2.0, "kl": 0.6, "dist": 0.5,
    }  # fmt: skip
    student = student_of(choice, known, PARAMS.distill)
    assert (student.arch, student.stem_stride) == ("mobilenetv4_conv_small_050", 2)
    distill, recipe = own_recipe("it", student, PARAMS.distill)
    assert recipe.epochs == 7
    assert distill.training.lr == 0.004
    found = {term.name: (term.weight, dict(term.options)) for term in distill.losses}
    assert found == {
        "kl": (0.6, {"temperature": 2.0}),
        "cross_entropy": (pytest.approx(0.4), {}),
        "dist": (0.5, {}),
    }


def test_a_weight_of_zero_leaves_its_loss_out() -> None:
    student = student_of({"kl": 1.0}, {"it": Student(arch="lcnet_035")}, PARAMS.distill)
    distill, _ = own_recipe("it", student, PARAMS.distill)
    assert [term.name for term in distill.losses] == ["kl"]


def test_what_the_space_leaves_out_stays_as_params_say() -> None:
    known = {"it": PARAMS.students.zoo["mnv3_small_050"]}
    assert student_of({"stem_stride": 1}, known, PARAMS.distill).recipe == {"training": {}}


@pytest.mark.parametrize("file", sorted(SPACES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_network_of_a_shipped_space_can_be_built(tmp_path: Path, file: Path) -> None:
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH | {"space": file.stem}))
    space = read_search(tmp_path / "search.yaml").space
    size = 224 if file.stem == "photos" else 28
    for student in networks(space, PARAMS.students).values():
        build_network(student, classes=3, channels=3, image_size=size)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"space": "smal"}, "space: `smal` is not shipped; did you mean `small`?"),
    ({"space": {}}, "the space is empty"),
    ({"space": {"widths": [1]}}, "space.widths: unknown key"),
    ({"space": {"lr": {"low": 2, "high": 1}}}, "`low` is below `high`"),
    ({"space": {"lr": {"low": 0, "high": 1}}}, "`low` is above 0, or `log` is false"),
    ({"space": {"epochs": [3, 3]}}, "names `3` twice"),
    ({"target": {"backend": "tflite"}}, "either `min_top1` or `min_balanced`"),
    ({"halving": [0.5]}, "`halving` rises to 1"),
    ({"budget": {"hours": -1}}, "budget.hours: input should be greater than 0"),
    ({"seeds": 1}, "seeds: input should be greater than or equal to 2"),
]


@pytest.mark.parametrize(("change", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_a_mistake_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(SEARCH | change))
    with pytest.raises(PipelineError) as error:
        read_search(file)
    assert said in str(error.value)
    assert str(error.value).startswith(str(file))


def test_a_missing_file_is_told_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"no such file(?s:.*)photos, small"):
        read_search(tmp_path / "search.yaml")


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"lr": (0.1, -1.0)}, "space.lr: -1.0 is no value of it: training.lr: input should be"),
        ({"kl": (0.5, 2.0)}, "space.kl: 2.0 is no value of it: losses.1.weight: input should be"),
        ({"int8_phase": (0.5, 1.0)}, "space.int8_phase: 1.0 is no value of it: int8_phase: "),
    ],
)
def test_a_value_that_no_recipe_may_have_is_told_beforehand(
    space: dict[str, Any], said: str
) -> None:
    known = {"it": Student(arch="lcnet_035")}
    with pytest.raises(PipelineError) as error:
        check_values(Space(**space), known, PARAMS.distill)
    assert said in str(error.value)


def test_several_students_need_the_dimension() -> None:
    with pytest.raises(PipelineError, match="has no dimension `student`"):
        networks(Space(epochs=(1, 2)), PARAMS.students)
