"""The stage `fingerprint`: the machine, as far as latencies depend on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

from pipeline.backends.base.registry import backend, backend_names
from pipeline.core.errors import PipelineError
from pipeline.latency.harness import cores, system_text
from pipeline.latency.records import FINGERPRINT, Fingerprint

_INSTRUCTION_SETS = re.compile(
    r"(avx|amx|fma|f16c)\w*"  # x86
    r"|(asimd|sve|i8mm|bf16)\w*|sme(?!p$)\w*"  # Arm; smep is memory protection of x86
)


def read_fingerprint() -> Fingerprint:
    """Describe this machine; equal machines give equal records.

    Instruction sets have the kernel's names. `cores` are those that this process may use. Loads,
    clock frequencies and times are left out because they vary by themselves.
    """
    cpuinfo = _cpuinfo()
    return Fingerprint(
        cpu=_cpu(cpuinfo),
        architecture=platform.machine(),
        instruction_sets=_instruction_sets(cpuinfo),
        cores=cores(),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        kernel=platform.release(),
        governor=_governor(),
        accelerators=_accelerators(),
        runtimes=_runtimes(),
    )


def update_fingerprint() -> Fingerprint:
    """Stage `fingerprint`: write metrics/fingerprint.json, the same bytes on equal machines."""
    machine = read_fingerprint()
    machine.write(FINGERPRINT)
    return machine


def require_fingerprint() -> Fingerprint:
    """This machine's fingerprint, as it is recorded.

    Raises:
        PipelineError: where the record is missing or describes another machine.
    """
    recorded, machine = Fingerprint.read(FINGERPRINT), read_fingerprint()
    differing = [
        f"{field}: {getattr(recorded, field)} there, {getattr(machine, field)} here"
        for field in Fingerprint.model_fields
        if getattr(recorded, field) != getattr(machine, field)
    ]
    if differing:
        raise PipelineError(
            f"describes another machine ({'; '.join(differing)})",
            where=str(FINGERPRINT),
            fix="run `dvc repro`, whose stage `fingerprint` describes this one",
        )
    return machine


def _cpuinfo() -> dict[str, set[str]]:
    """All values of each key of /proc/cpuinfo, over all cores."""
    found: dict[str, set[str]] = {}
    for line in system_text(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), set()).add(value.strip())
    return found


def _cpu(cpuinfo: dict[str, set[str]]) -> str:
    if names := cpuinfo.get("model name"):
        return ", ".join(sorted(names))
    # Arm kernels name no model; the board's name and its kinds of cores identify it
    parts = {
        f"core {maker}/{part}"
        for maker in cpuinfo.get("CPU implementer", ())
        for part in cpuinfo.get("CPU part", ())
    }
    words = [_board(), *sorted(parts)]
    return ", ".join(word for word in words if word) or platform.machine()


def _instruction_sets(cpuinfo: dict[str, set[str]]) -> tuple[str, ...]:
    """The instruction sets for computing that all cores have."""
    lines = cpuinfo.get("flags") or cpuinfo.get("Features") or {""}
    common = set.intersection(*(set(line.split()) for line in lines))
    return tuple(sorted(flag for flag in common if _INSTRUCTION_SETS.fullmatch(flag)))


def _governor() -> str | None:
    files = [
        Path(f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor")
        for core in os.sched_getaffinity(0)
    ]
    return ", ".join(sorted({system_text(file) for file in files} - {""})) or None


def _accelerators() -> tuple[str, ...]:
    """NVIDIA GPUs with driver and power limit, and a Jetson board with its power mode."""
    found = _output(
        "nvidia-smi", "--query-gpu=name,driver_version,power.limit", "--format=csv,noheader"
    )
    if not found:  # the driver without its tools, as in a small container
        folders = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        found = [
            line.partition(":")[2].strip()
            for file in folders
            for line in system_text(file).splitlines()
            if line.startswith("Model:")
        ]
    board = _board()
    if "NVIDIA" in board or "Jetson" in board:
        mode = _output("nvpmodel", "-q")
        found.append(", ".join([board, *(line for line in mode if "Power Mode" in line)]))
    return tuple(found)


def _runtimes() -> dict[str, str]:
    """Versions of all runtimes and their variants, such as `onnxruntime-gpu`, by distribution."""
    known = {package for name in backend_names() for package in backend(name).runtimes}
    found = {}
    for distribution in importlib.metadata.distributions():
        name = str(distribution.metadata["Name"]).lower().replace("_", "-")
        if name in known or name.startswith(tuple(f"{package}-" for package in known)):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def _board() -> str:
    return system_text(Path("/proc/device-tree/model")).strip("\0")


def _output(*command: str) -> list[str]:
    """Lines that a tool prints, or none where it is missing or finds no device."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []
    except subprocess.TimeoutExpired:
        raise PipelineError(
            "did not answer within 30 s", where=command[0], fix="check its driver"
        ) from None
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
