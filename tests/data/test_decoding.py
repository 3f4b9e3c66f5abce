"""The decoding processes end with their parent, quietly, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.data.test_prepare import ROOT, fill


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Stage prepare in a process group of its own, as a shell starts it."""
    for label, name in enumerate(("cat", "dog")):
        fill(tmp_path / "data" / "source" / name, 200, label, (224, 224))
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["data"] |= {"source": "folder", "image_size": 224}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    here = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    subprocess.run([sys.executable, "-m", "stages.fetch"], check=True, **here)
    command = [sys.executable, "-m", "stages.prepare"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, **here
    )
    yield process
    with contextlib.suppress(ProcessLookupError):  # orphans, if any, are in the group as well
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def workers(stage: subprocess.Popen[str]) -> list[psutil.Process]:
    """The stage's decoding processes, as soon as there are some."""
    end = time.monotonic() + 60
    while time.monotonic() < end and stage.poll() is None:
        children = psutil.Process(stage.pid).children()
        found = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        if found:
            return found
        time.sleep(0.005)
    pytest.fail("no decoding process was started")


def test_ctrl_c_in_a_terminal_is_one_line_even_while_workers_start(
    stage: subprocess.Popen[str], tmp_path: Path
) -> None:
    """The moment that matters is a worker's imports: it could not yet have been told."""
    worker = workers(stage)[0]
    while "multiarray" not in Path(f"/proc/{worker.pid}/maps").read_text():
        time.sleep(0.002)
    os.killpg(stage.pid, signal.SIGINT)
    _, said = stage.communicate(timeout=60)
    assert stage.returncode == 130
    assert said.count("\n") == 1 and said.startswith("interrupted")
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["raw", "source"]


def test_a_killed_stage_leaves_no_process_behind(stage: subprocess.Popen[str]) -> None:
    started = workers(stage)
    stage.kill()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive
