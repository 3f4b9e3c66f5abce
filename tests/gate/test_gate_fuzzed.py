"""Any damaged record on either side has a verdict of its own: never a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.backends.base.artifact import Artifact
from pipeline.cli.commands import main
from pipeline.core.records import METRICS
from pipeline.latency.records import BENCHMARK
from tests.gate.test_gate import FLOAT, INT8, Gate, gate, measure, only, project
from tests.odd import as_json, spoiled

__all__ = ["gate", "project"]


@pytest.mark.parametrize("key", ["x", "a/b", "a/b/c/d", "a b/c/d", "", "../x/y"])
def test_a_row_that_is_no_artifact_is_invalid(gate: Gate, key: str) -> None:
    (record,) = json.loads(BENCHMARK.read_text())
    record["rows"][key] = record["rows"].pop(FLOAT)
    BENCHMARK.write_text(json.dumps([record]))
    verdict = gate()
    assert verdict["exit_code"] == 2
    shutil.copytree(METRICS, "before/metrics")
    measure(seed=0)
    assert gate("--baseline", "before")["exit_code"] == 2


@pytest.mark.parametrize("bomb", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000])
def test_nested_json_is_no_record(gate: Gate, bomb: bytes) -> None:
    shutil.copytree(METRICS, "before/metrics")
    for file in (Path("before") / BENCHMARK, BENCHMARK, Artifact.parse(INT8).metrics):
        sound = file.read_bytes()
        file.write_bytes(bomb)
        assert str(file).removeprefix("before/") in only_invalid(gate("--baseline", "before"))
        file.write_bytes(sound)
    Path("saved.json").write_bytes(bomb)
    assert "not written by" in only(gate("--baseline", "saved.json"), "invalid")["detail"]


def only_invalid(verdict: dict) -> str:
    assert verdict["exit_code"] == 2
    return " ".join(f["detail"] for f in verdict["findings"] if f["outcome"] == "invalid")


@settings(
    max_examples=60, deadline=None, database=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(data=st.data())
def test_damaged_records_have_a_verdict(project: Path, data: st.DataObject) -> None:
    before = project / "before/metrics"
    if not before.exists():
        shutil.copytree(METRICS, before)
    side = data.draw(st.sampled_from((before, project / METRICS)))
    name = data.draw(st.sampled_from(sorted(p.relative_to(before) for p in before.rglob("*.json"))))
    file = side / name
    sound = file.read_bytes()
    try:
        tree = json.loads(sound)
        fields = tree[0] if isinstance(tree, list) else tree
        fields.pop("sha256", None)  # a digest of the fields would only ever say that they changed
        file.write_text(as_json(data.draw(spoiled(tree))))
        assert main(["gate", "--baseline", "before"]) in (0, 1, 2, 3)
    finally:
        file.write_bytes(sound)
