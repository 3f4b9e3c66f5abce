"""YAML that users wrote: plain values, or one sentence that says why not.

A file may be hostile as well as mistyped. What expands (aliases) or nests without end is refused
while it is read, so that no file takes more time or memory than its size explains.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.errors import PipelineError
from pipeline.core.text import shorten

MAX_BYTES = 100_000
"""Of a YAML file: ten times the shipped params.yaml, read within a second."""

MAX_DEPTH = 32
"""Of mappings and lists inside each other."""

MAX_VALUES = 50_000
"""Of a file, where an alias counts as all that it stands for."""

_MAX_DIGITS = 40
_DEEP = f"more than {MAX_DEPTH} levels inside each other"
_STRING = "tag:yaml.org,2002:str"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_SCALARS = {  # of YAML 1.2, as DVC reads them: `1e-3` is a number, `1:30` and `yes` are strings
    "null": (r"null|Null|NULL|~|", "nN~"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """Finds the types of plain scalars; composes nodes, and constructs nothing."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.depth > MAX_DEPTH:  # the scanner's time grows with the square of the depth
            raise _refused(_DEEP, self.peek_event())  # type: ignore[no-untyped-call]
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _kind, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_kind, re.compile(f"(?:{_pattern})$"), [*_first, ""])


class _Values:
    """The values that composed nodes stand for; an alias stands for all values of its anchor."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, node: yaml.Node, depth: int = 0) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise _refused(f"more than {MAX_VALUES:,} values, aliases written out", node)
        if depth > MAX_DEPTH:  # of an alias inside its own anchor
            raise _refused(_DEEP, node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self.of(item, depth + 1) for item in node.value]
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, item in node.value:
            name, value = self.of(key, depth), self.of(item, depth)
            if not isinstance(name, str):
                raise _refused("a key that is not a string; quote it", key)
            if name in own:
                raise _refused(f"the key `{shorten(name)}` stands twice", key)
            if name != "<<":
                own[name] = value
                continue
            for base in value if isinstance(value, list) else [value]:
                if not isinstance(base, dict):
                    raise _refused("`<<` merges mappings alone", item)
                merged = base | merged
        return merged | own


def _scalar(node: yaml.Node) -> Any:
    text: str = node.value
    if _CONTROL.search(text):
        raise _refused("a string with a control character or half of a surrogate pair", node)
    if node.tag == _STRING:
        return text
    if node.tag not in _SCALARS:
        raise _refused(f"the tag `{shorten(node.tag)}` is not allowed", node)
    if node.tag == "null":
        return None
    if node.tag == "bool":
        return text.lower() == "true"
    if len(text) > _MAX_DIGITS:
        raise _refused(f"the number {shorten(text)} is too long", node)
    if node.tag == "float":
        return float(re.sub(r"\.(?=[iInN])", "", text))  # `.inf` and `.nan`
    number = int(text, 16 if text.startswith("0x") else 10)
    if not -(2**63) <= number < 2**63:
        raise _refused(f"the number {text} is beyond 64 bits", node)
    return number


def _refused(problem: str, place: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, place.start_mark)  # type: ignore[arg-type]


def read_yaml(path: Path) -> Any:
    """The value of a YAML file that a user wrote.

    Returns:
        Mappings with string keys, lists, strings of one line, floats, integers of 64 bits,
        bools and None, at most `MAX_DEPTH` inside each other.

    Raises:
        PipelineError: for a file that is missing, too large, not UTF-8 or not such YAML, with the
            line. Tags, keys that stand twice and aliases that expand without measure are refused.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise PipelineError(
            "there is no such file", where=where, fix="run from the project's root"
        ) from None
    except OSError as error:
        raise PipelineError(f"cannot be read: {error.strerror}", where=where) from None
    if len(content) > MAX_BYTES:
        raise PipelineError(f"is larger than {MAX_BYTES:,} bytes", where=where)
    try:
        node = yaml.compose(content.decode(), _Loader)
        return None if node is None else _Values().of(node)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"line {line}: not UTF-8 (byte {content[error.start]:#04x})"
        raise PipelineError(what, where=where, fix="save the file as UTF-8") from None
    except yaml.YAMLError as error:
        raise PipelineError(f"not valid YAML: {_explain(error)}", where=where) from None


def _explain(error: yaml.YAMLError) -> str:
    """One line: where and what."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        parts = [part for part in (error.context, error.problem) if part]
        return f"line {error.problem_mark.line + 1}: {shorten(', '.join(parts), 200)}"
    return shorten(" ".join(str(error).split()), 200)
