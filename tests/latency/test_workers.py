from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

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
