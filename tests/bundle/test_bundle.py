from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from pipeline.backends.base.artifact import BUNDLES, Artifact
from pipeline.backends.base.registry import backend, backend_names
from pipeline.bundle.records import Bundle, Preprocessing
from pipeline.bundle.write import golden_indices, write_bundles
from pipeline.cli.params import Params
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.data import images as image_files
from pipeline.data.records import PACKED, Manifest
from pipeline.latency import harness

ROOT = Path(__file__).parents[2]
ON_DEVICE = ROOT / "pipeline/bundle/on-device"
STUDENT = "mnv4_small_050"
COLOURS = ["red", "green", "blue"]
PINS = [
    pin
    for extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ].values()
    for pin in extra
]


def python(
    *arguments: str | Path, executable: str | Path = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python as on a device: no PYTHONPATH, no packages of the user."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [executable, "-B", "-s", *arguments],
        env=inherited | environment, text=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture
def bundle(workspace: Params) -> Path:
    """Of the colour classifier, for ONNX Runtime."""
    write_bundles(workspace)
    return (BUNDLES / f"{STUDENT}-onnxruntime-fp32").resolve()


@pytest.fixture
def only_numpy(tmp_path: Path) -> dict[str, str]:
    """Options of `python`, after -S, for an environment with NumPy alone."""
    folder = tmp_path / "only_numpy"
    folder.mkdir()
    site = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        (folder / name).symlink_to(site / name)
    return {"PYTHONPATH": str(folder)}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def rewrite_sums(folder: Path) -> None:
    """As somebody would who changes a bundle with intent."""
    names = sorted(name for name in contents(folder) if name != "SHA256SUMS")
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_every_artifact_becomes_a_folder_with_what_its_backend_needs(bundle: Path) -> None:
    common = {
        "README.md", "SHA256SUMS", "bench.py", "bundle.json", "common.py", "golden.npz",
        "harness.py", "labels.txt", "model.onnx", "pixels.py", "preprocess.json", "run.py",
        "runtime.py", "session.py", "verify.py",
    }  # fmt: skip
    web = {
        "web/bundle.js", "web/index.html", "web/measure.js", "web/page.js", "web/pixels.js",
        "web/runtime.js", "web/runtime.json", "web/runtime_files.js", "web/serve.py",
        "web/style.css",
    }  # fmt: skip
    tensorrt = bundle.with_name(f"{STUDENT}-tensorrt-fp16")
    assert set(contents(bundle)) == common | web
    assert set(contents(tensorrt)) == common | {"build_engine.py", "graph.py"}
    assert sorted(bundle.parent.iterdir()) == [bundle, tensorrt]
    assert (bundle / "labels.txt").read_text().splitlines() == COLOURS
    model = Artifact(STUDENT, "onnxruntime", "fp32").folder / "model.onnx"
    assert (bundle / "model.onnx").read_bytes() == model.read_bytes()


def test_the_records_say_what_is_inside(bundle: Path) -> None:
    record = Bundle.read(bundle / "bundle.json")
    assert record.digests == {"model.onnx": sha256(bundle / "model.onnx")}
    assert record.top1 == 1.0 and record.test_images == 30
    assert record.golden.answered_by.startswith("onnxruntime 1")
    newest = onnxruntime.__version__
    command = f"pip install 'onnxruntime>=1.19.2,<={newest}'"
    assert record.install == {"runtime": (command,)}
    assert record.proven["3.8"] == "onnxruntime==1.19.2"
    assert record.proven["3.11"] == f"onnxruntime=={newest}"
    card = (bundle / "README.md").read_text()
    assert f"{command}\n" in card and "| 3.8, 3.9 | onnxruntime 1.19.2 |\n" in card
    preprocessing = Preprocessing.read(bundle / "preprocess.json")
    assert (preprocessing.size, preprocessing.channels, preprocessing.colour) == (8, 3, "RGB")


def test_golden_holds_real_images_and_the_artifacts_logits(bundle: Path) -> None:
    golden = np.load(bundle / "golden.npz")
    images = golden["images"]
    assert (images == np.load(PACKED / "test_images.npy")).all() and len(images) == 30
    assert (golden["labels"] == np.load(PACKED / "test_labels.npy")).all()
    expected = ((images.astype(np.float64) - 128) / 64).mean(axis=(1, 2))
    np.testing.assert_allclose(golden["logits"], expected, atol=1e-5)


@pytest.mark.parametrize("images", [1, 5, 32, 33, 100, 10_000])
def test_golden_images_are_spread_over_the_test_split(images: int) -> None:
    indices = golden_indices(images)
    assert len(indices) == min(32, images)
    assert indices[0] == 0 and (images == 1 or indices[-1] == images - 1)
    steps = np.diff(indices)
    assert images == 1 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


def test_the_same_artifacts_give_the_same_bytes(workspace: Params) -> None:
    write_bundles(workspace)
    first = contents(BUNDLES)
    write_bundles(workspace)
    assert contents(BUNDLES) == first


def test_coreutils_can_check_the_sums(bundle: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=bundle, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    checked = {line.removesuffix(": OK") for line in done.stdout.splitlines()}
    assert checked == set(contents(bundle)) - {"SHA256SUMS"}


def test_verify_passes_where_the_bundle_was_made(bundle: Path, tmp_path: Path) -> None:
    done = python(bundle / "verify.py", "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("PASSED: onnxruntime 1")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["verdict"] == "PASSED"
    assert result["bundle"]["digest"] == sha256(bundle / "SHA256SUMS")
    assert result["same_argmax"] == 1 and result["max_logit_error"] == 0
    assert result["machine"]["numpy"] == np.__version__ and result["machine"]["cores"] >= 1


def test_one_flipped_byte_fails_and_names_the_file(bundle: Path, tmp_path: Path) -> None:
    model = bytearray((bundle / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(model)
    done = python(bundle / "verify.py", "--json", tmp_path / "result.json")
    assert done.returncode == 1
    assert done.stdout == "FAILED: model.onnx is not the file that was bundled\n"
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["verdict"] == "FAILED" and "model.onnx" in result["why"]
    assert result["bundle"]["digest"] == sha256(bundle / "SHA256SUMS")
    for script in (["run.py", PACKED / "test_images.npy"], ["bench.py"]):
        done = python(bundle / script[0], *script[1:])
        assert done.returncode == 1 and "model.onnx is not the file" in done.stderr


def test_a_missing_file_fails(bundle: Path) -> None:
    (bundle / "labels.txt").unlink()
    done = python(bundle / "verify.py")
    assert (done.returncode, done.stdout) == (1, "FAILED: labels.txt is missing\n")


@pytest.mark.parametrize("lines", [0, 5])
def test_sums_that_were_cut_short_fail(bundle: Path, lines: int) -> None:
    sums = bundle / "SHA256SUMS"
    sums.write_text("".join(sums.read_text().splitlines(keepends=True)[:lines]))
    done = python(bundle / "verify.py")
    assert (done.returncode, done.stdout) == (1, "FAILED: SHA256SUMS is cut short\n")


@pytest.mark.parametrize("name", ["bundle.json", "SHA256SUMS", "golden.npz", "common.py"])
def test_a_flipped_byte_anywhere_fails(bundle: Path, name: str) -> None:
    content = (bundle / name).read_bytes()
    for place in range(10, len(content), len(content) // 3):
        damaged = bytearray(content)
        damaged[place] ^= 0x80
        (bundle / name).write_bytes(damaged)
        done = python(bundle / "verify.py")
        assert done.returncode == 1, place
        assert "PASSED" not in done.stdout


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda logits: logits + 0.01, "max logit error is 0.01, beyond"),
        (lambda logits: logits[:, ::-1], "the class is the lab's on 33.3% of the images only"),
        (lambda logits: logits * np.nan, "max logit error is nan, beyond"),
    ],
)
def test_other_logits_than_the_labs_fail(bundle: Path, change, complaint: str) -> None:
    golden = dict(np.load(bundle / "golden.npz"))
    golden["logits"] = change(golden["logits"])
    np.savez(bundle / "golden.npz", **golden)
    rewrite_sums(bundle)
    done = python(bundle / "verify.py")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("FAILED: ") and complaint in done.stdout


def test_a_missing_runtime_is_named_with_the_command_that_installs_it(
    bundle: Path, only_numpy: dict[str, str]
) -> None:
    install = f"pip install 'onnxruntime>=1.19.2,<={onnxruntime.__version__}'"
    for script in (["verify.py"], ["bench.py"], ["run.py", PACKED / "test_images.npy"]):
        done = python("-S", bundle / script[0], *script[1:], **only_numpy)
        said = done.stdout + done.stderr
        assert done.returncode == 1, said
        assert "No module named 'onnxruntime'" in said and install in said
        assert "Traceback" not in said


def test_run_classifies_arrays_and_images(bundle: Path, tmp_path: Path) -> None:
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    pixels[0, ..., 2] = 64  # logits -2, -2, -1
    pixels[1, ..., 0] = 255
    np.save(tmp_path / "pixels.npy", pixels)
    Image.fromarray(pixels[0]).save(tmp_path / "blue.png")
    files = [tmp_path / "pixels.npy", tmp_path / "blue.png"]
    done = python(bundle / "run.py", *files, "--json", "--top", "1")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["bundle"]["digest"] == sha256(bundle / "SHA256SUMS")
    first, second, image = answer["images"]
    assert first["image"] == f"{files[0]}[0]" and image["image"] == str(files[1])
    assert first["classes"] == image["classes"] == [
        {"class": "blue", "probability": pytest.approx(np.e / (np.e + 2), abs=1e-6)}
    ]  # fmt: skip
    assert [row["class"] for row in second["classes"]] == ["red"]
    lines = python(bundle / "run.py", *files).stdout.splitlines()
    assert len(lines) == 3 and lines[0] == f"{files[0]}[0]: blue 57.6%, red 21.2%, green 21.2%"


def test_run_refuses_what_are_no_raw_pixels(bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8, 3), np.float32))
    done = python(bundle / "run.py", tmp_path / "x.npy")
    assert done.returncode == 1
    assert "float32 [2, 8, 8, 3]" in done.stderr and "uint8 [N, 8, 8, 3]" in done.stderr
    (tmp_path / "x.png").write_bytes(b"no image")
    done = python(bundle / "run.py", tmp_path / "x.png")
    assert done.returncode == 1 and "not an image" in done.stderr
    done = python(bundle / "run.py", tmp_path / "y.png")
    assert done.returncode == 1 and "no such file" in done.stderr


def test_without_pillow_an_image_is_refused_with_the_command_that_installs_it(
    bundle: Path, only_numpy: dict[str, str], tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    done = python("-S", bundle / "run.py", tmp_path / "x.png", **only_numpy)
    assert done.returncode == 1
    assert "pip install pillow" in done.stderr and "Traceback" not in done.stderr


def test_the_device_sees_the_pixels_that_training_saw(bundle: Path) -> None:
    assert (bundle / "pixels.py").read_bytes() == Path(image_files.__file__).read_bytes()


def test_bench_measures_with_the_labs_harness(bundle: Path, tmp_path: Path) -> None:
    assert (bundle / "harness.py").read_bytes() == Path(harness.__file__).read_bytes()
    done = python(
        bundle / "bench.py", "--rounds", "5", "--min-runs", "17", "--min-seconds", "0.001",
        "--batch", "4", "--json", tmp_path / "result.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["bundle"]["digest"] == sha256(bundle / "SHA256SUMS")
    assert result["n"] >= 85 and len(result["p50_by_round_ms"]) == 5
    times = result["latency_ms"]
    assert 0 < times["p50"] <= times["p90"] <= times["p99"]
    assert result["load_ms"] > 0 and result["first_ms"] > 0 and result["threads"] == 1
    assert {"cpu", "cores", "kernel", "python", "numpy"} <= set(result["machine"])
    low, high = result["p90_interval_ms"]
    assert low <= times["p90"] <= high
    assert result["warm_up"]["inferences"] >= harness.WINDOWS * harness.WINDOW_RUNS
    assert len(result["cpus"]) == 1 and result["peak_rss_bytes"] > 10e6
    usable = len(os.sched_getaffinity(0))
    assert result["machine"]["cores"] == result["throughput"]["threads"] == usable
    assert result["throughput"]["batch"] == 4 and result["throughput"]["images_per_second"] > 0
    assert 0 < result["overhead_ns"] < 1e6 * times["p50"]
    for said in (
        f"p50 {times['p50']:.3f} ms",
        f"p90 between {low:.3f} and {high:.3f} ms at 95%",
        f"on CPU {result['cpus'][0]}\n",
        f"the harness itself: {result['overhead_ns']} ns",
        f"warmed up by {result['warm_up']['inferences']} inferences",
        "images per second, 4 a call on",
    ):
        assert said in done.stdout


def test_bench_leaves_out_the_throughput_and_limits_of_too_few_rounds(bundle: Path) -> None:
    quick = ("--rounds", "1", "--min-runs", "1", "--min-seconds", "1e-6")
    done = python(bundle / "bench.py", *quick, "--batch", "0")
    assert done.returncode == 0 and "per second" not in done.stdout
    assert "without limits, as the rounds are too few" in done.stdout


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("__import__('os')._exit(9)", "the process that measures it died at batch 32"),
        ("raise MemoryError", "the runtime cannot open the model: MemoryError"),
        ("return lambda images: 1 / 0", "division by zero"),
    ],
)
def test_a_throughput_that_fails_leaves_the_latency(
    bundle: Path, tmp_path: Path, failure: str, reason: str
) -> None:
    runtime = bundle / "session.py"
    fatal = f"    if batch > 1:\n        {failure}\n    del batch"
    runtime.write_text(runtime.read_text().replace("    del batch", fatal))
    rewrite_sums(bundle)
    quick = ("--rounds", "1", "--min-runs", "1", "--min-seconds", "1e-6")
    done = python(bundle / "bench.py", *quick, "--json", tmp_path / "result.json")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["latency_ms"]["p50"] > 0 and result["throughput"] is None
    assert result["throughput_reason"] == reason
    assert f"no throughput: {reason}" in done.stdout and "what to do: " in done.stdout


SHIPPED = {
    script.name: script
    for script in (
        *sorted(ON_DEVICE.rglob("*.py")),
        Path(harness.__file__),
        Path(image_files.__file__),
    )
} | {
    f"{name}/{target}": script
    for name in backend_names()
    for target, script in backend(name).bundle_files().items()
    if target.endswith(".py")
}
"""Sources of all scripts that bundles hold."""


@pytest.mark.parametrize("file", SHIPPED.values(), ids=list(SHIPPED))
def test_shipped_scripts_are_python_3_8_and_import_numpy_alone(file: Path) -> None:
    tree = ast.parse(file.read_text(), feature_version=(3, 8))
    siblings = {"common", "harness", "runtime"}
    allowed = set(sys.stdlib_module_names) | siblings | {"numpy"}
    if file.name == "images.py":  # imported where there are image files
        allowed.add("PIL")
    if file.parent.name == "coreml" and file.stem in ("graph", "operators"):
        allowed.add("torch")  # `verify.py --graph` alone imports them
    for node in tree.body:  # what is imported before anything is run
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.module and node.module.split(".")[0] in allowed
            assert node.module != "numpy.typing"  # not in the NumPy of Python 3.8


def test_a_changed_artifact_is_not_bundled(workspace: Params) -> None:
    write_bundles(workspace)
    before = contents(BUNDLES)
    model = Artifact(STUDENT, "onnxruntime", "fp32").folder / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(PipelineError, match="damaged or of another run") as raised:
        write_bundles(workspace)
    assert raised.value.where == str(model) and raised.value.fix
    assert contents(BUNDLES) == before


def test_an_artifact_of_other_data_is_not_bundled(workspace: Params) -> None:
    file = PACKED / "manifest.json"
    Manifest.read(file).model_copy(update={"classes": ("red", "yellow", "blue")}).write(file)
    with pytest.raises(PipelineError, match=r"classes: .*green.*yellow") as raised:
        write_bundles(workspace)
    assert raised.value.fix == "run `dvc repro`"


def test_an_artifact_that_was_not_compiled_is_missed(workspace: Params) -> None:
    (Artifact(STUDENT, "tensorrt", "fp16").folder / "artifact.json").unlink()
    with pytest.raises(PipelineError, match="no ArtifactRecord record"):
        write_bundles(workspace)
    assert not BUNDLES.exists()


def test_tensorrts_graph_is_verified_without_a_gpu(bundle: Path) -> None:
    folder = bundle.with_name(f"{STUDENT}-tensorrt-fp16")
    done = python(folder / "verify.py", "--graph")
    assert done.returncode == 0, done.stdout
    done = python(folder / "verify.py")  # no engine was built yet
    assert done.returncode == 1
    assert "python build_engine.py" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_nvidias_builder_takes_the_settings_of_the_bundle(shipped: dict[str, list[Path]]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="its builder needs no GPU; tensorrt's does")
    code = (
        "import tensorrt_rtx, pathlib; from runtime import Network; "
        "print(len(Network(tensorrt_rtx, pathlib.Path('model.onnx')).build(4)))"
    )
    assert len(shipped["tensorrt"]) == 2
    for folder in shipped["tensorrt"]:
        done = subprocess.run(
            [sys.executable, "-B", "-c", code], cwd=folder, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) > 10_000


def test_build_engine_refuses_a_gpu_that_is_not_served(shipped: dict[str, list[Path]]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt names no compute capabilities")
    code = (
        "from types import SimpleNamespace as Device; import build_engine, common, runtime; "
        "runtime.Device = lambda: Device(name='NVIDIA H100', capability=(9, 0)); "
        "common.finish(build_engine.main)"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=shipped["tensorrt"][0], text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "NVIDIA H100, of compute capability 9.0" in done.stderr
    assert "what to do: pip install 'tensorrt>=10.3'" in done.stderr


def test_an_engine_is_built_and_verified_on_a_gpu(shipped: dict[str, list[Path]]) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    for folder in shipped["tensorrt"]:
        for script in ("build_engine.py", "verify.py", "bench.py"):
            done = python(folder / script)
            assert done.returncode == 0, done.stdout + done.stderr


# Environments with one runtime each and nothing of this project, as on a device.

OLD_BOARD = ("tflite-runtime==2.14.0", "numpy<2")
CLEAN = {
    "onnxruntime": [("onnxruntime", ()), ("tensorrt", ("--graph",))],
    "openvino": [("openvino", ())],
    "ai-edge-litert": [("tflite", ())],
    "tflite-runtime": [("tflite", ())],
}
"""By environment: backends whose bundles run in it, and what verify.py is asked."""


@pytest.fixture(scope="module", params=CLEAN)
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Name of an environment, and its Python."""
    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pins = [pin for pin in PINS if re.match(rf"{name}==", pin)] or OLD_BOARD
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", *pins]
    done = subprocess.run(pip, text=True, capture_output=True)
    if done.returncode and pins == OLD_BOARD and "No matching distribution" in done.stderr:
        pytest.skip(f"there is no wheel of tflite-runtime 2.14 for Python {sys.version}")
    assert done.returncode == 0, done.stderr
    return name, folder / "bin/python"


def test_bundles_verify_where_only_their_runtime_is_installed(
    device: tuple[str, Path], shipped: dict[str, list[Path]], tmp_path: Path
) -> None:
    name, executable = device
    for its, options in CLEAN[name]:
        assert shipped[its]
        for folder in shipped[its]:
            result = tmp_path / "result.json"
            done = python(folder / "verify.py", *options, "--json", result, executable=executable)
            assert done.returncode == 0, f"{folder.name}: {done.stdout}{done.stderr}"
            read = json.loads(result.read_text())
            assert list(read["runtime"]) == [name] and read["images"] == 32
            digest = hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()
            assert read["bundle"]["digest"] == digest
