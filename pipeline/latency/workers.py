"""The processes that measure, one for each compiled file, from the parent's side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.latency import worker

ANSWER_SECONDS = 300
"""A worker that does not answer for so long has failed."""


@dataclass(frozen=True)
class Target:
    """A compiled file to be measured."""

    name: str
    """`reference`, or the key of an artifact."""
    backend: str
    model: Path
    images: Path
    """An .npy file of raw pixels uint8 [N, H, W, C]."""


class WorkerFailedError(Exception):
    """Why an artifact could not be measured."""


class Worker:
    """A process of `pipeline.latency.worker` for one target; a context manager."""

    def __init__(self, target: Target, threads: int) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        root = Path(__file__).parents[2]
        paths = [str(root), os.environ.get("PYTHONPATH", "")]
        words = [target.backend, str(target.model), str(target.images), str(threads)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", worker.__name__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it has nothing to clean up
        self._process.communicate()
        self._stderr.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; `WorkerFailedError` for an error, a timeout, or a crash."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        silent = threading.Event()

        def end() -> None:
            silent.set()
            process.kill()

        timer = threading.Timer(ANSWER_SECONDS, end)
        timer.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line.endswith("\n"):  # it died before or in its answer
            raise WorkerFailedError(self._death(silent.is_set()))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailedError(answer["error"])
        return answer

    def _death(self, silent: bool) -> str:
        if silent:
            return f"no answer within {ANSWER_SECONDS} s"
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"the process died ({how}): {last}"
