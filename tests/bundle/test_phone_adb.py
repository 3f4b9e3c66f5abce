"""phone.py through a real `adb`, which talks to a server with a phone of our making.

Everything that adb does is adb's own: its command line, its exit codes and what it prints. The
phone is this machine's shell, and benchmark_model prints what it printed on phones.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.bundle.write import _write_sums
from tests.bundle.adb_server import AdbServer
from tests.bundle.test_phone import Stand, stand

__all__ = ["stand"]

SERIAL = "emulator-5554"
pytestmark = pytest.mark.slow


@pytest.fixture
def server(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdbServer]:
    if shutil.which("adb") is None:
        pytest.skip("there is no adb here: Debian's package `adb` brings it")
    (stand.phone.parent / "tools/adb").unlink()  # the script, so that the real one is found
    with AdbServer(stand.phone, SERIAL) as server:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server.port))
        yield server
    assert server.unknown == [], "adb asked for what the server does not know"


def adb(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["adb", "-s", SERIAL, *arguments], text=True, capture_output=True)


def test_adb_is_served(server: AdbServer) -> None:
    assert adb("shell", "echo out; echo err >&2; exit 7").returncode == 7
    done = adb("shell", "echo out; echo err >&2")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 0)
    assert "host:version" in server.requests


def test_a_phone_is_measured_and_gets_every_byte(stand: Stand, server: AdbServer) -> None:
    result = stand.measure("--threads", "2", "--serial", SERIAL)
    assert [(one["unit"], one["status"]) for one in result["results"]] == [
        ("cpu", "measured"), ("gpu", "measured"), ("npu", "not_measured"),
    ]  # fmt: skip
    assert (result["machine"]["model"], result["machine"]["android"]) == ("Google Pixel 8", "15")
    digest = hashlib.sha256(stand.binary.read_bytes()).hexdigest()
    assert result["runtime"] == {"benchmark_model": f"sha256:{digest}"}
    assert stand.model().read_bytes() == (stand.bundle / "model.tflite").read_bytes()
    image = np.load(stand.bundle / "golden.npz")["images"][0]
    assert (stand.model().parent / "image.bin").read_bytes() == image.tobytes()
    assert server.requests.count("sync:") == 3


def test_a_model_of_many_packets_arrives_and_is_not_pushed_twice(
    stand: Stand, server: AdbServer
) -> None:
    large = np.random.default_rng(0).bytes(300_001)  # adb sends at most 64 KiB at a time
    (stand.bundle / "model.tflite").write_bytes(large)
    (stand.bundle / "SHA256SUMS").unlink()
    _write_sums(stand.bundle)
    stand.measure()
    assert stand.model().read_bytes() == large
    pushed = server.requests.count("sync:")
    stand.measure()
    assert server.requests.count("sync:") == pushed


@pytest.mark.parametrize(
    ("obstacle", "complaint"),
    [("full", "No space left on device"), ("damage", "its SHA-256 on the phone is")],
)
@pytest.mark.usefixtures("server")
def test_a_push_that_fails_is_told_in_adbs_words(
    stand: Stand, obstacle: str, complaint: str
) -> None:
    (stand.phone / obstacle).touch()
    done = stand.run("--benchmark-model", stand.binary)
    assert done.returncode == 1 and complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("listed", "complaint"),
    [
        ("", "adb sees no phone"),
        (f"{SERIAL}\tunauthorized\n", "unlock the phone and allow this computer"),
        (f"{SERIAL}\tdevice\nR3CN\tdevice\n", "name one of them with --serial"),
    ],
)
@pytest.mark.usefixtures("server")
def test_what_adb_lists_is_read(stand: Stand, listed: str, complaint: str) -> None:
    (stand.phone / "devices").write_text(f"List of devices attached\n{listed}\n")
    done = stand.run("--benchmark-model", stand.binary)
    assert done.returncode == 1 and complaint in done.stderr


@pytest.mark.usefixtures("server")
def test_a_phone_that_goes_away_is_named(stand: Stand) -> None:
    (stand.phone / "gone").touch()
    for given in ((), ("--benchmark-model", stand.binary)):
        done = stand.run(*given)
        assert done.returncode == 1 and f"device '{SERIAL}' not found" in done.stderr
        assert "is the phone still connected?" in done.stderr
        assert "Traceback" not in done.stderr
