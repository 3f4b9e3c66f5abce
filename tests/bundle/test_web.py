"""The page of a bundle in a real browser, by the npm packages that it pins."""

from __future__ import annotations

from tests.browser import chrome  # it skips these tests where there is no selenium

# isort: split


import base64
import json
import re
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from pipeline.backends.base.artifact import BUNDLES, Artifact
from pipeline.backends.base.job import Job
from pipeline.backends.base.registry import backend
from pipeline.bundle.device_record import BrowserBench, Comparison, Verdict
from pipeline.bundle.devices import import_results
from pipeline.bundle.write import PAGE
from pipeline.compile.untrained import Shape, untrained
from pipeline.core.files import sha256
from pipeline.data.images import load_image
from pipeline.data.records import SPLITS
from pipeline.export.session import load
from pipeline.networks.params import Network
from tests.bundle.conftest import PARAMS, STUDENT, ship
from tests.bundle.test_bundle import python, rewrite_sums

__all__ = ["chrome"]

CACHE = Path(__file__).parents[2] / ".work" / "npm"
"""Packages stay here from one run of the tests to the next; `make clean` removes them."""
MOST_BYTES = 100_000
FLOAT_ERROR = 1e-5
"""Of the largest absolute logit of the lab."""
IMPLEMENTED = ("tflite", "onnxruntime")
CPU = "CPUExecutionProvider"
OF_DAMAGE = "is not the file that was bundled"


def runtime(name: str) -> Path:
    """The folder web/runtime/ of a backend, as serve.py --fetch fills it."""
    pins = backend(name).bundle_files()["web/runtime.json"]
    folder = CACHE / sha256(pins)[:16]
    if not (folder / "fetched").exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pins, folder / "runtime.json")
        shutil.copyfile(PAGE / "serve.py", folder / "serve.py")
        done = python(folder / "serve.py", "--fetch")
        if done.returncode:
            pytest.skip(f"the npm packages of web/runtime.json cannot be had: {done.stderr}")
        (folder / "fetched").touch()
    return folder / "runtime"


@pytest.fixture
def bundle(
    shipped: dict[str, list[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], Path]:
    """A copy of a bundle in models/bundles, by backend and precision, with its runtime."""
    monkeypatch.chdir(tmp_path)

    def copied(name: str) -> Path:
        its = name.partition("-")[0]
        (source,) = (folder for folder in shipped[its] if folder.name.endswith(name))
        folder = BUNDLES.absolute() / source.name
        shutil.copytree(source, folder)
        (folder / "web/runtime").symlink_to(runtime(its))
        return folder

    return copied


@contextmanager
def serving(bundle: Path, *options: str) -> Iterator[str]:
    """The address of the page that serve.py prints."""
    command = [sys.executable, "-B", bundle / "web/serve.py", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


class Page:
    """A page that was opened, and what its user does."""

    def __init__(self, chrome: Chrome, url: str, downloads: Path) -> None:
        self.chrome, self.downloads = chrome, downloads
        behaviour = {"behavior": "allow", "downloadPath": str(downloads.absolute())}
        chrome.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
        chrome.get(url)
        self.wait(lambda: self.ready() or self.problem())

    def wait(self, condition: Callable[[], object], seconds: float = 60) -> None:
        WebDriverWait(self.chrome, seconds, 0.05).until(lambda _: condition())

    def one(self, name: str):
        return self.chrome.find_element(By.ID, name)

    def ready(self) -> bool:
        return self.one("bench").is_enabled()

    def problem(self) -> str:
        """What the page complains about; nothing while it loads."""
        box = self.one("problem")
        return "" if "waiting" in box.get_attribute("class") else box.text

    def press(self, name: str) -> dict:
        """Press Verify or Bench. Returns the JSON that it then offers."""
        self.one(name).click()
        self.wait(lambda: self.one(f"{name}-save").is_displayed() or self.problem())
        assert not self.problem()
        self.one(f"{name}-save").click()
        self.wait(lambda: list(self.downloads.glob("*.json")))
        (file,) = self.downloads.glob("*.json")
        content = json.loads(file.read_text())
        file.rename(f"{name}.json")
        return content

    def classes(self) -> str:
        return self.one("classes").text

    def call(self, script: str, *arguments: object):
        """The answer of an async function; its error fails the test."""
        wrapped = f"const done = arguments[arguments.length - 1]; ({script})(...arguments)"
        answer = self.chrome.execute_async_script(
            f"{wrapped}.then((found) => done({{found}}), (error) => done({{error: `${{error}}`}}))",
            *arguments,
        )
        assert "error" not in answer, answer["error"]
        return answer["found"]


@contextmanager
def opened(chrome: Chrome, bundle: Path, query: str = "") -> Iterator[Page]:
    downloads = bundle.parents[2] / "downloads"
    downloads.mkdir(exist_ok=True)
    with serving(bundle) as url:
        yield Page(chrome, url + query, downloads)


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("tflite-int8", ""),
        ("tflite-int8", "?threads=2"),
        ("tflite-fp32", ""),
        ("tflite-fp16", ""),
        ("onnxruntime-int8", ""),
        ("onnxruntime-int8", "?threads=2"),
        ("onnxruntime-fp32", ""),
    ],
)
def test_a_browser_gives_the_labs_logits(
    chrome: Chrome, bundle: Callable[[str], Path], name: str, query: str
) -> None:
    folder = bundle(name)
    with opened(chrome, folder, query) as page:
        result = page.press("verify")
        assert page.one("verdict").text.startswith("PASSED: ")
        model = json.loads((folder / "bundle.json").read_text())["model_file"]
        shown = page.one("digests").text
        assert sha256(folder / model) in shown and sha256(folder / "SHA256SUMS") in shown
    logits = np.load(folder / "golden.npz")["logits"]
    most = 0 if name.endswith("int8") else FLOAT_ERROR * np.abs(logits).max()
    assert result["max_logit_error"] <= most
    assert result["threads"] == (2 if query else 1)
    (imported,) = import_results([Path("verify.json")])
    assert isinstance(imported.result, Comparison) and str(imported.result) == "PASSED"
    assert imported.result.images == 32


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Path]]]:
    """Bundles of a student of 224 pixels in colour with hard-swish and squeeze-and-excitation."""
    weights = tmp_path_factory.mktemp("large")
    network = Network(arch="mobilenetv3_small_050")
    made = untrained(STUDENT, network, Shape(224, 3, 10), 20, weights).job
    counts = {"train": dict.fromkeys(made.manifest.classes, 1)}
    digests = {f"{split}_{part}.npy": "1" * 64 for split in SPLITS for part in ("images", "labels")}
    manifest = made.manifest.model_copy(update={"counts": counts, "digests": digests})

    def job(precision: str, backend: str = "onnxruntime") -> Job:
        artifact = Artifact(STUDENT, backend, precision)
        return replace(made, artifact=artifact, manifest=manifest)

    tree = yaml.safe_load(PARAMS.read_text())
    tree["backends"] |= {"enabled": list(IMPLEMENTED)}
    tree["backends"] |= {name: {"precisions": ["fp32", "int8"]} for name in IMPLEMENTED}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("shipped"))
        yield ship(tree, job, (made.calibration, np.arange(len(made.calibration)) % 10))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", IMPLEMENTED)
def test_a_student_of_224_pixels_in_colour_gives_the_labs_logits(
    chrome: Chrome,
    large: dict[str, list[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    precision: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (source,) = (folder for folder in large[name] if folder.name.endswith(precision))
    folder = BUNDLES.absolute() / source.name
    shutil.copytree(source, folder)
    (folder / "web/runtime").symlink_to(runtime(name))
    with opened(chrome, folder) as page:
        result = page.press("verify")
        assert page.one("verdict").text.startswith("PASSED: ")
        assert page.press("bench")["latency_ms"]["p50"] > 0
    logits = np.load(folder / "golden.npz")["logits"]
    # sums over more pixels; untrained logits are small beside what they are made of
    most = 0 if precision == "int8" else 3 * FLOAT_ERROR * np.abs(logits).max()
    assert result["max_logit_error"] <= most and result["same_argmax"] == 1


@pytest.mark.parametrize("name", ["tflite-int8", "onnxruntime-int8"])
def test_its_latency_comes_home_as_a_browsers(
    chrome: Chrome, bundle: Callable[[str], Path], name: str
) -> None:
    with opened(chrome, bundle(name)) as page:
        page.one("name").send_keys("the desk's laptop")
        result = page.press("bench")
        assert f"{result['latency_ms']['p50']:.3f} ms" in page.one("times").text
    (imported,) = import_results([Path("bench.json")])
    found = imported.result
    assert isinstance(found, BrowserBench)
    assert found.rounds == 20 and found.n >= 200 and found.threads == 1
    assert found.cross_origin_isolated and 0 < found.clock_step_ms <= 0.1
    its = found.machine
    assert its.browser and its.browser_version == chrome.capabilities["browserVersion"]
    assert found.device == f"{its.browser} on the desk's laptop"
    (package,) = found.runtime
    pins = json.loads(backend(name.split("-")[0]).bundle_files()["web/runtime.json"].read_text())
    assert found.runtime[package] == pins["packages"][package]["version"]


@pytest.mark.parametrize("name", ["tflite-int8", "onnxruntime-fp32"])
def test_a_photo_is_classified_as_run_py_does(
    chrome: Chrome, bundle: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    folder = bundle(name)
    pixels = np.load(folder / "golden.npz")["images"][5]
    Image.fromarray(pixels).resize((301, 203)).save(tmp_path / "photo.png")
    done = python(folder / "run.py", tmp_path / "photo.png", "--json", "--top", "5")
    (expected,) = json.loads(done.stdout)["images"]
    with opened(chrome, folder) as page:
        page.one("file").send_keys(str(tmp_path / "photo.png"))
        page.wait(page.classes)
        shown = page.classes().split("\n")
        assert shown == [
            text
            for one in expected["classes"]
            for text in (one["class"], f"{one['probability']:.1%}")
        ]
        page.one("file").send_keys(str(folder / "labels.txt"))
        page.wait(page.problem)
        assert page.problem() == "labels.txt is no image that this browser can read"


def test_the_cameras_picture_is_classified_until_it_is_stopped(
    chrome: Chrome, bundle: Callable[[str], Path]
) -> None:
    with opened(chrome, bundle("onnxruntime-int8")) as page:
        page.one("camera").click()
        page.wait(lambda: page.classes() or page.problem())
        assert page.one("video").is_displayed() and not page.problem()
        page.one("camera").click()
        assert not page.one("video").is_displayed()
        assert page.one("camera").text == "Use the camera"


PIXELS = """async (files, how) => {
  const { decode, fit } = await import("/web/pixels.js");
  const found = [];
  for (const file of files) {
    const image = await decode(new Blob([Uint8Array.from(atob(file), (c) => c.charCodeAt(0))]));
    const text = (bytes) => bytes.reduce((all, byte) => all + String.fromCharCode(byte), "");
    found.push(how.map((one) => btoa(text(fit(image, one)))));
  }
  return found;
}"""


@pytest.fixture
def pixels(chrome: Chrome, bundle: Callable[[str], Path]) -> Iterator[Callable]:
    """What the page makes of image files, uint8 [size, size, channels], by file and shape."""
    with opened(chrome, bundle("onnxruntime-int8")) as page:

        def found(files: list[Path], shapes: list[tuple[int, int, int]]) -> list[list[NDArray]]:
            contents = [base64.b64encode(file.read_bytes()).decode() for file in files]
            how = [
                dict(zip(("size", "channels", "resize"), shape, strict=True)) for shape in shapes
            ]
            return [
                [
                    np.frombuffer(base64.b64decode(one), np.uint8).reshape(size, size, channels)
                    for one, (size, channels, _) in zip(row, shapes, strict=True)
                ]
                for row in page.call(PIXELS, contents, how)
            ]

        yield found


def noise(shape: tuple[int, ...], seed: int, dtype: type = np.uint8) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, endpoint=True)
    return Image.fromarray(values.astype(dtype))


def differences(
    pixels: Callable, files: list[Path], shapes: list[tuple[int, int, int]]
) -> list[NDArray[np.int64]]:
    """From the pixels of training, in levels, by file and shape."""
    return [
        np.abs(seen.astype(np.int64) - load_image(file, *shape))
        for file, row in zip(files, pixels(files, shapes), strict=True)
        for seen, shape in zip(row, shapes, strict=True)
    ]


def test_png_files_give_the_pixels_of_training_bit_for_bit(
    pixels: Callable, tmp_path: Path
) -> None:
    sizes = [(8, 8), (40, 30), (30, 41), (31, 8), (8, 93), (301, 200), (5, 3), (1, 7), (64, 64)]
    files = []
    for seed, (width, height) in enumerate(sizes):
        for mode, channels in {"L": (), "RGB": (3,), "RGBA": (4,)}.items():
            files.append(tmp_path / f"{width}x{height}-{mode}.png")
            noise((height, width, *channels), seed).save(files[-1])
    noise((30, 41, 3), 9).quantize(64).save(tmp_path / "palette.png")
    for turn in range(1, 9):
        for width, height in ((23, 14), (40, 200)):
            exif = Image.Exif()
            exif[0x0112] = turn
            files.append(tmp_path / f"{width}-{turn}.png")
            noise((height, width, 3), turn).save(files[-1], exif=exif)
    shapes = [
        (size, channels, resize)
        for size, resize in ((8, 8), (11, 11), (32, 32), (8, 11), (11, 13), (20, 40))
        for channels in (1, 3)
    ]
    found = differences(pixels, [*files, tmp_path / "palette.png"], shapes)
    assert len(found) == 44 * 12 and max(one.max() for one in found) == 0


def test_every_value_at_every_opacity_is_put_on_white(pixels: Callable, tmp_path: Path) -> None:
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    image = Image.fromarray(np.stack([value, 255 - value, value, alpha], -1).astype(np.uint8))
    image.save(tmp_path / "image.png")
    for one in differences(pixels, [tmp_path / "image.png"], [(256, 1, 256), (256, 3, 256)]):
        assert one.max() == 0


def test_what_a_browsers_decoder_changes_is_what_docs_say(pixels: Callable, tmp_path: Path) -> None:
    """Chromium's libjpeg-turbo is Pillow's; a JPEG that training decodes at a reduced size and
    16 bits differ."""
    smooth = noise((12, 16, 3), 0).resize((320, 240), Image.Resampling.BICUBIC)
    files = []
    for subsampling in (0, 2):
        for turn in (1, 6):
            exif = Image.Exif()
            exif[0x0112] = turn
            files.append(tmp_path / f"{subsampling}-{turn}.jpg")
            smooth.save(files[-1], subsampling=subsampling, exif=exif)
    files.append(tmp_path / "grey.jpg")
    smooth.convert("L").save(files[-1])
    full = differences(pixels, files, [(112, 3, 128), (100, 1, 100)])
    assert max(one.max() for one in full) == 0
    reduced = differences(pixels, files, [(28, 3, 28), (28, 1, 28)])
    assert max(one.max() for one in reduced) <= 4
    assert 0 < max(one.mean() for one in reduced) < 1
    noise((64, 64), 0, np.uint16).save(tmp_path / "deep.png")
    (deep,) = differences(pixels, [tmp_path / "deep.png"], [(64, 1, 64)])
    assert deep.max() == 1


def test_a_tampered_artifact_fails(chrome: Chrome, bundle: Callable[[str], Path]) -> None:
    folder = bundle("tflite-int8")
    model = bytearray((folder / "model.tflite").read_bytes())
    model[len(model) // 2] ^= 1
    (folder / "model.tflite").write_bytes(model)
    with opened(chrome, folder) as page:
        assert page.problem() == f"model.tflite {OF_DAMAGE}\ncopy the bundle here again"
        assert not page.one("bench").is_enabled()
        result = page.press("verify")
        assert page.one("verdict").text == f"FAILED: model.tflite {OF_DAMAGE}"
    assert result["bundle"] == {"digest": sha256(folder / "SHA256SUMS")}
    (imported,) = import_results([Path("verify.json")])
    assert isinstance(imported.result, Verdict) and str(imported.result).startswith("FAILED: ")


def test_golden_images_are_judged_by_verify_pys_tolerances(
    chrome: Chrome, bundle: Callable[[str], Path]
) -> None:
    folder = bundle("onnxruntime-fp32")
    golden = dict(np.load(folder / "golden.npz"))
    limit = json.loads((folder / "bundle.json").read_text())["tolerances"]["max_logit_error"]
    (folder / "golden.npz").unlink()
    with opened(chrome, folder) as page:
        assert page.press("verify")["why"] == "golden.npz is missing"
        page.one("bench").click()
        page.wait(page.problem)
        assert page.problem() == "golden.npz is missing\ncopy the bundle here again"
    for shift, verdict in ((0.5 * limit, "PASSED"), (1.5 * limit, "FAILED")):
        logits = golden["logits"].copy()
        logits[3, 2] += shift
        np.savez_compressed(folder / "golden.npz", **(golden | {"logits": logits}))
        rewrite_sums(folder)
        with opened(chrome, folder) as page:
            result = page.press("verify")
        done = python(folder / "verify.py", "--json", folder / "lab.json")
        lab = json.loads((folder / "lab.json").read_text())
        assert result["verdict"] == lab["verdict"] == verdict, done.stdout
        assert result["tolerances"] == lab["tolerances"]
        for key in ("same_argmax", "top1", "golden_top1", "images"):
            assert result[key] == lab[key]
        assert result["max_logit_error"] == pytest.approx(lab["max_logit_error"], rel=0.01)
        if verdict == "FAILED":
            assert result["why"].startswith("max logit error is ")


def float_between() -> onnx.ModelProto:
    """A float convolution between int8 tensors, which ONNX Runtime rounds to int8 if it may."""
    values = {
        "centre": np.float32(128), "scale": np.float32(1 / 64), "axes": np.array([2, 3], np.int64),
        "zero": np.int8(0), "before": np.float32(0.02), "after": np.float32(0.1),
        "weight": np.random.default_rng(0).normal(size=(10, 3, 3, 3)).astype(np.float32),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], to=onnx.TensorProto.FLOAT),
        node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        node("Sub", ["nchw", "centre"], ["centred"]),
        node("Mul", ["centred", "scale"], ["normalised"]),
        node("QuantizeLinear", ["normalised", "before", "zero"], ["q1"]),
        node("DequantizeLinear", ["q1", "before", "zero"], ["d1"]),
        node("Conv", ["d1", "weight"], ["conv"]),
        node("QuantizeLinear", ["conv", "after", "zero"], ["q2"]),
        node("DequantizeLinear", ["q2", "after", "zero"], ["d2"]),
        node("ReduceMean", ["d2", "axes"], ["logits"], keepdims=0),
    ]
    take = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "float_between",
        [take("image", onnx.TensorProto.UINT8, ["N", 28, 28, 3])],
        [take("logits", onnx.TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_float_layers_of_an_int8_model_stay_in_float(
    chrome: Chrome, bundle: Callable[[str], Path]
) -> None:
    folder = bundle("onnxruntime-int8")
    onnx.save(float_between(), folder / "model.onnx")
    golden = dict(np.load(folder / "golden.npz"))
    golden["logits"] = load(str(folder / "model.onnx"), 1)(golden["images"])
    most = 4 * 0.1 / 26**2  # the order of float sums moves a few of 26 x 26 pixels by a step
    rounding = onnxruntime.InferenceSession(folder / "model.onnx", providers=[CPU])
    rounded = rounding.run(["logits"], {"image": golden["images"]})[0]
    assert np.abs(rounded - golden["logits"]).max() > 10 * most
    np.savez(folder / "golden.npz", **golden)
    rewrite_sums(folder)
    with opened(chrome, folder) as page:
        assert page.press("verify")["max_logit_error"] <= most


def test_a_runtime_that_is_not_the_pinned_one_is_not_run(
    chrome: Chrome, bundle: Callable[[str], Path]
) -> None:
    folder = bundle("onnxruntime-int8")
    (folder / "web/runtime").unlink()
    shutil.copytree(runtime("onnxruntime"), folder / "web/runtime")
    changed = folder / "web/runtime/onnxruntime-web/dist/ort-wasm-simd-threaded.mjs"
    changed.write_bytes(changed.read_bytes() + b"\n")
    name = changed.relative_to(folder / "web/runtime")
    with opened(chrome, folder) as page:
        assert page.problem().startswith(
            f"{name} from web/runtime/ is not the file that runtime.json names"
        )
    shutil.rmtree(folder / "web/runtime")
    chrome.execute_cdp_cmd("Network.enable", {})
    chrome.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*cdn.jsdelivr.net*"]})
    try:
        with opened(chrome, folder) as page:
            said = page.problem()
            asked = page.chrome.execute_script(
                "return performance.getEntriesByType('resource').map((one) => one.name)"
            )
    finally:
        chrome.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    version = json.loads((folder / "web/runtime.json").read_text())["packages"]["onnxruntime-web"]
    cdn = "https://cdn.jsdelivr.net/npm"
    assert f"{cdn}/onnxruntime-web@{version['version']}/dist/ort.wasm.min.mjs" in asked
    assert f"does not come from {cdn}" in said and "serve.py --fetch" in said


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("delete self.WebAssembly", "this browser has no WebAssembly"),
        (
            "Object.defineProperty(crypto, 'subtle', { value: undefined })",
            "because this address is not secure",
        ),
    ],
)
def test_a_browser_that_cannot_is_told_so(
    chrome: Chrome, bundle: Callable[[str], Path], missing: str, said: str
) -> None:
    early = chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": missing})
    try:
        with opened(chrome, bundle("onnxruntime-int8")) as page:
            assert said in page.problem()
            assert not page.one("verify").is_enabled()
    finally:
        chrome.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", early)


def test_without_isolation_the_page_says_so_and_runs_on_one_thread(
    chrome: Chrome, bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = bundle("onnxruntime-int8")
    command = [sys.executable, "-u", "-m", "http.server", "0", "--directory", folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        port = server.stdout.readline().split(" port ")[1].split()[0]
        try:
            page = Page(chrome, f"http://localhost:{port}/web/", tmp_path / "downloads")
            assert "not isolated" in page.one("clock").text
            assert page.press("verify")["max_logit_error"] == 0
            page = Page(chrome, f"http://localhost:{port}/web/?threads=2", tmp_path)
            assert page.problem() == (
                "threads need a page that is isolated\nserve it with web/serve.py"
            )
        finally:
            server.terminate()


def test_a_clock_that_is_too_coarse_measures_nothing(
    chrome: Chrome, bundle: Callable[[str], Path]
) -> None:
    coarse = (
        "const now = performance.now.bind(performance); "
        "performance.now = () => Math.floor(now() / 50) * 50;"
    )
    early = chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": coarse})
    try:
        with opened(chrome, bundle("tflite-int8")) as page:
            page.one("bench").click()
            page.wait(page.problem)
            assert "clock goes in steps of 50 ms, which is too coarse" in page.problem()
            assert not page.one("bench-save").is_displayed()
    finally:
        chrome.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", early)


def test_the_page_is_small_and_asks_nobody_but_the_pinned_cdn() -> None:
    for name in IMPLEMENTED:
        files = backend(name).bundle_files()
        own = [file for target, file in files.items() if target.startswith("web/")]
        parts = [*own, *(file for file in PAGE.iterdir() if file.is_file())]
        assert sum(file.stat().st_size for file in parts) < MOST_BYTES
        for file in parts:
            addresses = set(re.findall(r"https?://([\w.-]+)", file.read_text()))
            assert addresses <= {"cdn.jsdelivr.net", "localhost"}, file


def test_serve_isolates_the_page_and_serves_the_bundle_alone(
    shipped: dict[str, list[Path]],
) -> None:
    folder = shipped["onnxruntime"][0]
    with serving(folder) as url:
        with urllib.request.urlopen(url) as answer:
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        with urllib.request.urlopen(f"{url}page.js") as answer:
            assert answer.headers["Content-Type"].startswith("text/javascript")
        with urllib.request.urlopen(f"{url}../model.onnx") as answer:
            assert answer.read() == (folder / "model.onnx").read_bytes()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}../../{folder.name}/../../secret")
        port = url.split(":")[2].split("/")[0]
        done = python(folder / "web/serve.py", "--port", port)
        assert done.returncode == 1 and "in use" in done.stderr and "Traceback" not in done.stderr
    done = python(folder / "web/serve.py", "--certificate", folder / "none.pem", "--port", "0")
    assert done.returncode == 1 and done.stderr.startswith("error: ")


def test_serve_speaks_https(tmp_path: Path, shipped: dict[str, list[Path]]) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl here to make a certificate")
    pem = tmp_path / "both.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", pem, "-out", tmp_path / "c.pem"], check=True)
    pem.write_bytes(pem.read_bytes() + (tmp_path / "c.pem").read_bytes())
    with serving(shipped["onnxruntime"][0], "--certificate", str(pem)) as url:
        assert url.startswith("https://localhost:")
        trusting = ssl.create_default_context(cafile=str(tmp_path / "c.pem"))
        with urllib.request.urlopen(url, context=trusting) as answer:
            assert b"<h1" in answer.read()


def test_fetch_refuses_a_package_that_is_not_the_pinned_one(
    tmp_path: Path, shipped: dict[str, list[Path]]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(shipped["onnxruntime"][0], folder)
    package = tmp_path / "npm/onnxruntime-web/-/onnxruntime-web-1.30.0.tgz"
    package.parent.mkdir(parents=True)
    package.write_bytes(b"another")
    command = (folder / "web/serve.py", "--fetch", "--registry")
    done = python(*command, (tmp_path / "npm").as_uri())
    assert done.returncode == 1 and "is not the package that runtime.json pins" in done.stderr
    assert not (folder / "web/runtime").exists()
    done = python(*command, (tmp_path / "none").as_uri())
    assert done.returncode == 1 and "Traceback" not in done.stderr
    done = python(*command[:2], PATH=str(tmp_path), NPM_CONFIG_REGISTRY="")
    assert done.returncode == 1 and "name one by --registry" in done.stderr
    assert "Traceback" not in done.stderr
