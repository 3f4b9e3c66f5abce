"""Reads any .mlpackage that holds an ML program: what it says, and what torch makes of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backends.base.anatomy import (
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
from pipeline.backends.base.job import flat, opened_bytes
from pipeline.backends.coreml.graph import Evaluator, channels_first
from pipeline.backends.coreml.inspect import Layer, array_type, as_read, layers_of
from pipeline.backends.coreml.mil import Program
from pipeline.core.errors import PipelineError

_GREY = ("GRAYSCALE", "GRAYSCALE_FLOAT16")


def read(file: Path, shapes: Shapes) -> Anatomy:
    """See `backends.base.anatomy.Reader`."""
    program = _program(file)
    inputs = tuple(_port(one) for one in program.spec.description.input)
    with_shapes(inputs, shapes, file)
    counts = Counter(op.kind for op in program.ops)
    quantized = counts["constexpr_affine_dequantize"] + counts["constexpr_blockwise_shift_scale"]
    return Anatomy(
        format=f"Core ML program, opset {program.opset}",
        inputs=inputs,
        outputs=tuple(_port(one) for one in program.spec.description.output),
        parameters=program.parameters(),
        size_bytes=opened_bytes(file),
        operators=dict(counts.most_common()),
        layers=tuple(_found(layer) for layer in layers_of(program)),
        why_not_run="Core ML, which runs on Apple's systems alone, is not asked",
        notes=("weights are compressed in other ways than to integers",)
        if quantized < sum(n for kind, n in counts.items() if kind.startswith("constexpr_"))
        else (),
    )


def trace(file: Path, inputs: Arrays) -> Trace:
    """See `backends.base.anatomy.Reader`. By torch, operator by operator, on any machine."""
    program = _program(file)
    if len(inputs) != 1:
        raise PipelineError(f"it has {len(inputs)} inputs; one is supported", where=str(file))
    ((name, values),) = inputs.items()
    description = next(one for one in program.spec.description.input if one.name == name)
    is_image = description.type.WhichOneof("Type") == "imageType"
    given = channels_first(values) if is_image else np.asarray(values, np.float32)
    layers = [layer.name for layer in layers_of(program)]
    read_as = [as_read(program, layer) for layer in layers]
    try:
        parts = list(Evaluator(program).each(given, (*read_as, *program.outputs)))
    except (ValueError, RuntimeError) as error:
        raise PipelineError(f"torch cannot evaluate it: {error}", where=str(file)) from error
    joined = {one: np.concatenate([part[one] for part in parts]) for one in parts[0]}
    return Trace(
        tuple(TracedLayer(la, flat(joined[one])) for la, one in zip(layers, read_as, strict=True)),
        {one: joined[one] for one in program.outputs},
    )


def _program(file: Path) -> Program:
    try:
        return Program(file)
    except ValueError as error:
        raise PipelineError(str(error), where=str(file)) from None


def _port(feature: Any) -> Port:
    """An image as its pixels, a multi-array as it is."""
    kind = feature.type.WhichOneof("Type")
    if kind == "imageType":
        image = feature.type.imageType
        colour = image.ColorSpace.Name(image.colorSpace)
        channels = 1 if colour in _GREY else 3
        dtype = "float16" if colour == "GRAYSCALE_FLOAT16" else "uint8"
        return Port(feature.name, dtype, (1, image.height, image.width, channels), "NHWC")
    if kind != "multiArrayType":
        return Port(feature.name, str(kind).removesuffix("Type"), None)
    array = feature.type.multiArrayType
    flexible = array.WhichOneof("ShapeFlexibility") is not None
    shape = tuple("?" if flexible and size == 1 else int(size) for size in array.shape)
    return Port(feature.name, array_type(feature), shape, image_layout(shape))


def _found(layer: Layer) -> FoundLayer:
    precision = written(layer.activations, layer.weights)
    if layer.scales is not None and not layer.int8:  # only the weights are integers
        precision = written(layer.activations, layer.activations, layer.weights)
    scales = None if layer.scales is None else weight_scales(layer.scales, layer.channels)
    return FoundLayer(layer.name, layer.kind, layer.macs, precision, None, scales)
