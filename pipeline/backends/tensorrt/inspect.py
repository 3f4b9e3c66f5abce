"""What TensorRT executes of a graph: the network that NVIDIA's parser makes of it."""

from __future__ import annotations

import math
from typing import Any

from pipeline.backends.base.executed import ExecutedLayer, execution_report, matrix_macs
from pipeline.backends.base.records import ExecutionReport

_LAYERS = ("CONVOLUTION", "MATRIX_MULTIPLY")
_TYPES = {"FLOAT": "float32", "HALF": "float16"}


def inspect(trt: Any, network: Any) -> ExecutionReport:
    """The execution report of a parsed network.

    A layer is in int8 where both operands are outputs of dequantizing layers, its weights also
    behind a reshape.

    Args:
        trt: TensorRT's module.
        network: an `INetworkDefinition` of it.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    dequantizers = {
        layer.get_output(0).name: layer for layer in layers if layer.type.name == "DEQUANTIZE"
    }
    for layer in layers:
        # The parser gives the weights of a linear layer a leading 1 for each axis of its input.
        given = layer.get_input(0) if layer.type.name == "SHUFFLE" else None
        if given is not None and given.name in dequantizers and -1 not in given.shape:
            dequantizers[layer.get_output(0).name] = dequantizers[given.name]
    ends = network.get_input(0), network.get_output(0)
    return execution_report(
        [_layer(trt, layer, dequantizers) for layer in layers if layer.type.name in _LAYERS],
        *(_TYPES.get(end.dtype.name, end.dtype.name.lower()) for end in ends),
    )


def _layer(trt: Any, layer: Any, dequantizers: dict[str, Any]) -> ExecutedLayer:
    """A conv or linear layer for one image: the batch dimension of each shape is -1."""
    output = [abs(size) for size in layer.get_output(0).shape]
    operands = [layer.get_input(i) for i in range(layer.num_inputs)]
    sources = [dequantizers.get(operand.name) for operand in operands[:2] if operand is not None]
    if layer.type.name == "MATRIX_MULTIPLY":
        channels, macs = output[-1], matrix_macs([abs(size) for size in operands[0].shape], output)
    else:
        layer.__class__ = trt.IConvolutionLayer  # else its own attributes are hidden
        weights = math.prod(operands[1].shape) if len(operands) > 1 else layer.kernel.size
        channels, macs = layer.num_output_maps, math.prod(output[2:]) * weights
    per_channel = None
    if len(sources) > 1 and sources[1] and -1 not in sources[1].get_input(0).shape:  # weights
        per_channel = math.prod(sources[1].get_input(1).shape) == channels
    return ExecutedLayer(layer.name, macs, len(sources) > 1 and all(sources), per_channel)
