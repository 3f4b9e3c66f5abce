"""What is particular to LiteRT's artifacts, through LiteRT itself."""

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
from pipeline.backends.tflite.compile import SIGNATURE, Compiler, _calibrate
from pipeline.backends.tflite.convert import Conversions, convert, with_finite_padding
from pipeline.backends.tflite.run import load
from pipeline.backends.tflite.spec import Settings
from pipeline.core.errors import PipelineError
from pipeline.networks import grid
from pipeline.networks.weights import load_pixels_to_logits

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]
Made = Callable[[str, str], tuple[Path, Compiled]]


@pytest.fixture(params=["fp32", "fp16", "int8"])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


def test_one_operator_is_left_to_other_than_accelerated_kernels(made: Made, precision: str) -> None:
    first = "QUANTIZE uint8" if precision == "int8" else "CAST uint8"
    record = made("tflite", precision)[1]
    assert record.execution.partitions == Partitions(delegated=1, builtin={first: 1})
    assert record.notes == ()


def test_a_hard_swish_that_is_kept_splits_the_int8_graph_and_is_told(
    made: Made, job: Callable[..., Job], tmp_path: Path
) -> None:
    plain = job("int8")
    model, _ = load_pixels_to_logits(plain.weights)
    swishes = sum(isinstance(module, torch.nn.Hardswish) for module in model.modules())
    kept = Compiler(Settings(precisions=("int8",), hard_swish="keep")).compile(plain, tmp_path)
    assert kept.execution.partitions is not None
    assert kept.execution.partitions.builtin.get("HARD_SWISH int8", 0) == swishes
    assert bool(kept.notes) == bool(swishes)
    assert kept.execution.macs == made("tflite", "int8")[1].execution.macs


def test_the_border_of_a_max_pool_is_finite_in_int8() -> None:
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from litert_torch import to_channel_last_io

    torch.manual_seed(0)
    pool = torch.nn.MaxPool2d(3, stride=2, padding=1)  # its border is minus infinity
    parts = [torch.nn.Conv2d(1, 8, 3), pool, pool, torch.nn.Flatten(), torch.nn.Linear(8 * 4, 3)]
    network = torch.nn.Sequential(*parts).eval()
    images = np.random.default_rng(0).integers(0, 256, (8, 10, 10, 1), np.uint8)
    samples = torch.tensor(grid.normalise(images))
    content = convert(to_channel_last_io(network, args=[0]), samples)
    recipe = RecipeManager()
    recipe.add_static_config(".*", "*", activation_num_bits=8, weight_num_bits=8)
    ranges = _calibrate(content, recipe, images, "min-max")
    assert any(known["min"] == -np.inf for known in ranges.values())
    finite, ranges = with_finite_padding(content, ranges)
    assert all(np.isfinite([known["min"], known["max"]]).all() for known in ranges.values())
    expected = network(samples.permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(load(finite, 1)(samples.numpy()), expected, atol=1e-5)


def test_smaller_precisions_give_smaller_files(made: Made) -> None:
    sizes = {p: made("tflite", p)[0].stat().st_size for p in ("fp32", "fp16", "int8")}
    assert 0.45 * sizes["fp32"] < sizes["fp16"] < 0.75 * sizes["fp32"]
    assert sizes["int8"] < sizes["fp16"]


def test_raw_pixels_in_logits_out(made: Made, precision: str) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(made("tflite", precision)[0]))
    (signature,) = interpreter.get_signature_list().values()
    (image,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert signature == {"inputs": ["image"], "outputs": ["logits"]}
    assert (image["dtype"], list(image["shape"])) == (np.uint8, [1, 28, 28, 3])
    assert (output["dtype"], list(output["shape"])) == (np.float32, [1, 10])


def test_pixels_are_quantized_exactly_though_calibration_lacks_the_darkest(made: Made) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(made("tflite", "int8")[0]))
    first = interpreter._get_op_details(0)
    pixels, quantized = (
        interpreter._get_tensor_details(first[side][0], 0) for side in ("inputs", "outputs")
    )
    assert first["op_name"] == "QUANTIZE"
    assert (pixels["dtype"], pixels["quantization"]) == (np.uint8, (1 / 64, 128))
    assert (quantized["dtype"], quantized["quantization"]) == (np.int8, (1 / 64, 0))


def test_ranges_noted_by_the_interpreter_are_those_of_the_tensors(
    job: Callable[..., Job],
) -> None:
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    content = Conversions().from_normalised(job("int8"), decompose_hard_swish=True)
    pixels = job("int8").calibration[:8]
    images = grid.normalise(pixels)
    recipe = RecipeManager()
    recipe.add_static_config(".*", "*", activation_num_bits=8, weight_num_bits=8)
    found = _calibrate(content, recipe, pixels, "min-max")
    reads_tensors = Calibrator(content, num_threads=1, qsv_update_func=min_max_update)
    reads_tensors.calibrate({SIGNATURE: [{"image": images[i : i + 1]} for i in range(8)]}, recipe)
    expected = reads_tensors.get_model_qsvs()
    del found["serving_default_image"], expected["serving_default_image"]  # set, not measured
    assert found.keys() == expected.keys() and len(found) > 20
    for name, bounds in expected.items():
        for bound in ("min", "max"):
            np.testing.assert_allclose(found[name][bound].item(), bounds[bound].item(), rtol=1e-6)


def test_the_file_carries_metadata_and_its_labels(made: Made, precision: str) -> None:
    path = made("tflite", precision)[0]
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().split() == list("abcdefghij")
    assert path.read_bytes().count(b"TFLITE_METADATA") == 1


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_a_conversion_that_changes_the_network_is_refused() -> None:
    class Fickle(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten(1) * (1.01 if torch.compiler.is_exporting() else 1.0)

    with pytest.raises(PipelineError, match="changed the network"):
        convert(Fickle(), torch.rand(2, 4, 4, 1))
