"""Bundles on emulated Arm CPUs; `make test-arm` does it with those of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.core.errors import PipelineError
from tests.arm import emulated
from tests.bundle.conftest import shipped, student

__all__ = ["shipped", "student"]
ARM64, ARMHF = emulated.SYSTEMS
RANGE = "pip install 'onnxruntime>=1.19.2,<=1.32.0'"
LAST = "pip install tflite-runtime==2.14.0 'numpy<2'"


@pytest.mark.parametrize(
    ("install", "system", "asked"),
    [
        ({"runtime": (RANGE,)}, ARM64, ("onnxruntime>=1.19.2,<=1.32.0",)),
        ({"runtime": (RANGE,)}, ARMHF, ()),
        ({"runtime": (RANGE, LAST)}, ARM64, ("onnxruntime>=1.19.2,<=1.32.0",)),
        ({"runtime": (RANGE, LAST)}, ARMHF, ("tflite-runtime==2.14.0", "numpy<2")),
        ({"runtime": ("pip install tensorrt",), "graph": (RANGE,)}, ARM64,
         ("onnxruntime>=1.19.2,<=1.32.0",)),
    ],
)  # fmt: skip
def test_a_system_gets_what_the_bundle_says_itself(
    install: dict[str, tuple[str, ...]], system: emulated.System, asked: tuple[str, ...]
) -> None:
    assert emulated.command(SimpleNamespace(install=install), system) == asked


def test_packages_come_from_where_this_machine_gets_them_or_as_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(emulated.MIRROR, "http://mirror/debian")
    assert emulated._mirror() == "http://mirror/debian"
    monkeypatch.delenv(emulated.MIRROR)
    monkeypatch.setattr(
        emulated, "_output", lambda *_: "http://a/debian-security/\nhttp://b/debian/\n"
    )
    assert emulated._mirror() == "http://b/debian/"
    monkeypatch.setattr(emulated, "_output", lambda *_: "http://c/ubuntu/\n")
    with pytest.raises(PipelineError, match=emulated.MIRROR):
        emulated._mirror()


@pytest.mark.parametrize(
    ("written", "verdict", "why"),
    [
        ({"verdict": "PASSED", "machine": {"emulator": "QEMU"}}, "PASSED", None),
        ({"verdict": "PASSED", "machine": {}}, "FAILED", "verify.py did not notice the emulator"),
        (None, "FAILED", "exit code 139: Segmentation fault"),
    ],
)
def test_only_a_result_that_names_the_emulator_counts(
    written: dict | None, verdict: str, why: str | None, tmp_path: Path, monkeypatch
) -> None:
    """A stand-in for QEMU that leaves the file that verify.py would, or dies."""
    program = tmp_path / ARM64.qemu
    end = "echo Segmentation fault >&2; exit 139"
    if written:
        (tmp_path / "written.json").write_text(json.dumps(written))
        end = f'while [ "$1" != --json ]; do shift; done; cp {tmp_path}/written.json "$2"'
    program.write_text(f"#!/bin/sh\n{end}\n")
    program.chmod(0o755)
    monkeypatch.setattr(emulated, "qemu", lambda: tmp_path)
    monkeypatch.setattr(emulated, "system_root", lambda *_: tmp_path)
    monkeypatch.setattr(emulated, "wheels", lambda *_: tmp_path)
    monkeypatch.setattr(emulated, "RESULTS", tmp_path / "results")
    record = SimpleNamespace(install={"runtime": (RANGE,)})
    monkeypatch.setattr(emulated.Bundle, "read", lambda _: record)
    found = emulated.verify(tmp_path, ARM64, "cortex-a53")
    assert (found["verdict"], found.get("why")) == (verdict, why)
    assert emulated.line(tmp_path, ARM64, "cortex-a53", found).startswith(f"{verdict} ")


def test_a_machine_without_debians_tools_is_told_so() -> None:
    with pytest.raises(PipelineError, match="there is no apt-nowhere on this") as raised:
        emulated._output("apt-nowhere", "update")
    assert (
        raised.value.fix == "run it on Debian or Ubuntu: its systems are made of Debian's packages"
    )
    with pytest.raises(PipelineError, match="it fails"):
        emulated._output("ls", "/nowhere")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "system", "cpu"),
    [
        ("openvino", ARM64, "cortex-a53"),
        ("tflite", ARM64, "cortex-a53"),
        ("tflite", ARMHF, "cortex-a7"),
    ],
)
def test_int8_bundles_verify_on_emulated_arm_cpus(
    name: str, system: emulated.System, cpu: str, shipped: dict[str, list[Path]]
) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("apt-get is missing: the emulated systems are made of Debian's packages")
    (folder,) = (one for one in shipped[name] if one.name.endswith("int8"))
    found = emulated.verify(folder, system, cpu)
    assert found["verdict"] == "PASSED", found["why"]
    assert found["machine"]["architecture"] == system.machine
