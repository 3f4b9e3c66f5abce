from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.backends.base.artifact import Artifact
from pipeline.latency import workers
from pipeline.latency.workers import Target, Worker, WorkerFailedError


def spoken(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> Worker:
    """A worker whose process runs `code` instead."""
    (folder / "impostor.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(workers, "worker", SimpleNamespace(__name__="impostor"))
    return Worker(Target("a", "onnxruntime", folder, folder), threads=1)


def test_half_an_answer_is_a_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, signal; input(); print('{\"load_ms\": 1', end='', flush=True); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    with (
        spoken(monkeypatch, tmp_path, code) as worker,
        pytest.raises(WorkerFailedError, match="killed by signal 9"),
    ):
        worker.ask({})


def test_silence_is_told_even_while_the_process_is_being_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ANSWER_SECONDS", 0.01)
    with spoken(monkeypatch, tmp_path, "import time; time.sleep(60)") as worker:
        kill = worker._process.kill

        def slowly() -> None:
            kill()
            time.sleep(0.3)

        monkeypatch.setattr(worker._process, "kill", slowly)
        with pytest.raises(WorkerFailedError, match="no answer within"):
            worker.ask({})


@pytest.mark.usefixtures("workspace")
def test_a_worker_that_dies_says_how(tmp_path: Path) -> None:
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((1, 8, 8, 3), np.uint8))
    model = Artifact("mnv4_small_050", "onnxruntime", "fp32").folder / "model.onnx"
    with Worker(Target("a", "onnxruntime", model, images), threads=1) as worker:
        assert worker.ask({})["load_ms"] > 0
        worker._process.kill()
        with pytest.raises(WorkerFailedError, match="killed by signal 9"):
            worker.ask({"min_runs": 1, "min_seconds": 0.001})


def test_a_worker_that_is_silent_is_ended(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(workers, "ANSWER_SECONDS", 0.01)
    target = Target("a", "onnxruntime", tmp_path / "none.onnx", tmp_path / "none.npy")
    with (
        Worker(target, threads=1) as worker,
        pytest.raises(WorkerFailedError, match="no answer within"),
    ):
        worker.ask({})
