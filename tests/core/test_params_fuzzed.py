"""Any params.yaml, mistyped or hostile, is read or refused in one message, and soon."""

from __future__ import annotations

import re
import resource
import time
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cli.check import check_settings
from pipeline.cli.params import Params
from pipeline.core import params as machinery
from pipeline.core.errors import PipelineError
from pipeline.core.params import load
from stages.names import NamesParams
from tests.core.test_params import SELECTIONS, SHIPPED
from tests.odd import as_json, spoiled

BYTES = SHIPPED.read_bytes()
TREE = yaml.safe_load(BYTES)
SNIPPETS = (
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xf0\x9f\x92\xa5", b"\\x00", b'"\\ud800"', b"\t", b"\r",
    b":", b": ", b"- ", b"&a ", b"*a", b"a: &a [*a, *a]\n", b"<<: ", b"!!set ", b"!x ", b"{", b"}",
    b"[", b"[" * 2000, b"? ", b"|\n", b"'", b'"', b"#", b"%", b"---\n", b"...\n", b"\n", b"~",
    b"9" * 4301, b"1e999", b".nan", b"0x" + b"f" * 5000, b"1:30",
)  # fmt: skip
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
SECONDS, MEGABYTES = 2.0, 300


def as_yaml(tree: Any) -> bytes:
    return as_json(tree).replace("Infinity", ".inf").replace("NaN", ".nan").encode()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The shipped file with up to four of its bytes or slices changed."""
    content = bytearray(BYTES)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        end = min(at + draw(st.integers(0, 60)), len(content))
        new = draw(st.sampled_from(SNIPPETS) | st.binary(min_size=1, max_size=3))
        content[at:end] = draw(st.sampled_from((new, b"", bytes(content[at:end]) * 3)))
    return bytes(content)


FILES = st.one_of(mutated(), spoiled(TREE).map(as_yaml))


def examine(file: Path, content: bytes) -> None:
    """Every reader gets its part or a short `PipelineError`."""
    file.write_bytes(content)
    space = _peak()
    with patch.object(machinery, "read_yaml", cache(machinery.read_yaml)):  # once for all of them
        for kind in (Params, NamesParams, *SELECTIONS):
            start = time.process_time()
            try:
                found: Any = load(kind, file)
                if isinstance(found, Params):
                    check_settings(found)
            except PipelineError as error:
                assert len(str(error)) < 4000 and not CONTROL.search(str(error))
            assert time.process_time() - start < SECONDS
    assert _peak() - space < MEGABYTES


def _peak() -> float:
    """Megabytes that this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed") / "params.yaml"


ALWAYS = settings(
    deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@settings(ALWAYS, max_examples=200)
@given(content=FILES)
def test_no_params_file_is_a_traceback(file: Path, content: bytes) -> None:
    examine(file, content)


@pytest.mark.slow
@settings(ALWAYS, max_examples=2000, derandomize=False)
@given(content=FILES)
def test_none_of_many(file: Path, content: bytes) -> None:
    examine(file, content)
