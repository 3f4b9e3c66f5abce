"""A student is added to params.yaml without touching what stands there."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
import yaml

from pipeline.core.errors import PipelineError
from pipeline.search.adopt import with_student

STUDENT = {"arch": "lcnet_035", "args": {"global_pool": "fastavg"}, "recipe": {"epochs": 3}}
SHIPPED = (Path(__file__).parents[2] / "params.yaml").read_text()
BLOCK = """\
students:
  enabled:
    - a # the first

  # what there is
  zoo:
    a:
      arch: lcnet_050
      args:
        drop_rate: 0.1 # some

    # b: { arch: x }
other: 1"""


@pytest.mark.parametrize("content", [SHIPPED, BLOCK], ids=["shipped", "block"])
def test_only_the_new_student_is_added(content: str) -> None:
    after = with_student(content, "found", STUDENT)
    expected = yaml.safe_load(content)
    expected["students"]["zoo"]["found"] = STUDENT
    expected["students"]["enabled"].append("found")
    assert yaml.safe_load(after) == expected
    changes = list(difflib.ndiff(content.splitlines(), after.splitlines()))
    assert sum(line.startswith("- ") for line in changes) == (content is SHIPPED)  # `enabled`
    comments = [line for line in content.splitlines() if "#" in line]
    assert [line for line in comments if line in after.splitlines()] == comments


@pytest.mark.parametrize("content", ["students: { enabled: [a], zoo: { a: { arch: x } } }\n"])
def test_a_zoo_in_one_line_is_told(content: str) -> None:
    with pytest.raises(PipelineError, match="add the student by hand"):
        with_student(content, "found", STUDENT)
