"""What is particular to OpenVINO's artifacts, through OpenVINO itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.backends.base.job import Compiled

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
