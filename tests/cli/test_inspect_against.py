"""`inspect --against`: noise by layer against closed forms, and what cannot be compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from pipeline.backends.base.anatomy import Port, drawn, value_range
from pipeline.cli.commands import main
from pipeline.cli.inspect.against import Comparison, compare
from pipeline.cli.inspect.report import read_inputs, report_on
from pipeline.core.errors import PipelineError
from tests.cli.foreign import Make, images
from tests.cli.test_inspect import onnx_file, weights

pytestmark = pytest.mark.filterwarnings("ignore")


def against(file: Path, reference: Path, given: Path | None = None, **shapes: object) -> Comparison:
    sizes = {name: tuple(map(int, str(text).split("x"))) for name, text in shapes.items()}
    inputs = read_inputs(given) if given else None
    return compare(report_on(file, sizes), report_on(reference, {}), sizes, inputs)


def two_layers(file: Path, first: np.ndarray, second: np.ndarray) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], name="second"),
    ]
    return onnx_file(file, nodes, initializer=[weights("a", first), weights("b", second)])


def test_noise_is_that_of_the_weights(tmp_path: Path) -> None:
    """10% more in the first layer and 10% less than that in the second, which is 1% in all."""
    draw = np.random.default_rng(1).normal
    a, b = draw(size=(4, 6)), draw(size=(6, 3))
    reference = two_layers(tmp_path / "reference.onnx", a, b)
    found = against(two_layers(tmp_path / "other.onnx", 1.1 * a, 0.9 * b), reference)
    assert [layer.name for layer in found.layers] == ["first", "second"]  # the worst one first
    errors = [layer.relative_error for layer in found.layers]
    assert errors == pytest.approx([0.1, 0.01], rel=1e-3)
    assert [layer.snr_db for layer in found.layers] == pytest.approx([20, 40], abs=0.01)
    (output,) = found.outputs
    assert output.snr_db == pytest.approx(40, abs=0.01)
    assert output.largest == pytest.approx(0.01, rel=1e-3)
    assert (output.same_argmax, output.rows) == (8, 8)


def test_a_file_against_itself_has_no_noise(make: Make) -> None:
    for name in ("qdq.onnx", "static.tflite", "ptq.xml"):
        found = against(make(name), make(name))
        assert {layer.snr_db for layer in found.layers} == {None}
        assert found.outputs[0].largest == 0


@pytest.mark.parametrize(
    ("file", "reference", "how", "least"),
    [
        ("qdq.onnx", "images.onnx", "by name", 20),
        ("qoperator.onnx", "images.onnx", "by name", 20),
        ("dynamic.onnx", "images.onnx", "by name", 30),
        ("static.tflite", "images.tflite", "by name", 20),
        ("float16.tflite", "images.tflite", "by name", 60),
        ("ptq.xml", "images.xml", "by name", 20),
        ("static.tflite", "images.onnx", "by order and size", 20),
        ("ptq.xml", "images.tflite", "by order and size", 20),
    ],
)
def test_every_layer_of_a_quantized_file_is_near_that_of_the_float_one(
    make: Make, file: str, reference: str, how: str, least: float
) -> None:
    found = against(make(file), make(reference))
    assert found.matched.startswith(f"4 of 4 matched {how}")
    noise = [layer.snr_db for layer in found.layers]
    assert all(one is not None and least < one < 90 for one in noise)
    assert noise == sorted(noise, key=lambda one: one or math.inf)
    assert found.outputs[0].same_argmax == found.outputs[0].rows == 8


def test_formats_give_the_same_layers_of_a_float_network(make: Make) -> None:
    """Each format orders axes in its own way; a wrong one would not agree to five digits."""
    for one, other in [("images.tflite", "images.onnx"), ("images.xml", "images.onnx")]:
        found = against(make(one), make(other))
        assert len(found.layers) == 4
        assert all(layer.relative_error < 1e-5 for layer in found.layers)


def test_the_quantized_input_and_output_are_compared_as_real_values(make: Make) -> None:
    (output,) = against(make("static.tflite"), make("images.tflite")).outputs
    assert output.largest < 0.1


def test_text_models_are_compared_at_a_given_length(make: Make) -> None:
    found = against(make("text_4bit.onnx"), make("text.onnx"), ids="1x12")
    assert len(found.layers) == 7 and found.matched.startswith("7 of 7 matched by name")
    with pytest.raises(PipelineError, match=r"size of ids is not fixed[\s\S]*--shape ids="):
        against(make("text_4bit.onnx"), make("text.onnx"))


def test_own_inputs_take_the_place_of_noise(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "inputs.npz"
    np.savez(file, x=np.concatenate(images(3)))
    found = against(make("qdq.onnx"), make("images.onnx"), file)
    assert found.given == "3 inputs of the user" and found.outputs[0].rows == 3


def test_the_text_and_json_have_the_comparison(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["inspect", str(make("qdq.onnx")), "--against", str(make("images.onnx"))]
    assert main(words) == 0
    shown = capfd.readouterr().out
    assert "qdq.onnx against images.onnx: 8 inputs drawn with seed 0" in shown
    assert shown.count(" dB  error ") == 4 and "same argmax in 8 of 8" in shown
    assert main([*words, "--json"]) == 0
    layers = json.loads(capfd.readouterr().out)["against"]["layers"]
    assert len(layers) == 4 and layers[0]["snr_db"] <= layers[1]["snr_db"]


def test_files_of_different_networks_are_told(make: Make, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="compare files of one network"):
        against(make("text.onnx"), make("images.onnx"), ids="1x12")
    draw = np.random.default_rng(1).normal
    one = two_layers(tmp_path / "one.onnx", draw(size=(4, 6)), draw(size=(6, 3)))
    nodes = [helper.make_node("MatMul", ["x", "a"], ["y"], name="another")]
    other = onnx_file(tmp_path / "other.onnx", nodes, initializer=[weights("a", np.ones((4, 9)))])
    with pytest.raises(PipelineError, match="layers cannot be matched"):
        against(other, one)


def test_a_file_that_does_not_run_is_told(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Strange", ["h"], ["y"], domain="mine"),
    ]
    file = onnx_file(tmp_path / "custom.onnx", nodes, initializer=[weights("w", np.ones((4, 5)))])
    with pytest.raises(PipelineError, match="ONNX Runtime cannot run it"):
        against(file, file)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [({"z": np.zeros((1, 3, 16, 16))}, "no array for x"), ({"x": np.zeros((0, 3))}, "differ")],
)
def test_wrong_inputs_are_told(
    make: Make, tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    file = tmp_path / "inputs.npz"
    np.savez(file, **arrays)
    with pytest.raises(PipelineError, match=message):
        against(make("qdq.onnx"), make("images.onnx"), file)
    file.write_bytes(b"x")
    with pytest.raises(PipelineError, match=r"is no \.npz of inputs"):
        read_inputs(file)


def test_drawn_inputs_lie_in_the_range_that_the_file_is_made_for() -> None:
    port = Port("x", "float32", (1, 64, 64), None, "uint8", (0.1,), (100,))
    low, high = value_range(port)
    assert (low, high) == pytest.approx((-10, 15.5))
    values = drawn([port], {"x": (1, 64, 64)})["x"]
    assert low <= values.min() and values.max() <= high
    assert values.mean() == pytest.approx(2.75, abs=0.3) and values.dtype == np.float32
    again = drawn([port], {"x": (1, 64, 64)})["x"]
    np.testing.assert_array_equal(values, again)
    ids = drawn([Port("ids", "int64", ("batch", "n"))], {"ids": (1, 50)})["ids"]
    assert set(ids.ravel().tolist()) == {0, 1}
