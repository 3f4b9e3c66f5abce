"""What an ML program computes, read from its file: layers, their operands, the way in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.backends.base.executed import ExecutedLayer, execution_report, matrix_macs
from pipeline.backends.base.records import ExecutionReport
from pipeline.backends.coreml.graph import Evaluator, channels_first
from pipeline.backends.coreml.mil import Given, Op, Program
from pipeline.core.errors import PipelineError
from pipeline.networks import grid

QUANTIZED = ("conv", "linear")
"""Layers that have int8 weights here."""
LAYERS = (*QUANTIZED, "conv_transpose", "matmul", "scaled_dot_product_attention")
ACTIVATIONS = ("clip", "leaky_relu", "relu", "relu6")
_PAIR = ("quantize", "dequantize")
_INTEGERS = ("int8", "uint8")
_FRONT = ("add", "cast", "mul", "real_div", "sub", "transpose")


@dataclass(frozen=True)
class Layer:
    """A conv or linear layer, or a product of two activations."""

    name: str
    kind: str
    macs: int | None
    """Of one call; None where a size is not fixed."""
    activations: str
    """The type of the left operand: int8 or uint8 where it is the output of a `dequantize`."""
    weights: str
    """Of the right operand, likewise, or behind a `constexpr_` operator."""
    scales: int | None
    """Of int8 weights; None for others."""
    channels: int

    @property
    def int8(self) -> bool:
        """Whether both operands are int8."""
        return self.activations in _INTEGERS and self.weights in _INTEGERS


def inspect(program: Program) -> ExecutionReport:
    """The execution report of a student's program.

    Its input is an image of 8-bit pixels, by the description of the model.
    """
    layers = [
        ExecutedLayer(
            layer.name, layer.macs or 0, layer.int8,
            layer.scales == layer.channels if layer.scales is not None else None,
        )
        for layer in layers_of(program)
    ]  # fmt: skip
    return execution_report(layers, *ends(program))


def ends(program: Program) -> tuple[str, str]:
    """NumPy's names of the types of the first input and output, as Core ML's callers see them."""
    description = program.spec.description
    given = description.input[0]
    kind = "uint8" if given.type.WhichOneof("Type") == "imageType" else array_type(given)
    return kind, array_type(description.output[0])


def array_type(feature: Any) -> str:
    """NumPy's name of the type of a multi-array, by FeatureTypes.proto."""
    value = feature.type.multiArrayType.dataType
    names = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32"}
    return names.get(value, f"type {value}")


def layers_of(program: Program) -> Iterator[Layer]:
    """Each layer, in order of execution, by the name of its output."""
    for op in program.ops:
        if op.kind in LAYERS:
            yield _layer(program, op)


def _layer(program: Program, op: Op) -> Layer:
    attention = op.kind == "scaled_dot_product_attention"
    left = op.inputs["query" if attention else "x"][0]
    right = op.inputs["key" if attention else "weight" if "weight" in op.inputs else "y"][0]
    x, weight = program.type_of(left).shape, program.type_of(right).shape
    output = program.type_of(op.outputs[0]).shape
    macs: int | None
    if min((*x, *weight, *output), default=0) < 0:
        macs = None
    elif attention:
        macs = 2 * math.prod(x) * weight[-2]
    elif op.kind == "matmul":
        macs = matrix_macs(x, output)
    elif op.kind == "conv_transpose":
        macs = math.prod(x) * math.prod(weight[1:])
    else:
        macs = math.prod(output) * math.prod(weight[1:])
    weights, scales = _stored(program, right)
    activations, _ = _stored(program, left)
    channels = weight[0] if weight else 1
    return Layer(op.outputs[0], op.kind, macs, activations, weights, scales, channels)


def _stored(program: Program, operand: Given) -> tuple[str, int | None]:
    """The type of an operand, or that of the integers it was made of, and the number of scales."""
    maker = program.makers.get(operand) if isinstance(operand, str) else None
    names = {
        "dequantize": "input",
        "constexpr_affine_dequantize": "quantized_data",
        "constexpr_blockwise_shift_scale": "data",
    }
    if maker is None or maker.kind not in names:
        return program.type_of(operand).dtype, None
    dtype = program.type_of(maker.inputs[names[maker.kind]][0]).dtype
    return dtype, math.prod(program.type_of(maker.inputs["scale"][0]).shape)


def as_read(program: Program, name: str) -> str:
    """The output of a layer as the next one reads it: behind fused activations, and rounded."""
    while True:
        readers = program.readers.get(name, [])
        if len(readers) != 1 or readers[0].kind not in (*ACTIVATIONS, *_PAIR):
            return name
        name = readers[0].outputs[0]


def front(program: Program, where: Path) -> str:
    """The name of the activation that is (x - 128) / 64 of each pixel x.

    Raises:
        PipelineError: for a program that begins in another way.
    """
    (image,) = program.inputs
    name, shape = image, program.types[image].shape
    pixels = grid.every_pixel((shape[2], shape[3], shape[1]))
    values = channels_first(pixels)
    expected = grid.normalise(pixels).transpose(0, 3, 1, 2)
    evaluator = Evaluator(program)
    while True:
        readers = program.readers.get(name, [])
        if len(readers) != 1 or readers[0].kind not in _FRONT:
            break
        name = readers[0].outputs[0]
        found = next(iter(evaluator.each(values, [name])))[name]
        if found.shape[1:] == expected.shape[1:] and (found == expected[: len(found)]).all():
            return name
    raise PipelineError(
        "does not begin with (x - 128) / 64, which int8 relies on",
        where=str(where),
        fix="train the student with (x - 128) / 64",
    )
