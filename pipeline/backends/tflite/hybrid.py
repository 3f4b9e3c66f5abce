"""Which of two ways LiteRT computes a layer of float activations and integer weights."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from pipeline.backends.tflite.convert import quiet
from pipeline.backends.tflite.run import open_interpreter

FLOAT_ERROR = 2e-5
"""Largest relative difference of sums of floats in another order. Activations that are quantized
to 8 bits differ by more than a hundred times as much."""


def computes_in_float(model: Any, operator: Any, sizes: dict[int, tuple[int, ...]]) -> bool | None:
    """Whether LiteRT multiplies a layer's dequantized weights, in place of integers.

    XNNPACK quantizes activations in some such layers and not in others, and no interface tells it.
    The layer is cut out, runs on a seeded input, and is compared with the same layer whose weights
    were dequantized beforehand.

    Args:
        model: as objects of its schema.
        operator: of its first graph, with float activations and integer weights.
        sizes: shapes of that graph's tensors.

    Returns:
        None where the layer does not run by itself, or has weights of another kind.
    """
    shape = sizes[operator.inputs[0]]
    pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    try:
        as_it_is, in_float = (_run(_cut_out(model, operator, to), pixels) for to in (False, True))
    except (ValueError, RuntimeError):
        return None
    largest = np.abs(in_float).max()
    return bool(np.abs(as_it_is - in_float).max() <= FLOAT_ERROR * largest)


def _cut_out(whole: Any, operator: Any, in_float: bool) -> bytes:
    """A model of one operator of another; `in_float`: with its weights dequantized."""
    from ai_edge_litert.schema_py_generated import QuantizationParametersT, TensorType
    from ai_edge_litert.tools import flatbuffer_utils

    model, graph = copy.copy(whole), copy.copy(whole.subgraphs[0])
    graph.operators, graph.tensors = [operator], [copy.copy(one) for one in graph.tensors]
    graph.inputs, graph.outputs = [operator.inputs[0]], [operator.outputs[0]]
    model.subgraphs, model.signatureDefs, model.metadata = [graph], None, None
    model.buffers = [copy.copy(one) for one in whole.buffers]
    weight = graph.tensors[operator.inputs[1]]
    if in_float:
        values = _dequantized(weight, model.buffers[weight.buffer].data)
        model.buffers.append(copy.copy(model.buffers[0]))
        model.buffers[-1].data = values.view(np.uint8).reshape(-1)
        weight.buffer, weight.type = len(model.buffers) - 1, TensorType.FLOAT32
        weight.quantization = QuantizationParametersT()
    used = {graph.tensors[i].buffer for i in operator.inputs if i >= 0}
    for number, buffer in enumerate(model.buffers):
        data = buffer.data if number in used else None
        buffer.data = None if data is None else np.frombuffer(bytes(data), np.uint8)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _dequantized(weight: Any, data: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The real values of weights of 8 or 4 bits, per tensor or per channel."""
    from ai_edge_litert.schema_py_generated import TensorType

    raw = np.frombuffer(bytes(data), np.int8)
    if weight.type == TensorType.INT4:  # two in a byte, the first in its low half
        raw = np.stack([np.left_shift(raw, 4) >> 4, raw >> 4], axis=1).reshape(-1)
    size = int(np.prod(weight.shape))
    values = raw[:size].reshape(weight.shape).astype(np.float32)
    scales = np.asarray(weight.quantization.scale, np.float32)
    if len(scales) > 1:
        shape = [1] * values.ndim
        shape[weight.quantization.quantizedDimension] = len(scales)
        scales = scales.reshape(shape)
    return np.ascontiguousarray(values * scales)


def _run(content: bytes, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with quiet():
        interpreter = open_interpreter(content)
    given = interpreter.get_input_details()[0]
    interpreter.set_tensor(given["index"], pixels)
    interpreter.invoke()
    output: np.ndarray[Any, Any] = interpreter.get_tensor(
        interpreter.get_output_details()[0]["index"]
    )
    return output
