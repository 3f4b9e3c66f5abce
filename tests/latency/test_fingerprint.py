from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.latency.fingerprint import read_fingerprint, require_fingerprint, update_fingerprint
from pipeline.latency.records import FINGERPRINT, Fingerprint

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_two_readings_of_one_machine_are_equal() -> None:
    assert read_fingerprint() == read_fingerprint()


def test_it_tells_of_this_machine() -> None:
    machine = read_fingerprint()
    assert machine.cpu
    assert machine.kernel == os.uname().release
    assert machine.cores == len(os.sched_getaffinity(0))
    assert machine.memory_gib >= 1
    assert machine.runtimes["onnxruntime"] == importlib.metadata.version("onnxruntime")


def test_only_instruction_sets_that_compute_count() -> None:
    assert not {"smep", "smap", "fpu", "ht"} & set(read_fingerprint().instruction_sets)


def test_equal_machines_give_equal_bytes() -> None:
    machine = update_fingerprint()
    first = FINGERPRINT.read_bytes()
    assert Fingerprint.read(FINGERPRINT) == machine
    FINGERPRINT.unlink()
    assert update_fingerprint() == machine and FINGERPRINT.read_bytes() == first


def test_the_stage_script_runs_by_hand(tmp_path: Path) -> None:
    done = [
        subprocess.run(
            [sys.executable, "-m", "stages.fingerprint"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout + FINGERPRINT.read_text()
        for seed in ("1", "2")
    ]  # fmt: skip
    assert done[0] == done[1] and f"{read_fingerprint().cores} core(s)" in done[0]


def test_another_machines_file_is_refused_and_then_replaced() -> None:
    machine = read_fingerprint()
    machine.model_copy(update={"cores": 999}).write(FINGERPRINT)
    with pytest.raises(PipelineError, match="cores: 999 there") as caught:
        require_fingerprint()
    assert "stage `fingerprint`" in str(caught.value)
    assert update_fingerprint() == machine == require_fingerprint()


def test_a_missing_file_says_how_to_make_it() -> None:
    with pytest.raises(PipelineError, match=r"no Fingerprint record\n.*`dvc repro`"):
        require_fingerprint()
