"""Reads any OpenVINO IR (.xml with its .bin): what its graph says, and what the CPU plugin does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backends.base.anatomy import (
    DYNAMIC,
    INT8,
    UNKNOWN,
    Anatomy,
    Arrays,
    FoundLayer,
    Port,
    Shapes,
    Trace,
    TracedLayer,
    image_layout,
    weight_scales,
    with_shapes,
    written,
)
from pipeline.backends.base.executed import matrix_macs
from pipeline.backends.base.job import flat, opened_bytes
from pipeline.backends.openvino.inspect import readers
from pipeline.backends.openvino.kernels import (
    CPU,
    TYPES,
    kernel_count,
    kernels_of,
    quantizes_anew,
)
from pipeline.backends.openvino.run import _openvino, versions
from pipeline.backends.openvino.run import read as read_model
from pipeline.core.errors import PipelineError
from pipeline.core.text import first_line

if TYPE_CHECKING:
    import openvino

CONVOLUTIONS = ("Convolution", "GroupConvolution")
TRANSPOSED = ("ConvolutionBackpropData", "GroupConvolutionBackpropData")
RECURRENT = ("LSTMSequence", "GRUSequence", "RNNSequence")
ATTENTION = "ScaledDotProductAttention"
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, "MatMul", ATTENTION, *RECURRENT)
_FUSED = ("Relu", "ReLU", "Clamp", "PRelu", "FakeQuantize")
_MOVING = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "Convert", "Slice",
           "StridedSlice")  # fmt: skip


def read(file: Path, shapes: Shapes) -> Anatomy:
    """See `backends.base.anatomy.Reader`.

    Compiled with the CPU plugin's default properties: it may then compute in bfloat16.
    """
    model = _model(file)
    ports = tuple(_port(value) for value in model.inputs)
    outputs = tuple(_port(value) for value in model.outputs)
    counted = Counter(node.get_type_name() for node in model.get_ordered_ops())
    for aside in ("Constant", "Parameter", "Result"):
        counted.pop(aside, None)
    call = with_shapes(ports, shapes, file)
    compiled, why = _compiled(model, call)
    kernels = kernels_of(compiled) if compiled else {}
    dynamic = quantizes_anew(model, kernels, ports, call) if compiled else None
    layers = tuple(
        _layer(node, kernels if compiled else None, dynamic)
        for node in model.get_ordered_ops()
        if node.get_type_name() in LAYERS
    )
    open_ = [port.name for port in ports if port.name not in call]
    notes = (f"MACs that depend on the size of {', '.join(open_)} are not known; give it with "
             f"--shape {open_[0]}=1x...",) if open_ else ()  # fmt: skip
    return Anatomy(
        format=f"OpenVINO IR{_version(model)}",
        inputs=ports,
        outputs=outputs,
        parameters=_parameters(model),
        size_bytes=opened_bytes(file),
        operators=dict(counted.most_common()),
        layers=layers,
        runtime=f"OpenVINO {versions()['openvino']} on CPU" if compiled else None,
        why_not_run=why,
        cut=kernel_count(compiled) if compiled else None,
        notes=notes,
    )


def trace(file: Path, inputs: Arrays) -> Trace:
    """See `backends.base.anatomy.Reader`. In float32 where layers are not int8."""
    model = _model(file)
    names = [_name(value) for value in model.outputs]
    layers = [node for node in model.get_ordered_ops() if node.get_type_name() in LAYERS]
    ends = [_end(node.output(0)) for node in layers]
    try:
        _reshape(model, {name: values.shape for name, values in inputs.items()})
        results = [result.input_value(0) for result in model.get_results()]
        parts = [*results, *ends], model.get_sinks(), model.get_parameters()
        compiled = _openvino().Core().compile_model(_openvino().Model(*parts), CPU, _IN_FLOAT32)
        answer = compiled([inputs[_name(value)] for value in model.inputs])
        found = [answer[i] for i in range(len(results) + len(ends))]
    except RuntimeError as error:
        raise PipelineError(
            f"OpenVINO cannot run it: {first_line(error, _IDLE)}", where=str(file)
        ) from error
    values = [np.asarray(value, np.float32) for value in found]
    traced = zip(layers, values[len(names) :], strict=True)
    return Trace(
        tuple(TracedLayer(n.get_friendly_name(), flat(np.atleast_2d(v))) for n, v in traced),
        dict(zip(names, values, strict=False)),
    )


_IDLE = ("Exception from", "Check '")
"""Beginnings of lines of OpenVINO's errors that name its own sources alone."""

_IN_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def _model(file: Path) -> openvino.Model:
    weights = file.with_suffix(".bin")
    with file.open("rb") as opened:
        if b"<net" not in opened.read(1000):
            raise PipelineError("is damaged or no OpenVINO IR", where=str(file))
    try:
        return read_model(str(file))
    except (RuntimeError, UnicodeDecodeError) as error:
        if not weights.is_file():
            what = f"its weights are not beside it: {weights.name}"
        else:
            what = f"OpenVINO cannot read it: {first_line(error, _IDLE)}"
        raise PipelineError(what, where=str(file)) from error


def _compiled(
    model: openvino.Model, call: Shapes
) -> tuple[openvino.CompiledModel | None, str | None]:
    try:
        _reshape(model, call)
        return _openvino().Core().compile_model(model, CPU), None
    except RuntimeError as error:
        if isinstance(error, PipelineError):
            raise
        return None, f"OpenVINO refuses it: {first_line(error, _IDLE)}"


def _reshape(model: openvino.Model, call: Shapes) -> None:
    """Fix the shapes of the inputs that `call` names."""
    wanted = {
        value: list(call[_name(value)])
        for value in model.inputs
        if _name(value) in call and value.get_partial_shape().is_dynamic
    }
    if wanted:
        model.reshape(wanted)


def _name(value: Any) -> str:
    names = sorted(value.get_names())
    return str(names[0] if names else value.get_node().get_friendly_name())


def _port(value: Any) -> Port:
    partial = value.get_partial_shape()
    shape: tuple[int | str, ...] | None = None
    if partial.rank.is_static:
        shape = tuple(dim.get_length() if dim.is_static else "?" for dim in partial)
    layout = image_layout(shape)
    node = value.get_node()
    if node.get_type_name() == "Parameter" and not node.layout.empty:
        layout = node.layout.to_string().strip("[]").replace(",", "")
    return Port(_name(value), _dtype(value), shape, layout, *_rounded_at_once(value))


def _rounded_at_once(value: Any) -> tuple[str | None, tuple[float, ...], tuple[int, ...]]:
    """Type, scale and zero point by which the only reader of an input rounds it; else none."""
    found = readers(value) if value.get_node().get_type_name() == "Parameter" else []
    if len(found) != 1 or found[0].get_type_name() != "FakeQuantize":
        return None, (), ()
    levels = found[0].get_attributes()["levels"]
    bounds = [found[0].input_value(i).get_node() for i in (1, 2)]
    if levels != 256 or any(node.get_type_name() != "Constant" for node in bounds):
        return None, (), ()
    low, high = (np.asarray(node.data, np.float64).reshape(-1) for node in bounds)
    if len(low) != 1 or len(high) != 1 or high[0] <= low[0]:
        return None, (), ()
    scale = float(high[0] - low[0]) / (levels - 1)
    return "uint8", (scale,), (int(np.rint(-low[0] / scale)),)


def _dtype(value: Any) -> str:
    kind: str = value.get_element_type().to_string()
    if kind in TYPES:
        return TYPES[kind]
    return (
        {"i": "int", "u": "uint"}.get(kind[0], kind[0]) + kind[1:] if kind[1:].isdigit() else kind
    )


def _layer(node: Any, kernels: dict[str, str] | None, dynamic: bool | None) -> FoundLayer:
    name, kind = node.get_friendly_name(), node.get_type_name()
    place = 4 if kind == "LSTMSequence" else 3 if kind in RECURRENT else 1
    left, right = _activation(node.input_value(0)), _weights(node.input_value(place))
    real = _dtype(node.input_value(0))
    if right is None:
        other = _activation(node.input_value(1))
        precision = written(left, other) if INT8 in (left, other) else real
        scales = None
    else:
        kept, count, channels = right
        integer = not kept.startswith(("float", "bfloat"))
        precision = written(left, kept if integer else real, kept if kept != real else None)
        scales = weight_scales(count, channels) if integer and count else None
    executed = None
    if kernels is not None:
        # The kernel of a layer that is fused with its bias may mention the bias alone.
        names = [name, *(reader.get_friendly_name() for reader in readers(node.output(0)))]
        executed = next((kernels[n] for n in names if n in kernels), UNKNOWN)
        if executed.endswith(", weights"):
            kept = right[0].removeprefix("u") if right else UNKNOWN
            product = DYNAMIC if dynamic else executed.partition(",")[0]
            executed = UNKNOWN if dynamic is None else f"{product}, {kept} weights"
    return FoundLayer(name, kind, _macs(node), precision, executed, scales)


def _macs(node: Any) -> int | None:
    kind = node.get_type_name()
    ends = [*node.inputs(), node.output(0)]
    if any(end.get_partial_shape().is_dynamic for end in ends):
        return None
    shapes: list[tuple[int, ...]] = [tuple(end.get_shape()) for end in ends]
    if kind in RECURRENT:
        first = 4 if kind == "LSTMSequence" else 3
        batch, steps = shapes[0][:2]
        return batch * steps * (math.prod(shapes[first]) + math.prod(shapes[first + 1]))
    if kind == "MatMul":
        return _product(shapes[0], shapes[1], shapes[-1])
    if kind == ATTENTION:  # queries [..., L, E], keys [..., S, E], values [..., S, V]
        query, key, value = shapes[:3]
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    image = shapes[0] if kind in TRANSPOSED else shapes[-1]
    return image[0] * math.prod(image[2:]) * math.prod(shapes[1])


def _product(left: tuple[int, ...], right: tuple[int, ...], output: tuple[int, ...]) -> int:
    if len(left) < 2 or len(right) < 2:  # a vector
        return math.prod(output) * (left[-1] if len(left) < 2 else right[0])
    return matrix_macs(left, output)


def _activation(value: Any) -> str:
    """The type that a tensor is rounded to by a FakeQuantize before it; else its own."""
    node = value.get_node()
    while node.get_type_name() in _MOVING:
        node = node.input_value(0).get_node()
    if node.get_type_name() == "FakeQuantize":
        levels = node.get_attributes()["levels"]
        return INT8 if levels <= 256 else "int16" if levels <= 65536 else _dtype(value)
    return _dtype(value)


def _weights(value: Any) -> tuple[str, int, int] | None:
    """Stored type, number of scales and output channels of constant weights; None: not constant."""
    node, scales, rounded = value.get_node(), 0, False
    while node.get_type_name() != "Constant":
        kind = node.get_type_name()
        if kind not in (*_MOVING, "Multiply", "Subtract", "FakeQuantize"):
            return None
        if kind == "Multiply":
            scales = max(scales, math.prod(node.input(1).get_shape()))
        if kind == "FakeQuantize":
            rounded, scales = True, max(scales, math.prod(node.input(3).get_shape()))
        node = node.input_value(0).get_node()
    shape = tuple(value.get_shape())
    reader = next(iter(value.get_target_inputs())).get_node()
    channels = shape[0] * (shape[1] if "Group" in reader.get_type_name() else 1) if shape else 1
    if reader.get_type_name() == "MatMul" and not reader.get_attributes()["transpose_b"]:
        channels = shape[-1]
    return (INT8 if rounded else _dtype(node.output(0))), scales, channels


def _end(output: Any) -> Any:
    """The output that the next layer reads: behind a bias, an activation and rounding."""
    while True:
        found = readers(output)
        if len(found) != 1:
            return output
        node = found[0]
        kind = node.get_type_name()
        constant = any(v.get_node().get_type_name() in ("Constant", "Convert")
                       for v in node.input_values())  # fmt: skip
        if kind not in _FUSED and not (kind in ("Add", "Multiply") and constant):
            return output
        output = node.output(0)


def _parameters(model: openvino.Model) -> int:
    """Elements of constants that products and sums read, their scales and zero points left out."""
    return sum(math.prod(node.get_output_shape(0)) for node in _stored(model))


def _stored(model: openvino.Model) -> Iterator[Any]:
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or _dtype(node.output(0)) in ("int64", "int32"):
            continue
        users = list(node.output(0).get_target_inputs())
        while users and users[0].get_node().get_type_name() in ("Convert", "Reshape"):
            users = list(users[0].get_node().output(0).get_target_inputs())
        aside = [u.get_index() > 0 and u.get_node().get_type_name() in
                 ("Subtract", "FakeQuantize", "Multiply") and _scales_weights(u.get_node())
                 for u in users]  # fmt: skip
        if not all(aside):
            yield node


def _scales_weights(node: Any) -> bool:
    """Whether an operator turns stored integers, or what was rounded, into real values."""
    return node.get_type_name() == "FakeQuantize" or _weights(node.output(0)) is not None


def _version(model: openvino.Model) -> str:
    try:
        info = model.get_rt_info("Runtime_version").astype(str)
    except RuntimeError:
        return ""
    return f", by {info.split('-')[0]}"
