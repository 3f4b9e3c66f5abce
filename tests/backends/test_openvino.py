"""What is particular to OpenVINO's artifacts, through OpenVINO itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.backends.base.job import Compiled, Job
from pipeline.backends.base.registry import backend
from pipeline.networks.fake_quantization import calibrate
from pipeline.networks.layers import conv_and_linear
from pipeline.networks.weights import load_pixels_to_logits

Made = Callable[[str, str], tuple[Path, Compiled]]


def test_int8_leaves_the_same_layers_in_float_as_fp32_names_them(made: Made) -> None:
    exact, int8 = (made("openvino", p)[1].execution.in_float for p in ("fp32", "int8"))
    assert {layer.name for layer in int8} <= {layer.name for layer in exact}


def test_int8_weights_take_a_quarter(made: Made) -> None:
    fp32, int8 = (
        made("openvino", p)[0].with_suffix(".bin").stat().st_size for p in ("fp32", "int8")
    )
    assert int8 < 0.4 * fp32


def test_pixels_are_quantized_exactly_though_calibration_lacks_the_darkest(made: Made) -> None:
    import openvino

    file, compiled = made("openvino", "int8")
    first = next(
        node
        for node in openvino.Core().read_model(file).get_ordered_ops()
        if node.get_type_name() == "FakeQuantize"
    )
    bounds = [first.input_value(port).get_node().data.item() for port in (1, 2, 3, 4)]
    assert bounds == [-2, 127 / 64, -2, 127 / 64]
    assert first.get_attributes()["levels"] == 256
    assert any("input quantized exactly" in note for note in compiled.notes)


@pytest.mark.parametrize("student", ["relu"], indirect=True)
def test_a_student_that_learnt_under_rounding_keeps_its_ranges_and_its_biases(
    job: Callable[..., Job], made: Made, tmp_path: Path
) -> None:
    import openvino

    def constants(file: Path, kind: str, ports: tuple[int, ...]) -> list[NDArray[np.float32]]:
        nodes = openvino.Core().read_model(file).get_ordered_ops()
        inputs = [[node.input_value(port).get_node() for port in ports]
                  for node in nodes if node.get_type_name() == kind]  # fmt: skip
        return [np.array([one.data.ravel() for one in found]).squeeze() for found in inputs
                if all(one.get_type_name() == "Constant" for one in found)]  # fmt: skip

    asked = replace(job("int8", "openvino"), rounded=True)
    spec = backend("openvino")
    compiled = spec.compiler(spec.settings(precisions=("int8",))).compile(asked, tmp_path)
    model, _ = load_pixels_to_logits(asked.weights)
    found = constants(tmp_path / compiled.model_file, "FakeQuantize", (1, 2))
    spans = [(low.min(), high.max()) for low, high in found]  # depthwise layers: one per channel
    grids = calibrate(model, asked.calibration)
    for layer in [*conv_and_linear(model.network)][:5]:
        its = grids[layer].grid
        span = np.array([-its.zero_point, 255 - its.zero_point]) * its.scale
        assert any(np.allclose(one, span, rtol=0, atol=its.scale) for one in spans), layer
    plain = constants(made("openvino", "fp32")[0], "Add", (1,))
    biases = constants(tmp_path / compiled.model_file, "Add", (1,))
    corrected = constants(made("openvino", "int8")[0], "Add", (1,))
    assert plain and len(plain) == len(biases) == len(corrected)
    assert all(np.allclose(one, two, atol=1e-6) for one, two in zip(plain, biases, strict=True))
    assert not all(np.allclose(*pair, atol=1e-6) for pair in zip(plain, corrected, strict=True))
