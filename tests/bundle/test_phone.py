"""phone.py against a stand-in for the phone: there is none here.

`adb` is a shell script. It keeps the phone's files in a folder and runs what it is asked to run by
this machine's shell and coreutils; benchmark_model is a script that prints what the real tool
printed on phones. What Android and a real benchmark_model do beyond that is not tested; what adb
does is, in test_phone_adb.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.backends.base.registry import backend
from pipeline.bundle.write import _copy_scripts, _write_sums

ADB = """#!/bin/sh
if [ "$1" = devices ]; then cat "$PHONE/devices"; exit; fi
[ "$1 $2" = "-s emulator-5554" ] || exit 9
verb=$3; shift 3
echo "$verb $*" >>"$PHONE/log"
if [ "$verb" = push ]; then
    if [ -e "$PHONE/full" ]; then echo "adb: error: No space left on device" >&2; exit 1; fi
    cp "$1" "$PHONE$2"
    if [ -e "$PHONE/damage" ]; then echo x >>"$PHONE$2"; fi
    exit
fi
command=$(printf %s "$*" | sed "s#/data/#$PHONE/data/#g")
printed=$(PATH="$PHONE/bin:$PATH" sh -c "$command" 2>&1)
code=$?
printf '%s\\n' "$printed" | sed "s#$PHONE/#/#g"
exit $code
"""
GETPROP = """#!/bin/sh
echo "[ro.product.manufacturer]: [Google]"
echo "[ro.product.model]: [Pixel 8]"
echo "[ro.soc.manufacturer]: [Google]"
echo "[ro.soc.model]: [Tensor G3]"
echo "[ro.product.cpu.abi]: [arm64-v8a]"
echo "[ro.build.version.release]: [15]"
"""
BENCHMARK = """#!/bin/sh
echo "$*" >>"$PHONE/arguments"
unit=cpu
case "$*" in *--use_gpu=true*) unit=gpu;; *--use_npu=true*) unit=npu;; esac
cat "$PHONE/$unit.txt"
[ ! -e "$PHONE/$unit.code" ] || exit "$(cat "$PHONE/$unit.code")"
"""

# TensorFlow Lite's tool on a phone: github.com/tensorflow/tensorflow/issues/43541
TFLITE_GPU = """STARTING!
Log parameter values verbosely: [0]
Min num runs: [50]
Num threads: [4]
Use gpu: [1]
INFO: Initialized TensorFlow Lite runtime.
INFO: Created TensorFlow Lite delegate for GPU.
INFO: Initialized OpenCL-based API.
INFO: Created 1 GPU delegate kernels.
Explicitly applied GPU delegate, and the model graph will be completely executed by the delegate.
The input model file size (MB): 7.07479
Initialized session in 870.557ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=4 first=130565 curr=120829 min=117370 max=130565 avg=122373 std=4930

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=119212 curr=118055 min=113737 max=124776 avg=119375 std=1948

Inference timings in us: Init: 870557, First inference: 130565, Warmup (avg): 122373, Inference (avg): 119375
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at your discretion.
Memory footprint delta from the start of the tool (MB): init=2.03516 overall=2.03516
"""  # noqa: E501
# The delegate is created, and takes nothing: github.com/tensorflow/tensorflow/issues/56482
TFLITE_NNAPI_REFUSED = """INFO: Created TensorFlow Lite delegate for NNAPI.
NNAPI delegate created.
Though NNAPI delegate is explicitly applied, the model graph will not be executed by the delegate.
Initialized session in 12.5ms.
count=4 first=9100 curr=9000 min=8900 max=9100 avg=9000 std=70
count=50 first=9000 curr=9050 min=8800 max=9300 avg=9010 std=90
"""
# LiteRT's tool: github.com/mlcommons/mobile_app_open/issues/1134, with the lines that go before it
# and the runtime's own line of who took what, as phones log it
LITERT_GPU = """INFO: STARTING!
WARN: Unconsumed cmdline flags: --input_layer=image --input_layer_shape=1,8,8,3
INFO: Replacing 66 out of 70 node(s) with delegate (LITERT_CL) node, yielding 3 partitions for subgraph 0 (main).
INFO: Replacing 4 out of 5 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 2 partitions for subgraph 0 (main).
INFO: The input model file size (MB): 1.3
INFO: Initialized session in 23744.7ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=1 curr=7441040

INFO: Running benchmark for at least 10 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=10 first=7441000 curr=7420000 min=7416400 max=7448860 avg=7.4302e+06 std=9920 p5=7416400 median=7431000 p95=7448860

INFO: [benchmark_litert_model.h:90]
========== BENCHMARK RESULTS ==========
INFO: [benchmark_litert_model.h:94] Model initialization: 23744.73 ms
INFO: [benchmark_litert_model.h:96] Warmup (first):       7441.04 ms
INFO: [benchmark_litert_model.h:100] Inference (avg):      7430.20 ms (10 runs)
INFO: [benchmark_litert_model.h:124]
Memory Usage:
INFO: [benchmark_litert_model.h:126] Init footprint:       6391.74 MB
INFO: [benchmark_litert_model.h:128] Overall footprint:    6391.75 MB
"""  # noqa: E501
ONLY_XNNPACK = """INFO: Replacing 5 out of 5 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 1 partitions for subgraph 0 (main).
Initialized session in 3.5ms.
count=9 first=2000 curr=1500 min=1400 max=2000 avg=1600 std=70
count=700 first=1500 curr=1450 min=1400 max=1900 avg=1500.5 std=90
"""  # noqa: E501


@dataclass(frozen=True)
class Stand:
    """A bundle on this machine, and the phone's folder."""

    bundle: Path
    phone: Path
    binary: Path

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        path = f"{self.phone.parent}/tools:{os.environ['PATH']}"
        inherited = {
            k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "ANDROID_SERIAL")
        }
        return subprocess.run(
            [sys.executable, "-B", self.bundle / "phone.py", *arguments],
            env=inherited | {"PATH": path, "PHONE": str(self.phone)},
            text=True, capture_output=True,
        )  # fmt: skip

    def measure(self, *arguments: str | Path) -> dict[str, Any]:
        """The JSON of a run that ends well."""
        file = self.phone.parent / "result.json"
        done = self.run("--benchmark-model", self.binary, "--json", file, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(file.read_text()))

    def pushes(self) -> list[str]:
        """Names of the files that were pushed since the last time."""
        log = self.phone / "log"
        lines = log.read_text().splitlines()
        log.write_text("")
        return [line.rpartition("/")[2] for line in lines if line.startswith("push ")]

    def digest(self) -> str:
        return hashlib.sha256((self.bundle / "SHA256SUMS").read_bytes()).hexdigest()

    def model(self) -> Path:
        return self.phone / f"data/local/tmp/edgestill/{self.digest()}/model.tflite"


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    """A LiteRT bundle whose model nobody opens, and a phone that adb sees."""
    bundle, phone, tools = (tmp_path / name for name in ("bundle", "phone", "tools"))
    for folder in (bundle, phone / "bin", phone / "data/local/tmp", tools):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    _copy_scripts(backend("tflite"), bundle)
    (bundle / "model.tflite").write_bytes(rng.bytes(5000))
    record = {
        "student": "tiny", "backend": "tflite", "precision": "int8", "model_file": "model.tflite",
        "image_size": 8, "channels": 3,
    }  # fmt: skip
    (bundle / "bundle.json").write_text(json.dumps(record))
    images = rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    np.savez(bundle / "golden.npz", images=images, labels=[0, 1], logits=np.zeros((2, 3)))
    _write_sums(bundle)
    scripts = {
        tools / "adb": ADB,
        phone / "bin/getprop": GETPROP,
        tmp_path / "benchmark": BENCHMARK,
    }
    for file, text in scripts.items():
        file.write_text(text)
        file.chmod(0o755)
    (phone / "devices").write_text("List of devices attached\nemulator-5554\tdevice\n\n")
    for unit, text in {"cpu": ONLY_XNNPACK, "gpu": TFLITE_GPU, "npu": TFLITE_NNAPI_REFUSED}.items():
        (phone / f"{unit}.txt").write_text(text)
    return Stand(bundle, phone, tmp_path / "benchmark")


def test_results_name_the_bundle_the_phone_and_the_tool(stand: Stand) -> None:
    result = stand.measure("--threads", "2")
    assert result["bundle"] == {
        "student": "tiny", "backend": "tflite", "precision": "int8", "digest": stand.digest(),
    }  # fmt: skip
    machine = result["machine"]
    assert (machine["model"], machine["cpu"]) == ("Google Pixel 8", "Google Tensor G3")
    assert (machine["android"], machine["architecture"]) == ("15", "arm64-v8a")
    assert machine["cores"] >= 1 and machine["kernel"] == os.uname().release
    digest = hashlib.sha256(stand.binary.read_bytes()).hexdigest()
    assert result["runtime"] == {"benchmark_model": f"sha256:{digest}"}
    assert result["threads"] == 2
    assert [one["unit"] for one in result["results"]] == ["cpu", "gpu", "npu"]


def test_the_tool_is_given_the_model_the_golden_image_and_the_unit(stand: Stand) -> None:
    stand.measure("--threads", "3", "--runs", "7", "--npu-libraries", "/vendor/npu")
    cpu, gpu, npu = (stand.phone / "arguments").read_text().splitlines()
    folder = f"{stand.phone}/data/local/tmp/edgestill/{stand.digest()}"
    for flag in (
        f"--graph={folder}/model.tflite", "--num_threads=3", "--num_runs=7", "--warmup_runs=10",
        "--min_secs=1.0", "--input_layer_shape=1,8,8,3",
        f"--input_layer_value_files=image:{folder}/image.bin",
    ):  # fmt: skip
        assert all(flag in line.split() for line in (cpu, gpu, npu)), flag
    assert "--use_" not in cpu
    assert "--use_gpu=true" in gpu.split() and "--use_npu" not in gpu
    assert {"--use_npu=true", "--use_nnapi=true", "--dispatch_library_path=/vendor/npu"} <= set(
        npu.split()
    )
    image = np.load(stand.bundle / "golden.npz")["images"][0]
    assert (stand.model().parent / "image.bin").read_bytes() == image.tobytes()


def test_what_already_lies_on_the_phone_is_not_pushed_again(stand: Stand) -> None:
    stand.measure()
    assert sorted(stand.pushes()) == ["benchmark_model", "image.bin", "model.tflite"]
    stand.measure()
    assert stand.pushes() == []


def test_a_file_of_the_same_size_with_another_byte_is_pushed_again(stand: Stand) -> None:
    stand.measure()
    content = bytearray(stand.model().read_bytes())
    content[2500] ^= 1
    stand.model().write_bytes(content)
    stand.pushes()
    stand.measure()
    assert stand.pushes() == ["model.tflite"]
    assert stand.model().read_bytes() == (stand.bundle / "model.tflite").read_bytes()


def test_another_model_lies_in_another_folder(stand: Stand) -> None:
    stand.measure()
    first = stand.model()
    (stand.bundle / "model.tflite").write_bytes(b"another")
    (stand.bundle / "SHA256SUMS").unlink()
    _write_sums(stand.bundle)
    stand.measure()
    assert stand.model() != first and first.exists()
    assert stand.model().read_bytes() == b"another"


def test_the_tool_on_the_phone_serves_where_none_is_named(stand: Stand) -> None:
    done = stand.run("--units", "cpu")
    assert done.returncode == 1
    assert "no benchmark_model was named" in done.stderr
    assert "https://developers.google.com/edge/litert/next/benchmark" in done.stderr
    stand.measure("--units", "cpu")
    stand.pushes()
    assert stand.run("--units", "cpu").returncode == 0
    assert stand.pushes() == []


def test_times_of_tensorflow_lites_tool_are_read(stand: Stand) -> None:
    cpu, gpu, _ = stand.measure()["results"]
    assert cpu["latency_ms"] == {"mean": 1.5005, "min": 1.4, "max": 1.9}
    assert (cpu["status"], cpu["n"], cpu["load_ms"], cpu["first_ms"]) == ("measured", 700, 3.5, 2.0)
    assert "memory_mb" not in cpu
    assert gpu["latency_ms"] == {"mean": 119.375, "min": 113.737, "max": 124.776}
    assert (gpu["n"], gpu["load_ms"], gpu["first_ms"]) == (50, 870.557, 130.565)
    assert gpu["warmup_ms"] == 122.373
    assert gpu["memory_mb"] == {"load": 2.03516, "overall": 2.03516}


def test_times_of_literts_tool_are_read(stand: Stand) -> None:
    (stand.phone / "gpu.txt").write_text(LITERT_GPU)
    (gpu,) = stand.measure("--units", "gpu")["results"]
    assert gpu["status"] == "measured" and gpu["n"] == 10
    assert gpu["latency_ms"] == {
        "mean": 7430.2, "p50": 7431, "p5": 7416.4, "p95": 7448.86, "min": 7416.4, "max": 7448.86,
    }  # fmt: skip
    assert (gpu["load_ms"], gpu["first_ms"], gpu["warmup_ms"]) == (23744.7, 7441.04, 7441.04)
    assert gpu["memory_mb"] == {"load": 6391.74, "overall": 6391.75}
    assert gpu["delegates"] == [
        {"delegate": "LITERT_CL", "operators": 66, "of": 70, "partitions": 3},
        {"delegate": "TfLiteXNNPackDelegate", "operators": 4, "of": 5, "partitions": 2},
    ]


REFUSED = TFLITE_GPU.replace(
    "Explicitly applied GPU delegate, and the model graph will be completely executed",
    "Though GPU delegate is explicitly applied, the model graph will not be executed",
)
FELL_BACK = "ERROR: Restored original execution plan after delegate application failure.\n"


@pytest.mark.parametrize(
    ("unit", "printed", "reason"),
    [
        ("gpu", REFUSED, "the GPU took nothing of the graph"),
        ("gpu", ONLY_XNNPACK, "the GPU took nothing of the graph"),
        ("gpu", LITERT_GPU + FELL_BACK, "the GPU took nothing of the graph"),
        ("npu", TFLITE_NNAPI_REFUSED, "the NPU took nothing of the graph"),
        (
            "npu",
            "WARN: Unconsumed cmdline flags: --use_npu=true --use_nnapi=true\n" + ONLY_XNNPACK,
            "this benchmark_model has no NPU",
        ),
    ],
)
def test_times_of_the_cpu_are_never_those_of_another_unit(
    stand: Stand, unit: str, printed: str, reason: str
) -> None:
    (stand.phone / f"{unit}.txt").write_text(printed)
    cpu, other = stand.measure("--units", f"cpu,{unit}")["results"]
    assert cpu["status"] == "measured"
    assert other["status"] == "not_measured" and reason in other["reason"]
    assert "latency_ms" not in other and "load_ms" not in other
    assert reason in stand.run("--units", f"cpu,{unit}").stdout
    assert stand.run("--units", unit).returncode == 1


def test_a_delegate_that_fails_is_reported_beside_what_works(stand: Stand) -> None:
    (stand.phone / "gpu.txt").write_text(
        "INFO: GPU delegate created.\nERROR: Failed to apply GPU delegate.\nERROR: "
        "Benchmarking failed.\n"
    )
    (stand.phone / "gpu.code").write_text("1")
    cpu, gpu = stand.measure("--units", "cpu,gpu")["results"]
    assert cpu["status"] == "measured" and gpu["status"] == "failed"
    assert "exit code 1" in gpu["reason"] and "Failed to apply GPU delegate" in gpu["reason"]
    assert "latency_ms" not in gpu


def test_output_without_times_is_a_failure_even_with_exit_code_0(stand: Stand) -> None:
    (stand.phone / "cpu.txt").write_text("INFO: STARTING!\n")
    done = stand.run("--benchmark-model", stand.binary, "--units", "cpu")
    assert done.returncode == 1
    assert "cpu: failed: benchmark_model ended with exit code 0: INFO: STARTING!" in done.stdout


@pytest.mark.parametrize(
    ("listed", "complaint"),
    [
        ("", "adb sees no phone"),
        ("emulator-5554\tunauthorized\n", "unlock the phone and allow this computer"),
        ("emulator-5554\toffline\n", "emulator-5554: offline"),
        ("emulator-5554\tdevice\nR3CN\tdevice\n", "name one of them with --serial"),
    ],
)
def test_a_phone_that_cannot_be_used_is_named_with_what_to_do(
    stand: Stand, listed: str, complaint: str
) -> None:
    (stand.phone / "devices").write_text(f"List of devices attached\n{listed}\n")
    done = stand.run("--benchmark-model", stand.binary)
    assert done.returncode == 1 and complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_one_of_several_phones_can_be_named(stand: Stand) -> None:
    (stand.phone / "devices").write_text(
        "* daemon started successfully\nList of devices attached\nR3CN\tdevice\n"
        "emulator-5554\tdevice\n\n"
    )
    assert len(stand.measure("--serial", "emulator-5554")["results"]) == 3
    done = stand.run("--benchmark-model", stand.binary, "--serial", "nobody")
    assert done.returncode == 1 and "nobody: not connected" in done.stderr


def test_a_push_that_fails_or_arrives_damaged_is_an_error(stand: Stand) -> None:
    for obstacle, complaint in (("full", "No space left on device"), ("damage", "its SHA-256 on")):
        (stand.phone / obstacle).touch()
        done = stand.run("--benchmark-model", stand.binary)
        assert done.returncode == 1 and complaint in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        (stand.phone / obstacle).unlink()


def test_without_adb_it_says_where_adb_comes_from(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stand.phone.parent / "tools/adb").unlink()
    monkeypatch.setenv("PATH", str(stand.bundle))  # where there is none either
    done = stand.run("--benchmark-model", stand.binary)
    assert done.returncode == 1 and "platform-tools" in done.stderr


def test_a_binary_that_does_not_exist_is_named(stand: Stand) -> None:
    done = stand.run("--benchmark-model", stand.bundle / "nothing")
    assert done.returncode == 1 and "nothing: there is no such file" in done.stderr


def test_a_damaged_bundle_is_not_timed(stand: Stand) -> None:
    (stand.bundle / "model.tflite").write_bytes(b"damaged")
    done = stand.run("--benchmark-model", stand.binary)
    assert done.returncode == 1 and "model.tflite is not the file that was bundled" in done.stderr
    assert not (stand.phone / "log").exists()
