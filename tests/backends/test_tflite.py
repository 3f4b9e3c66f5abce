"""TFLite artifacts against torch, through LiteRT itself."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.backends.base.job import Compiled, Job
from pipeline.backends.base.records import Partitions
from pipeline.backends.tflite.compile import (
    MODEL_FILE,
    SIGNATURE,
    _calibrate,
)
from pipeline.backends.tflite.convert import (
    convert,
)
from pipeline.backends.tflite.spec import TFLite
from pipeline.core.errors import PipelineError
from pipeline.networks.weights import load_pixels_to_logits

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]
Made = dict[str, tuple[Path, Compiled]]


@pytest.fixture(scope="module")
def made(job: Callable[[str], Job], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Folder and record by precision."""
    folders = {p: tmp_path_factory.mktemp(p) for p in ("fp32", "fp16", "int8")}
    return {p: (folder, TFLite().compile(job(p), folder)) for p, folder in folders.items()}


def logits(made: Made, precision: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return TFLite().load(made[precision][0] / MODEL_FILE, threads=1)(images)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 0.1)])
def test_float_answers_as_torch_does(
    made: Made,
    test_images: Images,
    torch_logits: NDArray[np.float32],
    precision: str,
    tolerance: float,
) -> None:
    found = logits(made, precision, test_images[0])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch_logits, atol=tolerance)


def test_int8_keeps_the_answers(
    made: Made, test_images: Images, torch_logits: NDArray[np.float32]
) -> None:
    found = logits(made, "int8", test_images[0])
    assert (found.argmax(1) == torch_logits.argmax(1)).mean() >= 0.98
    assert np.abs(found - torch_logits).max() > 0, "nothing was quantized"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_proof_is_of_what_the_file_computes(made: Made, precision: str, macs: int) -> None:
    execution = made[precision][1].execution
    int8 = precision == "int8"
    assert (execution.macs, execution.int8_mac_share) == (macs, float(int8))
    assert execution.per_channel is (True if int8 else None)
    assert (execution.input_type, execution.output_type) == ("uint8", "float32")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_one_operator_is_left_to_other_than_accelerated_kernels(made: Made, precision: str) -> None:
    first = "QUANTIZE uint8" if precision == "int8" else "CAST uint8"
    record = made[precision][1]
    assert record.execution.partitions == Partitions(delegated=1, builtin={first: 1})
    assert record.notes == ()


def test_a_hard_swish_that_is_kept_splits_the_int8_graph_and_is_told(
    made: Made, job: Callable[[str], Job], tmp_path: Path
) -> None:
    plain = job("int8")
    model, _ = load_pixels_to_logits(plain.student_folder)
    swishes = sum(isinstance(module, torch.nn.Hardswish) for module in model.modules())
    kept = TFLite("keep").compile(plain, tmp_path)
    assert kept.execution.partitions is not None
    assert kept.execution.partitions.builtin.get("HARD_SWISH int8", 0) == swishes
    assert bool(kept.notes) == bool(swishes)
    assert kept.execution.macs == made["int8"][1].execution.macs


def test_smaller_precisions_give_smaller_files(made: Made) -> None:
    sizes = {p: (folder / MODEL_FILE).stat().st_size for p, (folder, _) in made.items()}
    assert 0.45 * sizes["fp32"] < sizes["fp16"] < 0.75 * sizes["fp32"]
    assert sizes["int8"] < sizes["fp16"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_raw_pixels_in_logits_out(made: Made, precision: str) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(made[precision][0] / MODEL_FILE))
    (signature,) = interpreter.get_signature_list().values()
    (image,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert signature == {"inputs": ["image"], "outputs": ["logits"]}
    assert (image["dtype"], list(image["shape"])) == (np.uint8, [1, 28, 28, 3])
    assert (output["dtype"], list(output["shape"])) == (np.float32, [1, 10])


def test_pixels_are_quantized_exactly_though_calibration_lacks_the_darkest(made: Made) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(made["int8"][0] / MODEL_FILE))
    first = interpreter._get_op_details(0)
    pixels, quantized = (
        interpreter._get_tensor_details(first[side][0], 0) for side in ("inputs", "outputs")
    )
    assert first["op_name"] == "QUANTIZE"
    assert (pixels["dtype"], pixels["quantization"]) == (np.uint8, (1 / 64, 128))
    assert (quantized["dtype"], quantized["quantization"]) == (np.int8, (1 / 64, 0))


def test_ranges_noted_by_the_interpreter_are_those_of_the_tensors(
    job: Callable[[str], Job],
) -> None:
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    content = from_normalised(job("int8"), decompose_hard_swish=True)
    images = normalised(job("int8").calibration[:8])
    recipe = RecipeManager()
    recipe.add_static_config(".*", "*", activation_num_bits=8, weight_num_bits=8)
    found = _calibrate(content, recipe, images, "min-max")
    reads_tensors = Calibrator(content, num_threads=1, qsv_update_func=min_max_update)
    reads_tensors.calibrate({SIGNATURE: [{"image": images[i : i + 1]} for i in range(8)]}, recipe)
    expected = reads_tensors.get_model_qsvs()
    del found["serving_default_image"], expected["serving_default_image"]  # set, not measured
    assert found.keys() == expected.keys() and len(found) > 20
    for name, bounds in expected.items():
        for bound in ("min", "max"):
            np.testing.assert_allclose(found[name][bound].item(), bounds[bound].item(), rtol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_file_carries_metadata_and_its_labels(made: Made, precision: str) -> None:
    path = made[precision][0] / MODEL_FILE
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().split() == list("abcdefghij")
    assert path.read_bytes().count(b"TFLITE_METADATA") == 1


def test_any_batch_gives_the_same_logits(made: Made, test_images: Images) -> None:
    images = test_images[0][:5]
    images.setflags(write=False)  # as memory-mapped arrays are
    run = TFLite().load(made["int8"][0] / MODEL_FILE, threads=2)
    parts = np.concatenate([run(images[:1]), run(images[1:])])
    np.testing.assert_array_equal(run(images), parts)


def test_the_same_job_gives_the_same_bytes(
    made: Made, job: Callable[[str], Job], tmp_path: Path
) -> None:
    TFLite().compile(job("int8"), tmp_path)
    assert (tmp_path / MODEL_FILE).read_bytes() == (made["int8"][0] / MODEL_FILE).read_bytes()


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_a_conversion_that_changes_the_network_is_refused() -> None:
    class Fickle(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten(1) * (1.01 if torch.compiler.is_exporting() else 1.0)

    with pytest.raises(PipelineError, match="changed the network"):
        convert(Fickle(), torch.rand(2, 4, 4, 1))


def test_an_unknown_precision_is_refused(job: Callable[[str], Job], tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="bf16"):
        TFLite().compile(job("bf16"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"nowhere\.tflite"):
        TFLite().load(tmp_path / "nowhere.tflite", threads=1)


def test_the_evaluator_is_the_runtime() -> None:
    assert (TFLite().evaluator() or "").startswith("ai-edge-litert ")
