"""Two workers on a real PostgreSQL, one of which is killed: its candidate is not lost."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.search import trials as key
from pipeline.search.records import TRIALS
from pipeline.search.session import open_search
from tests.search.test_search import SEARCH, project, write  # noqa: F401 - a fixture
from tests.training.conftest import ROOT, configured, fashion, folder  # noqa: F401 - fixtures

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [
    Path(found).parent for found in [shutil.which("initdb")] if found
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not INSTALLED, reason="PostgreSQL is not installed: apt install postgresql"),
    pytest.mark.skipif(
        importlib.util.find_spec("psycopg") is None,
        reason="psycopg is not installed: pip install 'psycopg[binary]'",
    ),
]


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty database; its server refuses to run as root."""
    place = tmp_path_factory.mktemp("postgres")
    as_user: list[str] = []
    if os.geteuid() == 0:
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(place, "postgres")
        for above in (place.parent, place.parent.parent):
            above.chmod(0o755)
    data, control = str(place / "data"), [*as_user, INSTALLED[-1] / "pg_ctl", "-D"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(*command: str | Path) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=place)

    call(*as_user, INSTALLED[-1] / "initdb", "-D", data, "-U", "searcher", "--auth=trust")
    options = f"-p {port} -k {place} -c listen_addresses=127.0.0.1"
    call(*control, data, "-o", options, "-l", str(place / "log"), "-w", "start")
    yield f"postgresql+psycopg://searcher@127.0.0.1:{port}/postgres"
    call(*control, data, "-m", "immediate", "stop")


def worker() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "search", "--worker"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.usefixtures("project")
def test_a_killed_worker_loses_no_candidate(database: str) -> None:
    space = SEARCH["space"] | {"lr": [0.002, 0.004, 0.006, 0.008]}
    write(SEARCH | {"storage": database, "space": space, "budget": {"hours": 1, "trials": 8}})
    open_search()
    first, second = worker(), worker()
    while len(list(TRIALS.glob("*/*/params.yaml"))) < 2:
        assert first.poll() is None and second.poll() is None
        time.sleep(0.2)
    second.send_signal(signal.SIGKILL)
    second.wait()
    said, _ = first.communicate(timeout=900)
    assert first.returncode == 3, said
    again = worker()  # whose first look finds what the dead one left, if the other did not
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        said, _ = again.communicate(timeout=900)
        found = open_search().standing().candidates
        if len(found) == 8:
            break
        time.sleep(20)
        again = worker()
    assert len(found) == 8, said
    points = [tuple(sorted(seen.choice.items())) for seen in found]
    assert len(set(points)) == 8
    assert {seen.outcome for seen in found} <= {key.REJECTED, key.HALVED, key.DONE}
