"""What a bundle brings for microcontrollers: C++ sources of the model and a program around them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.backends.base.job import Job
from tests.bundle.conftest import PARAMS, ship
from tests.bundle.test_examples import compile_cpp

DUMP = """
#include <cstdio>
#include "model.h"
int main() {
  if (reinterpret_cast<size_t>(kModel) % 16) return 2;
  for (const char* label : kLabels) std::printf("%s\\n", label);
  for (float logit : kGoldenLogits) std::printf("%.9g\\n", logit);
  fwrite(kGoldenImage, 1, sizeof(kGoldenImage), stdout);
  return fwrite(kModel, 1, BYTES, stdout) == BYTES ? 0 : 1;
}
"""


@pytest.fixture(scope="module")
def bundle(job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int8 LiteRT bundle of `target: micro`."""
    reason = "tflite-micro is not installed: pip install -e '.[micro]'"
    pytest.importorskip("tflite_micro", reason=reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("micro"))
        tree = yaml.safe_load(PARAMS.read_text())
        tree["backends"]["enabled"] = ["tflite"]
        tree["backends"]["tflite"] |= {"precisions": ["fp32", "int8"], "target": "micro"}
        floating, int8 = ship(tree, job)["tflite"]
    assert not (floating / "micro").exists()
    assert "microcontroller" not in (floating / "README.md").read_text()
    return int8


def test_the_bundle_tells_of_it_and_still_verifies_itself(bundle: Path) -> None:
    sums = {line[66:] for line in (bundle / "SHA256SUMS").read_text().splitlines()}
    names = ("CMakeLists.txt", "main.cc", "model.cc", "model.h", "operators.h")
    assert {f"micro/{name}" for name in names} <= sums
    readme = (bundle / "README.md").read_text()
    section = readme.partition("## On a microcontroller")[2]
    assert "tensor arena: " in section and "1 DEQUANTIZE" in section
    done = subprocess.run(
        [sys.executable, "-B", bundle / "verify.py"], text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_array_is_the_model_and_aligned(bundle: Path, tmp_path: Path) -> None:
    model, golden = (bundle / "model.tflite").read_bytes(), np.load(bundle / "golden.npz")
    (tmp_path / "dump.cc").write_text(DUMP.replace("BYTES", str(len(model))))
    program = compile_cpp(
        tmp_path / "dump.cc", tmp_path / "dump",
        f"-I{bundle / 'micro'}", str(bundle / "micro/model.cc"),
    )  # fmt: skip
    done = subprocess.run([program], capture_output=True)
    assert done.returncode == 0
    image = golden["images"][0].tobytes()
    assert done.stdout.endswith(image + model)
    lines = done.stdout.removesuffix(image + model).decode().splitlines()
    labels = (bundle / "labels.txt").read_text().splitlines()
    assert lines[: len(labels)] == labels
    logits = np.array(lines[len(labels) :], np.float32)
    assert logits.argmax() == golden["logits"][0].argmax()
    np.testing.assert_allclose(logits, golden["logits"][0], atol=0.05 * np.ptp(logits))


def test_cmake_says_what_is_missing(bundle: Path, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("there is no cmake here")
    done = subprocess.run(
        ["cmake", "-S", bundle / "micro", "-B", tmp_path], text=True, capture_output=True
    )
    assert done.returncode != 0 and "set -DTFLITE_MICRO to a checkout" in done.stderr


def test_the_program_gives_the_labs_answer(bundle: Path, tmp_path: Path) -> None:
    """With a checkout of tflite-micro, which is not installed with anything here."""
    place, library = os.environ.get("TFLITE_MICRO"), os.environ.get("TFLITE_MICRO_LIBRARY", "")
    if not place:
        pytest.skip("set TFLITE_MICRO to a checkout of tflite-micro, and maybe "
                    "TFLITE_MICRO_LIBRARY to a library that was built of it")  # fmt: skip
    build = tmp_path / "build"
    for command in (
        ["cmake", "-S", bundle / "micro", "-B", build, f"-DTFLITE_MICRO={place}",
         f"-DTFLITE_MICRO_LIBRARY={library}", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"],
        ["cmake", "--build", build],
    ):  # fmt: skip
        done = subprocess.run(command, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([build / "classify"], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    labels = (bundle / "labels.txt").read_text().splitlines()
    best = int(np.load(bundle / "golden.npz")["logits"][0].argmax())
    first, second, *_, last = done.stdout.splitlines()
    assert first == f"class: {labels[best]}"
    assert second.startswith(f"in the lab: {labels[best]}; largest difference of a logit: 0 of ")
    assert last == "PASSED"
