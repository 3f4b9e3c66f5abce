"""YAML of users: what is mistyped or hostile is refused in one line, at once."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from pipeline.core.documents import MAX_BYTES, read_yaml
from pipeline.core.errors import PipelineError

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


def read(folder: Path, content: str | bytes) -> object:
    file = folder / "file.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_yaml(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BOMB, "more than 50,000 values, aliases written out"),
        ("a: &a [*a]", "line 1: more than 32 levels inside each other"),
        ("[" * 99_000, "more than 32 levels inside each other"),
        ("{a: " * 20_000, "more than 32 levels inside each other"),
        ("a: " + "1" * 4301, "is too long"),
        ("a: 1" + "0" * 30, "is beyond 64 bits"),
        ("a: b\nc: 0x" + "f" * 30, "line 2: the number 0xfff"),
        (b"a: b\nc: \xff\xfe", "line 2: not UTF-8 (byte 0xff)"),
        ("a: \x00", "unacceptable character #x0000"),
        ('a: "\\0"', "line 1: a string with a control character"),
        ('a: "\\ud800"', "half of a surrogate pair"),
        ("a:\n\tb: 1", "line 2: while scanning for the next token, found character '\\t'"),
        ("1: a", "line 1: a key that is not a string; quote it"),
        ("? [a]\n: b", "a key that is not a string; quote it"),
        ("a: 1\nb: 2\na: 3", "line 3: the key `a` stands twice"),
        ("a: {<<: 1}", "`<<` merges mappings alone"),
        (
            "a: !!python/object:os.system x",
            "the tag `tag:yaml.org,2002:python/object:os.system` is",
        ),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: [", "line 1: while parsing a flow node"),
        ("#" * (MAX_BYTES + 1), "is larger than 100,000 bytes"),
    ],
)
def test_a_file_that_is_no_plain_yaml_is_refused_in_a_line(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    start = time.process_time()
    with pytest.raises(PipelineError) as refused:
        read(tmp_path, content)
    assert said in refused.value.what
    assert len(refused.value.what) < 300 and "\n" not in refused.value.what
    assert time.process_time() - start < 2


def test_scalars_have_the_types_that_dvc_reads(tmp_path: Path) -> None:
    text = (
        "{a: 1e-3, b: 010, c: 0x10, d: 1:30, e: yes, f: 2026-01-01, g: .inf, h: ~, i: '1', j: -2.}"
    )
    found = {
        "a": 0.001, "b": 10, "c": 16, "d": "1:30", "e": "yes", "f": "2026-01-01", "g": math.inf,
        "h": None, "i": "1", "j": -2.0,
    }  # fmt: skip
    assert read(tmp_path, text) == found


def test_an_alias_of_measure_is_what_it_stands_for(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\nd: {<<: [*a, {x: 0, z: 4}]}"
    both = {"x": 1, "y": 2}
    assert read(tmp_path, text) == {
        "a": both,
        "b": both,
        "c": both | {"y": 3},
        "d": both | {"z": 4},
    }


def test_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
