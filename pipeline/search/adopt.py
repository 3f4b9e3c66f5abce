"""Writes the student that a search has found into params.yaml, with its own recipe."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.documents import read_yaml
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_whole
from pipeline.core.params import PARAMS_FILE, check_name, load
from pipeline.search.study import Project
from pipeline.search.trials import Standing


def adopted(
    standing: Standing, number: int, name: str | None, file: Path = PARAMS_FILE
) -> tuple[str, str]:
    """params.yaml with a candidate among the enabled students; nothing is written.

    Args:
        standing: of the search.
        number: of the candidate.
        name: of the new student; the candidate's network and number by default.
        file: params.yaml.

    Returns:
        The new content, and a unified diff to it.

    Raises:
        PipelineError: for a candidate that was not fully trained, and a name that is taken.
    """
    trained = {seen.number: seen for seen in standing.trained()}
    if number not in trained:
        known = ", ".join(map(str, trained)) or "none yet"
        raise PipelineError(
            f"there is no fully trained candidate {number}", where="search/", fix=f"known: {known}"
        )
    student: dict[str, Any] = dict(trained[number].student)
    try:
        name = check_name(name or f"{student['arch']}_{number}".replace("-", "_"))
    except ValueError as error:
        raise PipelineError(str(error), where="--name") from None
    tree: Any = read_yaml(file)
    if name in tree["students"]["zoo"]:
        raise PipelineError(
            f"`students.zoo` has a `{name}` already", where=str(file), fix="choose another --name"
        )
    before = file.read_text()
    after = with_student(before, name, student)
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    return after, "".join(difflib.unified_diff(old, new, str(file), str(file)))


def with_student(content: str, name: str, student: dict[str, Any]) -> str:
    """params.yaml with one more enabled student; all that stands there, stays as it is written.

    Args:
        content: of the file.
        name: of the student.
        student: plain values.

    Raises:
        PipelineError: where the file is written in a way that text cannot be added to.
    """
    students = _value(yaml.compose(content, yaml.SafeLoader), "students")
    zoo, enabled = _value(students, "zoo"), _value(students, "enabled")
    lines = content.splitlines(keepends=True)
    if zoo.flow_style or not enabled.value:
        raise PipelineError(
            "`students.zoo` stands in one line, or `students.enabled` is empty",
            where=str(PARAMS_FILE),
            fix=f"add the student by hand: {yaml.safe_dump({name: student}, width=4096)}",
        )
    text = yaml.safe_dump({name: student}, default_flow_style=None, sort_keys=False, width=4096)
    indent = " " * zoo.value[0][0].start_mark.column
    added = [f"{indent}{line}" for line in text.splitlines(keepends=True)]
    insertions = [(_last_line(zoo) + 1, added)]
    last = enabled.value[-1]
    if enabled.flow_style:
        row, column = last.end_mark.line, last.end_mark.column
        lines[row] = f"{lines[row][:column]}, {name}{lines[row][column:]}"
    else:
        dash = lines[last.start_mark.line][: last.start_mark.column]
        insertions.append((_last_line(enabled) + 1, [f"{dash}{name}\n"]))
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    for place, more in sorted(insertions, reverse=True):
        lines[place:place] = more
    return "".join(lines)


def _value(node: Any, key: str) -> Any:
    """The node of a key, which the checks of params.yaml have found to be there."""
    return next(value for name, value in node.value if name.value == key)


def _last_line(node: Any) -> int:
    """The line on which a node's own text ends, without comments and blank lines behind it."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style or not node.value:
        mark = node.end_mark
        return int(mark.line if mark.column else mark.line - 1)
    last = node.value[-1]
    return _last_line(last[1] if isinstance(last, tuple) else last)


def adopt(content: str, file: Path = PARAMS_FILE) -> None:
    """Write `content` as params.yaml, if it is without mistakes: else the file stays as it is."""
    scratch = file.with_name(f".{file.name}.adopted")
    write_whole(scratch, content)
    try:
        load(Project, scratch)
    finally:
        scratch.unlink()
    write_whole(file, content)
