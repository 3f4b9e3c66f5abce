"""What is particular to Core ML's artifacts. Core ML itself runs on Apple's systems alone."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.backends.base.job import Compiled, Job
from pipeline.backends.base.params import Backends
from pipeline.backends.base.registry import backend
from pipeline.core.errors import PipelineError
from pipeline.networks import grid
from pipeline.networks.folding import fold_batch_norm
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.weights import load_pixels_to_logits

pytest.importorskip("coremltools", reason="no coremltools: pip install '.[coreml]'")

from pipeline.backends.coreml.mil import Program, quiet

with quiet():
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load as load_by_apple
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

from pipeline.backends.coreml import run as on_a_mac
from pipeline.backends.coreml.convert import program_of, write
from pipeline.backends.coreml.graph import Evaluator
from pipeline.backends.coreml.inspect import QUANTIZED, inspect, layers_of
from pipeline.backends.coreml.operators import OPERATORS
from pipeline.backends.coreml.quantize import Grid, quantize
from pipeline.backends.coreml.reader import trace
from pipeline.backends.coreml.spec import BACKEND
from pipeline.cli.inspect.report import report_on

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]
Made = Callable[[str, str], tuple[Path, Compiled]]


def opened(made: Made, precision: str) -> Program:
    return Program(made("coreml", precision)[0])


def written(network: nn.Module, folder: Path, channels: int = 3, size: int = 16) -> Program:
    """A network of normalised images as a package of float32."""
    model = PixelsToLogits(network, student_normalisation(channels)).eval()
    write(program_of(model, (size, size, channels), "fp32", "iOS17"), folder / "model.mlpackage")
    return Program(folder / "model.mlpackage")


def test_both_operands_of_each_layer_are_int8_in_the_program(made: Made) -> None:
    program = opened(made, "int8")
    layers = [op for op in program.ops if op.kind in QUANTIZED]
    assert layers
    for op in layers:
        left, right = (program.makers[op.inputs[name][0]] for name in ("x", "weight"))
        assert left.kind == "dequantize" and right.kind == "constexpr_affine_dequantize"
        rounded = program.makers[left.inputs["input"][0]]
        assert rounded.kind == "quantize"
        assert program.types[rounded.outputs[0]].dtype in ("int8", "uint8")
        assert program.type_of(right.inputs["quantized_data"][0]).dtype == "int8"
    assert inspect(program).int8_mac_share == 1
    assert inspect(opened(made, "fp16")).int8_mac_share == 0


def test_int8_weights_are_within_half_a_step_of_torchs(made: Made, student: Path) -> None:
    model, _ = load_pixels_to_logits(student)
    folded = fold_batch_norm(model, torch.zeros(1, 28, 28, 3, dtype=torch.uint8))
    kinds = (nn.Conv2d, nn.Linear)
    expected = [m.weight.detach().numpy() for m in folded.modules() if isinstance(m, kinds)]
    program = opened(made, "int8")
    makers = [program.makers[op.inputs["weight"][0]] for op in program.ops if op.kind in QUANTIZED]
    assert len(makers) == len(expected)
    for maker in makers:
        values, scale = (program.value(maker.inputs[n][0]) for n in ("quantized_data", "scale"))
        step = scale.astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
        same = [w for w in expected if w.shape == values.shape]
        errors = [np.abs(values * step - w).max(axis=tuple(range(1, w.ndim))) for w in same]
        # float16, from which the steps are made, has 11 significant bits
        assert any((error <= 0.5 * scale + 127 * scale * 2.0**-10).all() for error in errors)


def test_pixels_are_quantized_exactly_though_calibration_lacks_the_darkest(made: Made) -> None:
    program = opened(made, "int8")
    first = next(op for op in program.ops if op.kind == "quantize")
    assert program.types[first.outputs[0]].dtype == "int8" and "zero_point" not in first.inputs
    assert program.value(first.inputs["scale"][0]) == grid.SCALE


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_app_finds_an_image_logits_and_the_classes(made: Made, precision: str) -> None:
    spec = opened(made, precision).spec
    (image,), (logits,) = spec.description.input, spec.description.output
    kind = image.type.imageType
    assert (image.name, kind.height, kind.width) == ("image", 28, 28)
    assert kind.colorSpace == kind.ColorSpace.Value("RGB")
    array = logits.type.multiArrayType
    assert (logits.name, list(array.shape)) == ("logits", [1, 10])
    assert array.dataType == array.ArrayDataType.Value("FLOAT32")
    assert json.loads(spec.description.metadata.userDefined["classes"]) == list("abcdefghij")
    assert spec.specificationVersion == 8  # iOS 17
    assert "conversion_date" not in str(spec.description.metadata)


def test_grey_images_are_declared_grey(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))
    spec = written(network, tmp_path, channels=1).spec
    kind = spec.description.input[0].type.imageType
    assert kind.colorSpace == kind.ColorSpace.Value("GRAYSCALE")


def test_constants_are_read_as_apples_own_code_reads_them(made: Made) -> None:
    program = opened(made, "int8")
    weights = str(program.folder / "Data/com.apple.CoreML/weights")
    theirs = load_by_apple(program.spec, 8, file_weights_dir=weights).functions["main"]
    compared = 0
    for op in theirs.operations:
        name = op.outputs[0].name
        if op.op_type == "constexpr_affine_dequantize":
            given = program.makers[name].inputs
            pairs = [(given[k][0], op.inputs[k].val) for k in ("quantized_data", "scale")]
        elif op.op_type == "const" and program.is_constant(name):
            pairs = [(name, op.outputs[0].val)]
        else:
            continue
        for ours, its in pairs:
            np.testing.assert_array_equal(program.value(ours), its)
        compared += 1
    assert compared > 20


def test_a_newer_target_keeps_weights_by_its_own_operator(
    made: Made, job: Callable[..., Job], test_images: Images, tmp_path: Path
) -> None:
    settings = BACKEND.settings.model_validate(
        {"precisions": ["int8"], "deployment_target": "iOS18"}
    )
    BACKEND.compiler(settings).compile(job("int8", "coreml"), tmp_path)
    newer = Program(tmp_path / "model.mlpackage")
    kinds = Counter(op.kind for op in newer.ops)
    assert newer.spec.specificationVersion == 9 and kinds["constexpr_blockwise_shift_scale"]
    assert "constexpr_affine_dequantize" not in kinds and inspect(newer).int8_mac_share == 1
    logits = [
        BACKEND.load(p, 1)(test_images[0][:8]) for p in (newer.folder, made("coreml", "int8")[0])
    ]
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("target", ["iOS15", "iOS16"])
def test_int8_for_a_system_without_it_is_refused(target: str) -> None:
    given = {"enabled": ["coreml"], "coreml": {"precisions": ["int8"], "deployment_target": target}}
    with pytest.raises(PipelineError, match=r"backends\.coreml.*int8 activations need iOS17"):
        Backends.model_validate(given).settings("coreml")
    given["coreml"] = {"precisions": ["fp16"], "deployment_target": target}
    assert Backends.model_validate(given).settings("coreml").precisions == ("fp16",)


def test_layers_that_the_recipe_names_stay_in_float(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    plain = job("int8", "coreml")
    named = (plain.layers[0].name, plain.layers[-1].name)
    kept = replace(plain, recipe=replace(plain.recipe, float_layers=named))
    settings = BACKEND.settings.model_validate({"precisions": ["int8"]})
    compiled = BACKEND.compiler(settings).compile(kept, tmp_path)
    layers = list(layers_of(Program(tmp_path / "model.mlpackage")))
    assert compiled.kept_float == (layers[0].name, layers[-1].name)
    assert [layer.int8 for layer in layers] == [False, *[True] * (len(layers) - 2), False]


def test_ranges_that_are_not_symmetric_have_a_zero_point(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    plain = job("int8", "coreml")
    settings = BACKEND.settings.model_validate({"precisions": ["int8"]})
    compiler = BACKEND.compiler(settings)
    other = replace(plain, recipe=replace(plain.recipe, ranges=compiler.ranges[0]))
    compiler.compile(other, tmp_path)
    program = Program(tmp_path / "model.mlpackage")
    zeros = [
        int(program.value(op.inputs["zero_point"][0]))
        for op in program.ops
        if op.kind == "quantize" and "zero_point" in op.inputs
    ]
    assert zeros and all(0 < zero < 255 for zero in zeros)


@pytest.mark.parametrize(
    ("span", "asymmetric", "expected"),
    [
        ((0.5, 6.0), False, ("uint8", 6 / 255, 0)),
        ((-1.0, 3.0), False, ("int8", 3 / 127, 0)),
        ((-1.0, 3.0), True, ("uint8", 4 / 255, 64)),
        ((0.0, 0.0), False, ("uint8", 2.0**-14, 0)),
    ],
)
def test_grids_span_the_range(
    span: tuple[float, float], asymmetric: bool, expected: tuple[str, float, int]
) -> None:
    its = Grid(*span, asymmetric=asymmetric)
    assert (its.dtype, its.zero_point) == (expected[0], expected[2])
    assert its.scale == pytest.approx(expected[1], rel=2.0**-11)


def draw(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("add", {"x": draw(2, 3), "y": draw(3)}),
    ("clip", {"x": draw(4, 5), "alpha": -0.5, "beta": 0.7}),
    ("concat", {"values": (draw(1, 2), draw(1, 3)), "axis": 1}),
    ("exp", {"x": draw(5)}),
    ("expand_dims", {"x": draw(2, 3), "axes": [0, 2]}),
    ("gelu", {"x": draw(50), "mode": "EXACT"}),
    ("gelu", {"x": draw(50), "mode": "TANH_APPROXIMATION"}),
    ("gelu", {"x": draw(50), "mode": "SIGMOID_APPROXIMATION"}),
    ("leaky_relu", {"x": draw(9), "alpha": 0.1}),
    ("linear", {"x": draw(2, 3), "weight": draw(4, 3), "bias": draw(4)}),
    ("matmul", {"x": draw(2, 3), "y": draw(4, 3), "transpose_y": True}),
    ("maximum", {"x": draw(4), "y": draw(1)}),
    ("mul", {"x": draw(2, 3), "y": draw(2, 1)}),
    ("quantize", {"input": draw(3, 4), "scale": np.float32(0.05), "output_dtype": "uint8"}
     | {"zero_point": np.uint8(30)}),
    ("quantize", {"input": draw(3, 4), "scale": np.float32([0.01, 0.02, 0.3]), "axis": 0}
     | {"output_dtype": "int8"}),
    ("real_div", {"x": draw(2, 3), "y": draw(3) + 5}),
    ("reduce_l2_norm", {"x": draw(2, 3, 4), "axes": [-1], "keep_dims": True}),
    ("reduce_max", {"x": draw(2, 3, 4), "axes": [1], "keep_dims": False}),
    ("reduce_mean", {"x": draw(2, 3, 4), "axes": [1, 2], "keep_dims": False}),
    ("reduce_sum", {"x": draw(2, 3, 4), "axes": [0], "keep_dims": True}),
    ("pad", {"x": draw(2, 3, 4), "pad": [1, 0, 2, 3], "mode": "constant", "constant_val": 0.5}),
    ("pad", {"x": draw(2, 3, 4), "pad": [1, 2], "mode": "reflect"}),
    ("pad", {"x": draw(2, 3, 4), "pad": [1, 2], "mode": "replicate"}),
    ("relu", {"x": draw(9)}),
    ("relu6", {"x": 9 * draw(9)}),
    ("reshape", {"x": draw(2, 6), "shape": [2, 3, 2]}),
    ("rsqrt", {"x": np.abs(draw(9)), "epsilon": 1e-4}),
    ("sigmoid", {"x": draw(9)}),
    ("sigmoid_hard", {"x": 3 * draw(9), "alpha": 1 / 6, "beta": 0.5}),
    ("slice_by_index", {"x": draw(3, 5), "begin": [0, 1], "end": [2, 5], "stride": [1, 2]}
     | {"end_mask": [True, False]}),
    ("slice_by_index", {"x": draw(3, 5), "begin": [1, 0], "end": [0, 0]}
     | {"squeeze_mask": [True, False], "end_mask": [False, True]}),
    ("softmax", {"x": draw(3, 5), "axis": -1}),
    ("split", {"x": draw(2, 6), "num_splits": 3, "axis": 1}),
    ("split", {"x": draw(2, 6), "split_sizes": [1, 5], "axis": 1}),
    ("squeeze", {"x": draw(1, 3, 1), "axes": [0]}),
    ("sub", {"x": draw(2, 3), "y": draw(3)}),
    ("tanh", {"x": draw(9)}),
    ("thresholded_relu", {"x": 4 * draw(9), "alpha": -3.0}),
    ("tile", {"x": draw(2, 3), "reps": [1, 2]}),
    ("transpose", {"x": draw(2, 3, 4), "perm": [0, 2, 1]}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "operands"), CASES, ids=[kind for kind, _ in CASES])
def test_operators_compute_what_apples_own_inference_of_values_computes(
    kind: str, operands: dict[str, Any]
) -> None:
    found = []

    @mb.program(opset_version=coremltools.target.iOS17)  # type: ignore[untyped-decorator]
    def program() -> Any:
        made = getattr(mb, kind)(**operands)
        found.extend(made if isinstance(made, (list, tuple)) else [made])
        return mb.const(val=np.float32(0))

    given = {name: as_tensor(value) for name, value in operands.items()}
    ours = OPERATORS[kind](**given)
    ours = ours if isinstance(ours, tuple) else (ours,)
    assert len(ours) == len(found)
    for mine, its in zip(ours, found, strict=True):
        assert its.val is not None, "coremltools infers no value of this operator"
        np.testing.assert_allclose(mine.numpy(), its.val, rtol=1e-5, atol=1e-6)


def as_tensor(value: Any) -> Any:
    if isinstance(value, tuple):
        return [as_tensor(one) for one in value]
    return (
        torch.from_numpy(np.array(value)) if isinstance(value, (np.ndarray, np.generic)) else value
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "pools": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.MaxPool2d(3, 2, 1), nn.Hardswish(),
            nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Flatten(), nn.Linear(32, 4),
        ),
        (16, 3),
    ),
    "odd": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, (3, 5), padding=(0, 2), dilation=(2, 1), groups=3), nn.GroupNorm(2, 6),
            nn.Upsample(scale_factor=2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(6, 4),
        ),
        (16, 3),
    ),
    "transformer": (lambda: Tokens(), (16, 3)),
}  # fmt: skip


class Tokens(nn.Module):
    """Patches, an attention, a mean of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 16, 4, 4)
        self.mix = nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.mix(self.cut(x).flatten(2).transpose(1, 2))
        result: torch.Tensor = self.head(tokens.mean(1))
        return result


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_torch_and_the_written_program_agree(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, (size, channels) = NETWORKS[name]
    network = make()
    program = written(network, tmp_path, channels, size)
    images = np.random.default_rng(1).integers(0, 256, (5, size, size, channels), np.uint8)
    with torch.no_grad():
        model = PixelsToLogits(network, student_normalisation(channels)).eval()
        expected = model(torch.from_numpy(images)).numpy()
    logits = BACKEND.load(program.folder, 1)(images)
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())


def test_operators_that_cannot_be_evaluated_are_named(made: Made) -> None:
    program = opened(made, "fp32")
    program.ops = (program.ops[0]._replace(kind="custom_thing"), *program.ops[1:])
    with pytest.raises(ValueError, match=r"not evaluated here: custom_thing$"):
        Evaluator(program)


def test_a_student_with_another_normalisation_has_no_int8(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 3))
    other = student_normalisation(3).model_copy(update={"std": (58.0,) * 3})
    model = program_of(PixelsToLogits(network, other).eval(), (28, 28, 3), "fp16", "iOS17")
    write(model, tmp_path / "model.mlpackage")
    with pytest.raises(PipelineError, match=r"does not begin with \(x - 128\) / 64"):
        quantize(model, Program(tmp_path / "model.mlpackage"), job("int8", "coreml"))


def test_elsewhere_than_on_a_mac_the_runtime_says_so(made: Made) -> None:
    with pytest.raises(RuntimeError, match=r"Apple's systems alone.*verify\.py --graph"):
        on_a_mac.load(str(made("coreml", "fp16")[0]), 1)


def test_inspect_says_what_the_file_says_and_that_core_ml_was_not_asked(made: Made) -> None:
    file, compiled = made("coreml", "int8")
    found = report_on(file, {})
    assert found.int8_written == 1 and found.int8_executed is None
    assert found.weights == "per channel" and "not asked" in str(found.anatomy.why_not_run)
    (image,) = found.anatomy.inputs
    assert (image.dtype, image.shape, image.layout) == ("uint8", (1, 28, 28, 3), "NHWC")
    assert found.anatomy.parameters == report_on(made("coreml", "fp32")[0], {}).anatomy.parameters
    assert found.macs == compiled.execution.macs


def test_a_trace_ends_in_the_logits(made: Made, test_images: Images) -> None:
    file, images = made("coreml", "int8")[0], test_images[0][:4]
    found = trace(file, {"image": images})
    np.testing.assert_array_equal(found.outputs["logits"], BACKEND.load(file, 1)(images))
    assert len(found.layers) == len(report_on(file, {}).layers)


def test_weights_alone_in_int8_are_not_int8(tmp_path: Path) -> None:
    """As coremltools' `linear_quantize_weights` makes files, by its defaults."""
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.Flatten())
    model = PixelsToLogits(network, student_normalisation(3)).eval()
    made = program_of(model, (16, 16, 3), "fp16", "iOS17")
    optimize = coremltools.optimize.coreml
    config = optimize.OptimizationConfig(
        optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
    )
    optimize.linear_quantize_weights(made, config).save(str(tmp_path / "w8.mlpackage"))
    found = report_on(tmp_path / "w8.mlpackage", {})
    assert found.int8_written == 0 and found.weights == "per channel"
    assert found.shares(executed=False) == {"float16, int8 weights": 1.0}


@pytest.mark.parametrize(
    ("part", "size", "said"),
    [
        ("Manifest.json", 20, "is damaged or no .mlpackage"),
        ("Data/com.apple.CoreML/model.mlmodel", 3000, "is damaged"),
        ("Data/com.apple.CoreML/model.mlmodel", None, "is damaged or no .mlpackage"),
        ("Data/com.apple.CoreML/weights/weight.bin", 500, "weight.bin at"),
    ],
)
def test_a_damaged_package_is_told(
    made: Made, tmp_path: Path, part: str, size: int | None, said: str
) -> None:
    package = tmp_path / "cut.mlpackage"
    shutil.copytree(made("coreml", "fp32")[0], package)
    content = (package / part).read_bytes()
    (package / part).unlink() if size is None else (package / part).write_bytes(content[:size])
    with pytest.raises(PipelineError) as raised:
        BACKEND.load(package, 1)
    assert re.search(said, str(raised.value)) and "\n" not in raised.value.what


def test_a_model_of_the_older_kind_is_told(tmp_path: Path, made: Made) -> None:
    package = tmp_path / "old.mlpackage"
    shutil.copytree(made("coreml", "fp32")[0], package)
    file = package / "Data/com.apple.CoreML/model.mlmodel"
    spec = opened(made, "fp32").spec
    spec.neuralNetwork.SetInParent()
    file.write_bytes(spec.SerializeToString())
    with pytest.raises(PipelineError, match="it holds a `neuralNetwork`, no ML program"):
        report_on(package, {})


def test_a_file_of_that_name_and_a_folder_of_another_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.mlpackage").write_bytes(b"nonsense")
    with pytest.raises(PipelineError, match=r"damaged or no \.mlpackage"):
        report_on(tmp_path / "a.mlpackage", {})
    (tmp_path / "b.onnx").mkdir()
    with pytest.raises(PipelineError, match="is a folder"):
        report_on(tmp_path / "b.onnx", {})
    assert backend("coreml").reads_folders
