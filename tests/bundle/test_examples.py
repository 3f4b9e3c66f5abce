"""What a LiteRT bundle holds for phones, and the C++ example against the pixels of training.

Kotlin and Swift, whose arithmetic is that of preprocess.h, are not compiled here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import ai_edge_litert
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.backends.base.artifact import BUNDLES
from pipeline.backends.base.registry import backend
from pipeline.bundle.readme import readme
from pipeline.bundle.records import Bundle
from pipeline.bundle.write import _copy_scripts, _write_sums, write_bundles
from pipeline.cli.params import Params
from pipeline.data.images import load_image

EXAMPLES = Path(__file__).parents[2] / "pipeline/backends/tflite/examples"
NAMES = {"Classifier.kt", "Classifier.swift", "classifier.cc", "decode.h", "preprocess.h"}
SHELL = """
#include <cstdio>
#include <cstdlib>
#include "preprocess.h"
int main(int, char** a) {
  Image image{atoi(a[1]), atoi(a[2]), atoi(a[3]), {}};
  image.pixels.resize(size_t(image.width) * image.height * image.channels);
  if (fread(image.pixels.data(), 1, image.pixels.size(), stdin) != image.pixels.size()) return 1;
  const auto out = Fit(Colour(Turn(image, atoi(a[4])), atoi(a[5])), atoi(a[6]), atoi(a[7]));
  return fwrite(out.data(), 1, out.size(), stdout) == out.size() ? 0 : 1;
}
"""


def compile_cpp(source: Path, program: Path, *options: str) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", source, "-o", program]
    done = subprocess.run([*command, *options], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def preprocess(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program around preprocess.h: decoded pixels in, the model's input out."""
    folder = tmp_path_factory.mktemp("preprocess")
    (folder / "main.cc").write_text(SHELL)
    return compile_cpp(folder / "main.cc", folder / "main", f"-I{EXAMPLES}")


def example(
    program: Path, image: Image.Image, turn: int, channels: int, size: int, resize: int
) -> NDArray:
    raw = np.asarray(image)
    numbers = (image.width, image.height, raw.size // (image.width * image.height), turn)
    command = [str(program), *map(str, (*numbers, channels, size, resize))]
    done = subprocess.run(command, input=raw.tobytes(), capture_output=True)
    assert done.returncode == 0
    return np.frombuffer(done.stdout, np.uint8).reshape(size, size, channels)


def noise(mode: str, width: int, height: int, seed: int) -> Image.Image:
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_cpp_gives_the_pixels_of_training_bit_for_bit(
    preprocess: Path, tmp_path: Path, mode: str, channels: int
) -> None:
    file = tmp_path / "image.png"
    sizes = [(8, 8), (40, 30), (30, 41), (31, 8), (8, 93), (301, 200), (5, 3), (1, 7), (64, 64)]
    for seed, (width, height) in enumerate(sizes):
        image = noise(mode, width, height, seed)
        image.save(file)
        for size, resize in ((8, 8), (11, 11), (32, 32), (8, 11), (11, 13), (20, 40)):
            expected = load_image(file, size, channels, resize)
            seen = example(preprocess, image, 1, channels, size, resize)
            assert (seen == expected).all(), (width, height, size, resize)


@pytest.mark.parametrize("turn", range(1, 9))
def test_cpp_turns_images_as_their_exif_says(preprocess: Path, tmp_path: Path, turn: int) -> None:
    image, exif = noise("RGB", 23, 14, turn), Image.Exif()
    exif[0x0112] = turn
    image.save(tmp_path / "image.png", exif=exif)
    expected = load_image(tmp_path / "image.png", 9, 3, 12)
    assert (example(preprocess, image, turn, 3, 9, 12) == expected).all()


def test_cpp_puts_every_value_at_every_opacity_on_white(preprocess: Path, tmp_path: Path) -> None:
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    image = Image.fromarray(np.stack([value, 255 - value, value, alpha], -1).astype(np.uint8))
    image.save(tmp_path / "image.png")
    for channels in (1, 3):
        expected = load_image(tmp_path / "image.png", 256, channels)
        assert (example(preprocess, image, 1, channels, 256, 256) == expected).all()


def test_only_a_litert_bundle_carries_what_phones_need(tmp_path: Path, workspace: Params) -> None:
    for name in ("tflite", "onnxruntime"):
        folder = tmp_path / name
        folder.mkdir()
        _copy_scripts(backend(name), folder)
        _write_sums(folder)
    sums = (tmp_path / "tflite/SHA256SUMS").read_text()
    assert {line[66:] for line in sums.splitlines()} >= {
        "phone.py", *(f"examples/{name}" for name in NAMES),
    }  # fmt: skip
    assert {file.name for file in EXAMPLES.iterdir()} == NAMES
    others = {file.name for file in (tmp_path / "onnxruntime").rglob("*")}
    assert not others & (NAMES | {"phone.py", "examples"})
    write_bundles(workspace)
    record = Bundle.read(next(BUNDLES.glob("*-onnxruntime-*")) / "bundle.json")
    assert "phone" not in readme(record)
    text = readme(record.model_copy(update={"backend": "tflite"}))
    assert "## On a phone" in text and "python phone.py --benchmark-model" in text


def test_the_cpp_example_gives_the_labs_answers(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """With LiteRT's headers and stb_image.h, which are not installed with anything here."""
    sdk, stb = os.environ.get("LITERT_CC_SDK"), os.environ.get("STB")
    if not sdk or not stb:
        pytest.skip("set LITERT_CC_SDK and STB to folders that hold litert/c/ and stb_image.h")
    library = Path(ai_edge_litert.__file__).parent
    program = compile_cpp(
        EXAMPLES / "classifier.cc", tmp_path / "classifier",
        "-isystem", sdk, "-isystem", stb, f"-L{library}", "-lLiteRt", f"-Wl,-rpath,{library}",
    )  # fmt: skip
    bundles: list[Path] = request.getfixturevalue("shipped")["tflite"]  # slow, so after the skip
    assert bundles
    for folder in bundles:
        golden = np.load(folder / "golden.npz")
        labels = (folder / "labels.txt").read_text().splitlines()
        for image, logits in zip(golden["images"][:4], golden["logits"], strict=False):
            Image.fromarray(image).save(tmp_path / "image.png")
            files = [folder / name for name in ("model.tflite", "labels.txt", "preprocess.json")]
            done = subprocess.run(
                [program, *files, tmp_path / "image.png"], text=True, capture_output=True
            )
            assert done.returncode == 0, done.stderr
            powers = np.exp(logits - logits.max())
            likeliest = np.argsort(-logits, kind="stable")[:3]
            rows = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
            assert [name for name, _ in rows] == [labels[i] for i in likeliest]
            found = [float(probability) for _, probability in rows]
            np.testing.assert_allclose(found, (powers / powers.sum())[likeliest], atol=2e-6)
