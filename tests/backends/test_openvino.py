"""OpenVINO artifacts against torch, through OpenVINO itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.backends.base.job import Compiled, Job
from pipeline.backends.openvino.compile import (
    MODEL_FILE,
)
from pipeline.backends.openvino.spec import OpenVino
from pipeline.core.errors import PipelineError

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]
Made = dict[str, tuple[Path, Compiled]]


@pytest.fixture(scope="module")
def made(job: Callable[[str], Job], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Folder and record by precision."""
    folders = {precision: tmp_path_factory.mktemp(precision) for precision in ("fp32", "int8")}
    return {p: (folder, OpenVino().compile(job(p), folder)) for p, folder in folders.items()}


def logits(made: Made, precision: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return OpenVino().load(made[precision][0] / MODEL_FILE, threads=1)(images)


def test_fp32_answers_as_torch_does(
    made: Made, test_images: Images, torch_logits: NDArray[np.float32]
) -> None:
    found = logits(made, "fp32", test_images[0])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch_logits, atol=1e-4)


def test_int8_keeps_the_answers(
    made: Made, test_images: Images, torch_logits: NDArray[np.float32]
) -> None:
    found = logits(made, "int8", test_images[0])
    assert (found.argmax(1) == torch_logits.argmax(1)).mean() >= 0.98
    assert np.abs(found - torch_logits).max() > 0, "nothing was quantized"


def test_the_proof_is_of_what_the_runtime_executes(made: Made, macs: int) -> None:
    exact, int8 = made["fp32"][1].execution, made["int8"][1].execution
    assert exact.macs == int8.macs == macs
    assert (exact.int8_mac_share, exact.per_channel) == (0, None)
    # NNCF leaves a squeeze-and-excitation of ReLU and sigmoid in float: four small products.
    assert len(int8.in_float) in (0, 4)
    assert int8.int8_mac_share == 1 - sum(p.macs for p in int8.in_float) / macs > 0.99
    assert {p.name for p in int8.in_float} <= {p.name for p in exact.in_float}
    assert int8.per_channel and int8.partitions is None
    assert (int8.input_type, int8.output_type) == ("uint8", "float32")


def test_int8_weights_take_a_quarter(made: Made) -> None:
    sizes = {p: (folder / "model.bin").stat().st_size for p, (folder, _) in made.items()}
    assert sizes["int8"] < 0.4 * sizes["fp32"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_any_batch_gives_the_same_logits(made: Made, test_images: Images, precision: str) -> None:
    images = test_images[0][:9]
    images.setflags(write=False)  # as memory-mapped arrays are
    run = OpenVino().load(made[precision][0] / MODEL_FILE, threads=2)
    whole = run(images)
    parts = np.concatenate([run(images[:1]), run(images[1:3]), run(images[3:])])
    np.testing.assert_allclose(whole, parts, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_same_job_gives_the_same_bytes(
    made: Made, job: Callable[[str], Job], tmp_path: Path, precision: str
) -> None:
    OpenVino().compile(job(precision), tmp_path)
    for file in made[precision][0].iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_pixels_are_quantized_exactly_though_calibration_lacks_the_darkest(made: Made) -> None:
    import openvino

    folder, record = made["int8"]
    first = next(
        node
        for node in openvino.Core().read_model(folder / MODEL_FILE).get_ordered_ops()
        if node.get_type_name() == "FakeQuantize"
    )
    bounds = [first.input_value(port).get_node().data.item() for port in (1, 2, 3, 4)]
    assert bounds == [-2, 127 / 64, -2, 127 / 64]
    assert first.get_attributes()["levels"] == 256
    assert any("input quantized exactly" in note for note in record.notes)


def test_an_unknown_precision_is_refused(job: Callable[[str], Job], tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="fp16"):
        OpenVino().compile(job("fp16"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"nowhere\.xml"):
        OpenVino().load(tmp_path / "nowhere.xml", threads=1)


def test_the_evaluator_is_the_runtime() -> None:
    assert (OpenVino().evaluator() or "").startswith("openvino 20")
