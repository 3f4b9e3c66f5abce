"""Times the model on an Android phone by LiteRT's benchmark_model, over adb.

    python phone.py [--serial S] [--benchmark-model FILE] [--units cpu,gpu,npu] [--threads N]
                    [--json FILE]

It runs on the computer that the phone is connected to. Files are pushed only where the SHA-256
that the phone computes differs. FILE is LiteRT's or TensorFlow Lite's benchmark_model for Android;
without it one that lies on the phone is used. A GPU or NPU that took no operators has no times, as
benchmark_model would print those of the CPU. Exit code 1 if nothing could be measured.
"""

from __future__ import annotations

import common
from common import BundleError

# isort: split

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

THERE = "/data/local/tmp/edgestill"
BINARIES = (f"{THERE}/benchmark_model", "/data/local/tmp/benchmark_model")
"""Where benchmark_model lies on a phone; FILE is pushed to the first."""
DOWNLOAD = "https://developers.google.com/edge/litert/next/benchmark"
UNITS: dict[str, tuple[str, ...]] = {
    "cpu": (),
    "gpu": ("--use_gpu=true",),
    "npu": ("--use_npu=true", "--use_nnapi=true"),  # LiteRT's, TensorFlow Lite's
}
"""Flags by unit. benchmark_model warns of unknown flags and goes on."""
ON_THE_CPU = ("TfLiteXNNPackDelegate", "YNNPackDelegate")
TIMEOUT = 900
"""Seconds that one command may take."""


class Phone:
    """A phone that adb reaches."""

    def __init__(self, adb: str, serial: str) -> None:
        self._adb = [adb, "-s", serial]
        self._lost = re.compile(
            rf"^(?:adb: )?error: .*(?:device '{re.escape(serial)}' not found|device offline)", re.M
        )

    def shell(self, command: str) -> tuple[int, str]:
        """Exit code of a command there, and what it printed."""
        return self._ask("shell", command)

    def _ask(self, *words: str) -> tuple[int, str]:
        """Exit code and text of an adb command; where adb lost the phone, a `BundleError`."""
        code, text = _run([*self._adb, *words])
        if code and (lost := self._lost.search(text)):
            raise BundleError(lost[0], "is the phone still connected? `adb devices` lists it")
        return code, text

    def push(self, file: Path, there: str) -> None:
        code, text = self._ask("push", str(file), there)
        if code:
            raise BundleError(f"adb push {there}: {text.strip()}", "is the phone's storage full?")

    def digests(self, files: list[str]) -> dict[str, str]:
        """SHA-256 by path of those files that exist, taken by the phone itself."""
        _, text = self.shell("sha256sum " + " ".join(files))
        lines = re.findall(r"^([0-9a-f]{64})\s+\*?(/\S+)\s*$", text, re.MULTILINE)
        return {file: digest for digest, file in lines}

    def machine(self) -> dict[str, Any]:
        """The phone's record, with the field names of bench.py where it has them."""
        found = re.findall(r"^\[(\S+)\]: \[(.*)\]\s*$", self.shell("getprop")[1], re.MULTILINE)
        known = dict(found)
        soc = f"{known.get('ro.soc.manufacturer', '')} {known.get('ro.soc.model', '')}".strip()
        cores = self.shell("nproc")[1].strip()
        code, governor = self.shell("cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        maker, model = known.get("ro.product.manufacturer"), known.get("ro.product.model")
        virtual = known.get("ro.boot.qemu") == "1" or known.get("ro.kernel.qemu") == "1"
        return {
            "model": f"{maker} {model}",
            "cpu": soc or known.get("ro.board.platform"),  # Android before 12 names no SoC
            "architecture": known.get("ro.product.cpu.abi"),
            "cores": int(cores) if cores.isdigit() else None,
            "system": "Android",
            "android": known.get("ro.build.version.release"),
            "kernel": self.shell("uname -r")[1].strip(),
            "governor": None if code else governor.strip(),
            **({"emulator": "Android emulator"} if virtual else {}),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the model on an Android phone.")
    parser.add_argument(
        "--serial", metavar="S", default=os.environ.get("ANDROID_SERIAL"),
        help="of the phone, as `adb devices` lists it; $ANDROID_SERIAL, or the only one",
    )  # fmt: skip
    parser.add_argument("--benchmark-model", type=Path, metavar="FILE", help="to be pushed, too")
    parser.add_argument("--units", default="cpu,gpu,npu", metavar="LIST", help="cpu,gpu,npu")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the CPU; 1")
    parser.add_argument("--warmup-runs", type=int, default=10, metavar="N", help="10")
    parser.add_argument("--runs", type=int, default=100, metavar="N", help="at least; 100")
    parser.add_argument("--min-seconds", type=float, default=1.0, metavar="S", help="at least; 1")
    parser.add_argument("--npu-libraries", metavar="FOLDER", help="of the NPU's, on the phone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, too")
    arguments = parser.parse_args()
    units = arguments.units.split(",")
    if not set(units) <= set(UNITS):
        parser.error(f"--units are some of {','.join(UNITS)}")
    if min(arguments.threads, arguments.warmup_runs, arguments.runs) < 1:
        parser.error("--threads, --warmup-runs and --runs are at least 1")
    common.check_files()
    phone = connect(arguments.serial)
    binary = find_binary(phone, arguments.benchmark_model)
    folder = deliver_model(phone)
    result: dict[str, Any] = {
        "bundle": common.identity(),
        "machine": phone.machine(),
        "runtime": {"benchmark_model": f"sha256:{phone.digests([binary]).get(binary)}"},
        "threads": arguments.threads,
        "results": [measure(phone, binary, folder, unit, arguments) for unit in units],
    }
    print("{student} for {backend}, {precision}; bundle {digest}".format(**result["bundle"]))
    print("{model}, {cpu}, Android {android}, kernel {kernel}".format(**result["machine"]))
    for one in result["results"]:
        print(_line(one))
    if arguments.json:
        common.write_json(arguments.json, result)
    return 0 if any(one["status"] == "measured" for one in result["results"]) else 1


def connect(serial: str | None) -> Phone:
    """The phone of that serial number, or the only one."""
    adb = shutil.which("adb")
    if adb is None:
        raise BundleError(
            "there is no adb on the PATH",
            "install Android's platform tools: "
            "https://developer.android.com/tools/releases/platform-tools",
        )
    code, text = _run([adb, "devices"])
    if code:
        raise BundleError(f"adb devices: {text.strip()}")
    listed = text.partition("List of devices attached")[2].splitlines()
    states = dict(line.split(None, 1) for line in listed if len(line.split(None, 1)) == 2)
    if not states:
        raise BundleError("adb sees no phone", "connect one and turn on its USB debugging")
    if serial is None and len(states) > 1:
        raise BundleError(f"adb sees {', '.join(states)}", "name one of them with --serial")
    serial = serial or next(iter(states))
    state = states.get(serial, "not connected").strip()
    if state == "unauthorized":
        raise BundleError(f"{serial}: unauthorized", "unlock the phone and allow this computer")
    if state != "device":
        raise BundleError(f"{serial}: {state}", "`adb devices` shows what is connected")
    return Phone(adb, serial)


def find_binary(phone: Phone, given: Path | None) -> str:
    """Path of benchmark_model on the phone, pushed there if a file was named."""
    if given is not None:
        if not given.is_file():
            raise BundleError(f"{given}: there is no such file", f"download it from {DOWNLOAD}")
        deliver(phone, {BINARIES[0]: given})
        phone.shell(f"chmod 755 {BINARIES[0]}")
        return BINARIES[0]
    for there in BINARIES:
        if phone.shell(f"test -x {there}")[0] == 0:
            return there
    raise BundleError(
        f"no benchmark_model was named, and none lies in {THERE} on the phone",
        f"download it from {DOWNLOAD} and name it with --benchmark-model",
    )


def deliver_model(phone: Phone) -> str:
    """Folder on the phone that holds the model and the first golden image."""
    folder = f"{THERE}/{common.bundle_digest()}"
    name = common.record()["model_file"]
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch) / "image.bin"
        image.write_bytes(common.golden()[0][0].tobytes())
        deliver(phone, {f"{folder}/{name}": common.FOLDER / name, f"{folder}/image.bin": image})
    return folder


def deliver(phone: Phone, files: dict[str, Path]) -> None:
    """Push files, by path on the phone, that are missing or differ there, and check them."""
    wanted = {path: hashlib.sha256(file.read_bytes()).hexdigest() for path, file in files.items()}
    there = phone.digests(list(wanted))
    stale = [path for path in wanted if there.get(path) != wanted[path]]
    for path in stale:
        phone.shell(f"mkdir -p {path.rpartition('/')[0]}")
        phone.push(files[path], path)
    there = phone.digests(stale) if stale else {}
    for path in stale:
        if there.get(path) != wanted[path]:
            raise BundleError(
                f"{path}: its SHA-256 on the phone is {there.get(path, 'not known')}, "
                f"not {wanted[path]}",
                "is the phone's storage full? `adb shell sha256sum` has to exist (Android 8)",
            )


def measure(
    phone: Phone, binary: str, folder: str, unit: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The result of benchmark_model for one unit; times only with the `status` "measured".

    TensorFlow Lite's tool reads a golden image, LiteRT's makes random pixels.
    """
    size, channels = common.record()["image_size"], common.record()["channels"]
    flags = [
        f"--graph={folder}/{common.record()['model_file']}",
        f"--num_threads={arguments.threads}",
        f"--warmup_runs={arguments.warmup_runs}",
        f"--num_runs={arguments.runs}",
        f"--min_secs={arguments.min_seconds}",
        "--input_layer=image",
        f"--input_layer_shape=1,{size},{size},{channels}",
        f"--input_layer_value_files=image:{folder}/image.bin",
        *UNITS[unit],
    ]
    libraries = shlex.quote(arguments.npu_libraries or "")
    if unit == "npu" and arguments.npu_libraries:
        flags += [f"--dispatch_library_path={libraries}"]
        flags += [f"--compiler_plugin_library_path={libraries}"]
    code, text = phone.shell(" ".join([f"LD_LIBRARY_PATH={libraries}", binary, *flags]))
    taken, times = delegates(text), parse(text)
    result: dict[str, Any] = {"unit": unit, "status": "failed", "delegates": taken}
    if code or times is None:
        errors = re.findall(r"^.*(?:ERROR|FATAL|error|denied|not found).*$", text, re.MULTILINE)
        last = errors[-3:] or text.strip().splitlines()[-3:]
        why = common.one_line(" | ".join(line.strip() for line in last) or "it printed nothing")
        return {**result, "reason": f"benchmark_model ended with exit code {code}: {why}"}
    if unit != "cpu" and not _took(taken, text):
        reason = f"the {unit.upper()} took nothing of the graph: these would be the CPU's times"
        unknown = re.search(r"Unconsumed cmdline flags: (.*)", text)
        if unknown and set(UNITS[unit]) <= set(unknown.group(1).split()):
            reason = f"this benchmark_model has no {unit.upper()}"
        return {**result, "status": "not_measured", "reason": reason}
    return {**result, "status": "measured", **times}


def delegates(text: str) -> list[dict[str, Any]]:
    """How many operators each delegate took, in how many partitions, from the runtime's log."""
    line = r"Replacing (\d+) out of (\d+) node\(s\) with delegate \((\S+)\) node, yielding (\d+)"
    return [
        {"delegate": name, "operators": int(some), "of": int(every), "partitions": int(pieces)}
        for some, every, name, pieces in re.findall(line, text)
    ]


def _took(taken: list[dict[str, Any]], text: str) -> bool:
    """Whether anything but the CPU executed operators."""
    refused = r"Though (?!XNNPACK)\S+ delegate is explicitly|Restored original execution plan"
    if re.search(refused, text):
        return False
    applied = re.findall(r"Explicitly applied (\S+) delegate, and the model graph will be", text)
    others = [one for one in taken if one["operators"] and one["delegate"] not in ON_THE_CPU]
    return bool(others) or any(name != "XNNPACK" for name in applied)


def parse(text: str) -> dict[str, Any] | None:
    """Times in milliseconds and memory in MB from what benchmark_model printed; None: no times.

    Both tools print a line of statistics in microseconds for the warm-up and one for the
    inferences; the summaries around them differ. Percentiles are there if the tool has them.
    """
    number = r"([-+.\deE]+)"
    rows: list[dict[str, str]] = [
        dict(re.findall(rf"(\w+)={number}", line)) for line in text.splitlines()
    ]
    counted = [row for row in rows if "count" in row and "curr" in row]
    start = re.search(rf"Initialized session in {number}\s*ms", text)
    if len(counted) < 2 or start is None:
        return None
    first, last = counted[0], counted[-1]
    names = {"mean": "avg", "p50": "median", "p5": "p5", "p95": "p95", "min": "min", "max": "max"}
    # where all times are the same, only the last one is printed
    row = {**dict.fromkeys(("avg", "min", "max"), last["curr"]), **last}
    result: dict[str, Any] = {
        "n": int(last["count"]),
        "latency_ms": {n: _milliseconds(row[key]) for n, key in names.items() if key in row},
        "load_ms": float(start.group(1)),
        "first_ms": _milliseconds(first.get("first", first["curr"])),
        "warmup_ms": _milliseconds(first.get("avg", first["curr"])),
    }
    memory = re.search(rf"Memory footprint delta.*init={number} overall={number}", text)
    memory = memory or re.search(
        rf"Init footprint:\s+{number} MB[\s\S]*?Overall footprint:\s+{number} MB", text
    )
    if memory:
        result["memory_mb"] = {"load": float(memory.group(1)), "overall": float(memory.group(2))}
    return result


def _milliseconds(microseconds: str) -> float:
    return round(float(microseconds) / 1e3, 6)


def _line(one: dict[str, Any]) -> str:
    if one["status"] != "measured":
        return f"{one['unit']}: {one['status'].replace('_', ' ')}: {one['reason']}"
    text = "{unit}: mean {mean:.3f} ms of {n} inferences".format(**one, **one["latency_ms"])
    taken = ["{operators} of {of} operators by {delegate}".format(**d) for d in one["delegates"]]
    return "; ".join([f"{text}, load {one['load_ms']:.1f} ms", *taken])


def _run(command: list[str]) -> tuple[int, str]:
    """Exit code, and what went to either output."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {TIMEOUT} seconds"
    return done.returncode, done.stdout.decode("utf-8", errors="replace")


if __name__ == "__main__":
    common.finish(main)
