"""What every registered backend has to fulfil, whatever it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from pipeline.backends.base.job import Compiled, Job
from pipeline.backends.base.params import Backends
from pipeline.backends.base.registry import backend, backend_names
from pipeline.backends.base.spec import Backend
from pipeline.core.errors import PipelineError
from pipeline.data.answers import agreement, top1
from pipeline.networks import grid

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMES = backend_names()
FLOAT_IN_INT8 = {"openvino": (0, 4)}
"""Layers: NNCF leaves a squeeze-and-excitation of ReLU and sigmoid in float, four small ones."""
BATCH_ERROR = {"tflite": 0.0, "executorch": 0.0, "coreml": 0.0}
"""Of logits, between batch sizes: these run the images of a batch one by one, or always as many."""
DELEGATING = ("executorch", "tflite")
"""They hand parts of a graph to another runtime, XNNPACK."""

Made = Callable[[str, str], tuple[Path, Compiled]]
Split = tuple[NDArray[np.uint8], NDArray[np.int64]]

every_backend = pytest.mark.parametrize("its", [backend(name) for name in NAMES], ids=NAMES)
every_artifact = pytest.mark.parametrize(
    ("name", "precision"), [(name, p) for name in NAMES for p in backend(name).precisions]
)


def test_every_backend_of_the_parameters_is_registered_and_the_other_way_round() -> None:
    groups = yaml.safe_load((ROOT / "params.yaml").read_text())["backends"]
    assert set(NAMES) == groups.keys() - {"enabled"} and set(groups["enabled"]) <= set(NAMES)
    assert [backend(name).name for name in NAMES] == list(NAMES)
    assert len({backend(name).colour for name in NAMES}) == len(NAMES)


def test_an_unknown_backend_is_an_error_that_names_the_nearest_known_one() -> None:
    with pytest.raises(PipelineError, match=r"no `openvine` among the backends.*`openvino`"):
        backend("openvine")


@every_backend
def test_its_spec_is_complete(its: Backend) -> None:
    assert its.title and its.hub_library and re.fullmatch(r"#[0-9a-f]{6}", its.colour)
    assert its.settings(precisions=its.precisions).precisions == its.precisions
    assert its.tolerances.keys() == set(its.precisions)
    for limits in its.tolerances.values():
        assert 0 < limits.mean_error < limits.max_error < 1 and limits.reason
        assert 0.5 < limits.min_same_argmax <= 1
    files = {file.name for file in its.folder.iterdir()}
    assert {"spec.py", "compile.py", "inspect.py", "run.py"} <= files


@every_backend
def test_its_packages_are_pinned_and_its_extra_brings_a_runtime(its: Backend) -> None:
    extras = PROJECT["optional-dependencies"]
    pinned = {pin.partition("==")[0] for pins in extras.values() for pin in pins if "==" in pin}
    assert set(its.packages) <= pinned
    assert {pin.partition("==")[0] for pin in extras[its.name]} & set(its.runtimes)


@every_backend
def test_a_precision_that_it_has_not_is_refused(its: Backend) -> None:
    groups = Backends.model_validate({"enabled": [its.name], its.name: {"precisions": ["int3"]}})
    with pytest.raises(PipelineError, match=rf"backends\.{its.name}\.precisions.*int3"):
        groups.settings(its.name)


@every_backend
def test_its_spec_imports_neither_torch_nor_a_runtime_nor_a_converter(its: Backend) -> None:
    code = f"import sys, {type(its).__module__} as spec; print(spec.BACKEND.title, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.stdout.startswith(its.title), done.stderr
    assert not modules_of({"torch", *its.packages, *its.runtimes}) & set(done.stdout.split())


@every_backend
def test_its_runtime_is_known(its: Backend) -> None:
    used = its.evaluator() or ""
    assert re.search(r"^[a-z-]+ \d+\.\d", used)
    assert its.is_own(used) == (its.unmeasurable() is None)


@every_backend
def test_a_missing_or_damaged_file_is_named(its: Backend, tmp_path: Path) -> None:
    suffixes = {"openvino": ".xml", "tflite": ".tflite", "executorch": ".pte"}
    suffix = (suffixes | {"coreml": ".mlpackage"}).get(its.name, ".onnx")
    file = tmp_path / f"model{suffix}"
    with pytest.raises(PipelineError, match="there is no such model") as raised:
        its.load(file, threads=1)
    assert raised.value.where == str(file)
    file.write_bytes(b"nonsense")
    with pytest.raises(PipelineError, match="cannot open the model") as raised:
        its.load(file, threads=1)
    assert raised.value.where == str(file)


@every_artifact
def test_the_execution_report_has_every_conv_and_linear_layer(
    made: Made, macs: int, name: str, precision: str
) -> None:
    execution, int8 = made(name, precision)[1].execution, precision == "int8"
    assert execution.macs == macs
    assert (execution.input_type, execution.output_type) == ("uint8", "float32")
    assert (execution.partitions is not None) == (name in DELEGATING)
    if int8:
        assert len(execution.in_float) in FLOAT_IN_INT8.get(name, (0,))
        assert execution.int8_mac_share > 0.99 and execution.per_channel
    else:
        assert (execution.int8_mac_share, execution.per_channel) == (0, None)
    assert execution.int8_mac_share == 1 - sum(layer.macs for layer in execution.in_float) / macs


@every_artifact
def test_it_answers_as_torch_does(
    made: Made, test_images: Split, torch_logits: NDArray[np.float32], name: str, precision: str
) -> None:
    images, labels = test_images
    logits = backend(name).load(made(name, precision)[0], threads=1)(images)
    assert logits.dtype == np.float32
    if precision != "int8":
        atol = {"fp32": 1e-4, "fp16": 0.1}[precision]
        np.testing.assert_allclose(logits, torch_logits, atol=atol)
    assert agreement(logits, torch_logits) >= (0.98 if precision == "int8" else 0.99)
    assert top1(logits, labels) > top1(torch_logits, labels) - 0.02
    assert precision == "fp32" or np.abs(logits - torch_logits).max() > 0, "nothing was rounded"


@every_artifact
def test_every_batch_size_gives_the_same_logits(
    made: Made, test_images: Split, name: str, precision: str
) -> None:
    its, file, images = backend(name), made(name, precision)[0], test_images[0][:32]
    images.setflags(write=False)  # as memory-mapped arrays are
    whole = its.load(file, threads=2, batch=32)(images)
    one, some = its.load(file, threads=2, batch=1), its.load(file, threads=2)
    atol = BATCH_ERROR.get(name, 1e-4)
    for parts in ([one(image[None]) for image in images], [some(images[:1]), some(images[1:])]):
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=atol)


@every_artifact
def test_a_bundle_opens_it_with_numpy_and_its_runtime_alone(
    made: Made, test_images: Split, tmp_path: Path, name: str, precision: str
) -> None:
    its, (file, _), images = backend(name), made(name, precision), test_images[0][:8]
    for target, source in its.bundle_files().items():
        (tmp_path / target).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, tmp_path / target)
    np.save(tmp_path / "images.npy", images)
    module = "graph" if its.unmeasurable() and "graph" in its.install() else "runtime"
    code = (
        f"import sys, numpy, {module}; run = {module}.load(sys.argv[1], 1); "
        "numpy.save('logits.npy', run(numpy.load('images.npy'))); print(*sys.modules)"
    )
    # Without the module `site` the project, which is installed as editable, is not on sys.path.
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, file],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path(np.__file__).parents[1])},
        text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    needed = set(re.findall(r"[\w-]+", " ".join(its.install()[module])))
    loaded = set(done.stdout.split())
    assert not (modules_of({"torch", *its.packages} - needed) | {"pipeline"}) & loaded
    expected = its.load(file, threads=1)(images)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), expected)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_its_int8_input_bit_for_bit(made: Made, test_images: Split, name: str) -> None:
    its, (file, _) = backend(name), made(name, "int8")
    images = np.concatenate([test_images[0][:16], grid.every_pixel(test_images[0].shape[1:])])
    floats = its.compiler(its.settings(precisions=its.precisions)).float_fed(file)
    by_floats = floats(grid.normalise(images))
    np.testing.assert_array_equal(by_floats, its.load(file, threads=1)(images))


@every_artifact
def test_the_same_job_gives_the_same_bytes(
    made: Made, job: Callable[..., Job], tmp_path: Path, name: str, precision: str
) -> None:
    its, (file, _) = backend(name), made(name, precision)
    its.compiler(its.settings(precisions=its.precisions)).compile(job(precision, name), tmp_path)
    for one in sorted(path for path in file.parent.rglob("*") if path.is_file()):
        if one.name not in its.device_built:
            again = tmp_path / one.relative_to(file.parent)
            assert again.read_bytes() == one.read_bytes(), one.name


def modules_of(distributions: set[str]) -> set[str]:
    """The top-level modules that these distributions and their parts (`NAME-part`) bring."""
    known = rf"({'|'.join(distributions)})(-.*)?"
    return {
        module
        for module, by in packages_distributions().items()
        if all(re.fullmatch(known, name.replace("_", "-")) for name in by)
    }
