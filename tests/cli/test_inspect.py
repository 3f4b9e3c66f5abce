"""`inspect` of other people's models: what is int8 in them was counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.backends.base.anatomy import UNKNOWN
from pipeline.cli.commands import main
from pipeline.cli.inspect.report import FileReport, parse_shapes, report_on
from pipeline.core.errors import PipelineError
from tests.cli.foreign import (
    ATTENTION,
    DEPTHWISE,
    FEED_FORWARD,
    MACS,
    POINTWISE,
    TEXT_MACS,
    Make,
)

pytestmark = pytest.mark.filterwarnings("ignore")

DYNAMIC = {"dynamic int8": 1.0}
NO_DEPTHWISE, NO_POINTWISE = (MACS - DEPTHWISE) / MACS, (MACS - POINTWISE) / MACS


@pytest.fixture
def text_shape() -> dict[str, tuple[int, ...]]:
    return {"ids": (1, 12)}


FOREIGN = {
    # file: shares as the file has them, as they are executed, scales of weights
    "images.onnx": ({"float32": 1}, {"float32": 1}, None),
    "dynamic.onnx": (DYNAMIC, DYNAMIC, "per tensor"),
    "qdq.onnx": ({"int8": 1}, {"int8": 1}, "per tensor"),
    "qdq_channels.onnx": ({"int8": 1}, {"int8": 1}, "per channel"),
    "qoperator.onnx": ({"int8": 1}, {"int8": 1}, "per tensor"),
    "int16.onnx": ({"int16x8": 1}, {"float32": 1}, "per tensor"),
    "float16.onnx": ({"float16": 1}, {"float32, float16 weights": 1}, None),
    # the session rounds the layer between two of int8 when it loads the file
    "no_depthwise.onnx": (
        {"int8": NO_DEPTHWISE, "float32": 1 - NO_DEPTHWISE}, {"int8": 1}, "per tensor",
    ),
    # its output is not rounded, so that nothing more happens to it
    "no_pointwise.onnx": (
        {"int8": NO_POINTWISE, "float32": 1 - NO_POINTWISE},
        {"int8": NO_POINTWISE, "float32": 1 - NO_POINTWISE}, "per tensor",
    ),
    "images.tflite": ({"float32": 1}, {"float32": 1}, None),
    "dynamic.tflite": (DYNAMIC, DYNAMIC, "per channel"),
    "weights.tflite": (
        {"float32, int8 weights": 1}, {"float32, int8 weights": 1}, "per channel",
    ),
    "static.tflite": ({"int8": 1}, {"int8": 1}, "per channel"),
    "int16.tflite": ({"int16x8": 1}, {"int16x8": 1}, "per channel"),
    "float16.tflite": ({"float32, float16 weights": 1}, {"float32, float16 weights": 1}, None),
    "no_depthwise.tflite": (
        {"int8": NO_DEPTHWISE, "float32": 1 - NO_DEPTHWISE},
        {"int8": NO_DEPTHWISE, "float32": 1 - NO_DEPTHWISE}, "per channel",
    ),
    "ptq.xml": ({"int8": 1}, {"int8": 1}, "per channel"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_the_shares_are_those_counted_by_hand(make: Make, name: str) -> None:
    written, executed, scales = FOREIGN[name]
    report = report_on(make(name), {})
    assert report.macs == MACS and report.uncounted == 0
    assert report.shares(executed=False) == pytest.approx(written)
    assert report.shares(executed=True) == pytest.approx(executed)
    assert report.int8_written == pytest.approx(written.get("int8", 0))
    assert report.int8_executed == pytest.approx(executed.get("int8", 0))
    assert report.weights == scales


@pytest.mark.parametrize("name", ["images.xml", "half.xml", "no_pointwise.xml"])
def test_openvino_computes_the_rest_in_the_floats_of_this_cpu(make: Make, name: str) -> None:
    report = report_on(make(name), {})
    share = NO_POINTWISE if name == "no_pointwise.xml" else 0
    assert report.macs == MACS
    assert report.int8_written == report.int8_executed == pytest.approx(share)
    (kind,) = report.shares(executed=True).keys() - {"int8"}
    assert kind in ("float32", "bfloat16", "float16")
    stored = "float32, float16 weights" if name == "half.xml" else "float32"
    assert report.shares(executed=False)[stored] == pytest.approx(1 - share)


def test_a_dynamic_text_model_is_static_where_its_table_is_quantized(
    make: Make, text_shape: dict[str, tuple[int, ...]]
) -> None:
    """ONNX Runtime quantizes the embedding, whose bytes the first projection reads at once."""
    report = report_on(make("text_dynamic.onnx"), text_shape)
    assert report.macs == TEXT_MACS
    first, products = ATTENTION[0] / TEXT_MACS, ATTENTION[1] / TEXT_MACS
    expected = {"int8": first, "float32": products, "dynamic int8": 1 - first - products}
    assert report.shares(executed=True) == pytest.approx(expected)


def test_4_bit_weights_of_onnx_are_multiplied_in_float(
    make: Make, text_shape: dict[str, tuple[int, ...]]
) -> None:
    report = report_on(make("text_4bit.onnx"), text_shape)
    share = (ATTENTION[0] + FEED_FORWARD) / TEXT_MACS  # MatMul nodes; Gemm is left alone
    expected = {"float32, int4 weights": share, "float32": 1 - share}
    assert report.macs == TEXT_MACS and report.weights == "per block"
    assert report.shares(executed=True) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "bits", "scales"),
    [("text_weights.xml", 8, "per channel"), ("text_4bit.xml", 4, "per block")],
)
def test_compressed_weights_are_not_int8_whatever_the_plugin_does_with_them(
    make: Make, text_shape: dict[str, tuple[int, ...]], name: str, bits: int, scales: str
) -> None:
    report = report_on(make(name), text_shape)
    assert report.macs == TEXT_MACS and report.weights == scales
    assert report.int8_written == report.int8_executed == 0
    written = report.shares(executed=False)
    assert written[f"float32, int{bits} weights"] == pytest.approx(1 - ATTENTION[1] / TEXT_MACS)
    assert UNKNOWN not in report.shares(executed=True)


def test_pairs_that_no_kernel_fuses_are_float_and_named(make: Make) -> None:
    report = report_on(make("unfused.onnx"), {})
    (linear,) = [layer for layer in report.layers if layer.op == "Gemm"]
    assert linear.written == "float32"  # the quantizer was not asked for it
    assert report.int8_written == pytest.approx(1 - linear.macs / MACS)
    assert report.int8_executed is not None and report.int8_executed < report.int8_written
    assert {layer.op for layer in report.fallbacks} == {"Conv"}


def test_without_a_shape_shares_are_of_layers(make: Make) -> None:
    report = report_on(make("text.onnx"), {})
    assert report.uncounted == 6 and report.macs == 64 * 5 and report.by_layers
    mixed = report_on(make("text_dynamic.onnx"), {}).shares(executed=True)
    assert mixed == pytest.approx({"dynamic int8": 4 / 7, "float32": 2 / 7, "int8": 1 / 7})
    assert "--shape ids=" in report.anatomy.notes[0]


def test_the_contract_has_scales_and_layouts(make: Make) -> None:
    (given,) = report_on(make("static.tflite"), {}).anatomy.inputs
    assert (given.dtype, given.shape, given.layout) == ("int8", (1, 3, 16, 16), "NCHW")
    low = min(image.min() for image in map(np.asarray, _calibrating()))
    assert given.scales[0] * (-128 - given.zero_points[0]) == pytest.approx(low, abs=0.5)
    (given,) = report_on(make("qdq.onnx"), {}).anatomy.inputs
    assert given.dtype == "float32" and given.quantized == "int8" and given.scales
    (given,) = report_on(make("ptq.xml"), {}).anatomy.inputs
    assert given.dtype == "float32" and (given.quantized, given.zero_points) == ("uint8", (128,))
    (given,) = report_on(make("text.onnx"), {}).anatomy.inputs
    assert (given.dtype, given.shape) == ("int64", ("batch", "sequence"))


def _calibrating() -> list[np.ndarray]:
    from tests.cli.foreign import images

    return images()


def test_the_text_names_what_matters(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(make("no_depthwise.tflite"))]) == 0
    shown = capfd.readouterr().out
    assert f"int8    {NO_DEPTHWISE:.1%} of MACs, as ai-edge-litert" in shown
    assert "1 of 4 layers:" in shown and "(DEPTHWISE_CONV_2D, 9,216 MACs" in shown
    assert "XNNPACK takes" in shown and "per channel" in shown
    assert main(["inspect", str(make("no_depthwise.onnx"))]) == 0
    assert f"here; the file says {NO_DEPTHWISE:.1%}" in capfd.readouterr().out


def test_json_has_every_layer(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(make("int16.onnx")), "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["macs"] == MACS and answer["int8_share_executed"] == 0
    assert answer["shares_written"] == {"int16x8": 1.0}
    assert [layer["executed"] for layer in answer["layers"]] == ["float32"] * 4
    assert answer["runtime"].startswith("ONNX Runtime ")


# What else there is: files that cannot run, or not be read.


def onnx_file(file: Path, nodes: list[onnx.NodeProto], size: int = 4, **graph: object) -> Path:
    """A model of `x` float32 [1, size] and `y`, with these nodes."""
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes, "made", [value("x", TensorProto.FLOAT, [1, size])],
        [value("y", TensorProto.FLOAT, None)], **graph,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), file)
    return file


def weights(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(values.astype(np.float32), name)


def test_a_custom_operator_is_counted_around(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="known"),
        helper.make_node("Strange", ["h"], ["y"], name="strange", domain="mine"),
    ]
    file = onnx_file(tmp_path / "custom.onnx", nodes, initializer=[weights("w", np.ones((4, 5)))])
    report = report_on(file, {})
    assert report.macs == 20 and report.int8_executed is None
    assert "Strange" in (report.anatomy.why_not_run or "")
    assert report.anatomy.operators == {"MatMul": 1, "mine.Strange": 1}


def test_layers_in_branches_are_listed_without_macs(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        node = helper.make_node("MatMul", ["x", "w"], [name], name=f"in_{name}")
        return helper.make_graph([node], name, [], [output])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], ["flag"], to=TensorProto.BOOL),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch("a"), else_branch=branch("b")),
    ]
    file = onnx_file(tmp_path / "if.onnx", nodes, initializer=[weights("w", np.ones((4, 5)))])
    report = report_on(file, {})
    assert {layer.name for layer in report.layers} == {"in_a", "in_b"}
    assert report.by_layers and report.shares(executed=True) == {"float32": 1.0}
    assert "2 layers are inside of branches" in report.anatomy.notes[0]


def test_weights_that_lie_apart_are_found_or_missed(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "apart.onnx"
    model = onnx.load(make("images.onnx"))
    onnx.save(model, file, save_as_external_data=True, location="apart.bin", size_threshold=0)
    assert report_on(file, {}).shares(executed=True) == {"float32": 1.0}
    (tmp_path / "apart.bin").unlink()
    report = report_on(file, {})
    assert report.int8_executed is None and report.macs >= MACS - 320
    assert report.anatomy.why_not_run == "its weights are not there: apart.bin"


def test_a_custom_operator_of_tflite_is_named(make: Make, tmp_path: Path) -> None:
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    from pipeline.backends.tflite.convert import edited

    with edited(make("images.tflite").read_bytes()) as edit:
        (mean,) = [
            code for code in edit.model.operatorCodes if code.builtinCode == BuiltinOperator.MEAN
        ]
        mean.builtinCode = mean.deprecatedBuiltinCode = BuiltinOperator.CUSTOM
        mean.customCode = b"Strange"
    file = tmp_path / "custom.tflite"
    file.write_bytes(edit.content)
    report = report_on(file, {})
    assert report.macs == MACS and report.int8_executed is None
    assert "Strange" in (report.anatomy.why_not_run or "")
    assert report.anatomy.operators["Strange"] == 1


@pytest.mark.parametrize("name", ["qdq.onnx", "static.tflite", "ptq.xml"])
@pytest.mark.parametrize("share", [0, 0.1, 0.9])
def test_a_torn_file_is_one_message(make: Make, tmp_path: Path, name: str, share: float) -> None:
    content = make(name).read_bytes()
    file = tmp_path / name
    file.write_bytes(content[: int(share * len(content))])
    file.with_suffix(".bin").touch()
    with pytest.raises(PipelineError, match=r"damaged|cannot read it"):
        report_on(file, {})


@pytest.mark.parametrize("name", ["qdq.onnx", "dynamic.tflite", "ptq.xml"])
def test_a_damaged_file_is_a_report_or_one_message(make: Make, tmp_path: Path, name: str) -> None:
    content = make(name).read_bytes()
    file = tmp_path / name
    if name.endswith(".xml"):
        file.with_suffix(".bin").write_bytes(make(name).with_suffix(".bin").read_bytes())
    told = 0
    for seed in range(12):
        generator = np.random.default_rng(seed)
        damaged = bytearray(content)
        damaged[int(generator.integers(len(content)))] = int(generator.integers(256))
        file.write_bytes(bytes(damaged))
        try:
            assert isinstance(report_on(file, {}), FileReport)
        except PipelineError as error:
            told += name in str(error)
    assert told


def test_an_ir_without_its_weights_says_so(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "alone.xml"
    file.write_bytes(make("ptq.xml").read_bytes())
    with pytest.raises(PipelineError, match=r"its weights are not beside it: alone\.bin"):
        report_on(file, {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.onnx", "there is no such file"),
        ("model.pt", r"suffix `\.pt` cannot be inspected.*\.onnx"),
        (".", "is a folder"),
    ],
)
def test_what_cannot_be_inspected_is_told(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "model.pt").touch()
    with pytest.raises(PipelineError, match=message):
        report_on(tmp_path / name, {})


def test_a_mistake_is_one_message_and_a_code(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "none.onnx"]) == 1
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err.startswith("error: none.onnx: there is no such file")


def test_a_crash_of_a_runtime_is_one_message(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(PipelineError, match=r"its runtime crashed on it \(SIGSEGV\)"):
        main(["inspect", str(make("images.onnx"))])


@pytest.mark.parametrize("text", ["x", "x=", "x=1x0", "=1x2", "x=1xa"])
def test_a_wrong_shape_is_told(text: str) -> None:
    with pytest.raises(PipelineError, match="is no shape"):
        parse_shapes([text])


def test_a_shape_for_another_input_is_told(make: Make) -> None:
    with pytest.raises(PipelineError, match="it has no input `y`; it has x"):
        report_on(make("qdq.onnx"), {"y": (1, 2)})
    with pytest.raises(PipelineError, match="input `x` has 4 dimensions"):
        report_on(make("qdq.onnx"), {"x": (1, 2)})
