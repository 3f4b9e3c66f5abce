from __future__ import annotations

import importlib.metadata
import os

import pytest

from pipeline.core.errors import PipelineError
from pipeline.latency.fingerprint import read_fingerprint, require_fingerprint, update_fingerprint
from pipeline.latency.records import FINGERPRINT, Fingerprint


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


def test_the_file_is_written_only_if_it_differs() -> None:
    machine, written = update_fingerprint()
    assert written and Fingerprint.read(FINGERPRINT) == machine
    os.utime(FINGERPRINT, ns=(1, 1))
    assert update_fingerprint() == (machine, False)
    assert FINGERPRINT.stat().st_mtime_ns == 1


def test_another_machines_file_is_refused_and_then_replaced() -> None:
    machine = read_fingerprint()
    machine.model_copy(update={"cores": 999}).write(FINGERPRINT)
    with pytest.raises(PipelineError, match="cores: 999 there") as caught:
        require_fingerprint()
    assert "python -m pipeline fingerprint" in str(caught.value)
    assert update_fingerprint() == (machine, True)
    assert require_fingerprint() == machine


def test_a_missing_file_says_how_to_make_it() -> None:
    with pytest.raises(PipelineError, match="python -m pipeline fingerprint"):
        require_fingerprint()
