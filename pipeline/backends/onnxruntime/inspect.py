"""What ONNX Runtime executes of a model: the graph that a session on this machine optimizes."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import onnx

from pipeline.backends.base.executed import ExecutedLayer, execution_report, matrix_macs
from pipeline.backends.base.onnx_inside import tensor_values
from pipeline.backends.base.records import ExecutionReport
from pipeline.core.files import temporary_folder
from pipeline.export.session import open_session

_FLOAT = ("Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
_INT8 = {
    "QLinearConv": (3, 4),
    "QGemm": (3, 4),
    "QLinearMatMul": (3, 4),
    "MatMulIntegerToFloat": (1, 3),
}
"""Which inputs of an operator are its weights and their scales."""

_BLOCKED = "com.microsoft.nchwc"
"""The domain of operators in ONNX Runtime's blocked memory layout."""


def inspect(file: Path) -> ExecutionReport:
    """The execution report of an ONNX file, from the graph that a session here really runs."""
    executed = _optimized(file, "ENABLE_ALL")
    found = [node for node in executed.graph.node if node.op_type in (*_FLOAT, *_INT8)]
    blocked = [node for node in found if node.domain == _BLOCKED]
    # A blocked layout pads channels with zeros and renames convolutions after their outputs. The
    # graph before that last step of optimisation has the true channels and names.
    before = _optimized(file, "ENABLE_EXTENDED")
    makers = {node.output[0]: node for node in before.graph.node}
    names = [re.sub(r"_nchwc(_token_\d+)?$", "", node.name) for node in blocked]
    # A batch norm without a convolution before it becomes one, named OUTPUT_bn.
    norms = {f"{end}_bn" for end, node in makers.items() if node.op_type == "BatchNormalization"}
    unblocked = [makers[name] for name in names if name not in norms]
    layers = _layers(executed, [node for node in found if node.domain != _BLOCKED])
    given, taken = (
        onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        for value in (*executed.graph.input, *executed.graph.output)
    )
    return execution_report([*layers, *_layers(before, unblocked)], given, taken)


def _optimized(file: Path, level: str) -> onnx.ModelProto:
    """The graph that a session makes of `file`."""
    with temporary_folder() as scratch:
        optimized = scratch / "optimized.onnx"
        open_session(str(file), threads=1, optimized=str(optimized), level=level)
        return onnx.load(optimized)


def _layers(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> list[ExecutedLayer]:
    """The conv and linear layers `nodes` of an optimised graph, for one image."""
    inputs = [_INT8.get(node.op_type, (1, 0)) for node in nodes]
    weights = [node.input[i] for node, (i, _) in zip(nodes, inputs, strict=True)]
    shapes = _shapes(model, [*weights, *(t for n in nodes for t in (n.input[0], n.output[0]))])
    constants = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    layers = []
    for node, (_, scale), weight in zip(nodes, inputs, weights, strict=True):
        output, int8 = shapes[node.output[0]], node.op_type in _INT8
        if "Conv" in node.op_type:
            channels = shapes[weight][0]
            last = node.op_type == "NhwcFusedConv" or any(
                entry.name == "channels_last" and entry.i for entry in node.attribute
            )
            positions = output[1:-1] if last else output[2:]
            macs = math.prod(positions) * math.prod(shapes[weight])
        else:
            channels = output[-1]
            macs = matrix_macs(shapes[node.input[0]], output)
        per_channel = int8 and weight in constants
        layers.append(
            ExecutedLayer(
                name=re.sub(r"/\w+Fusion/?$", "", node.name),
                macs=macs,
                int8=int8,
                per_channel=constants[node.input[scale]] == channels if per_channel else None,
            )
        )
    return layers


def _shapes(model: onnx.ModelProto, tensors: list[str]) -> dict[str, tuple[int, ...]]:
    """Shapes for one image, found by computing one: the optimizer drops many of them."""
    (image,) = model.graph.input
    size = [1, *(d.dim_value for d in image.type.tensor_type.shape.dim[1:])]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes[image.name] = tuple(size)
    wanted = sorted(set(tensors) - set(shapes))
    if wanted:
        values = tensor_values(model, wanted, np.zeros(size, np.uint8))
        shapes |= {name: value.shape for name, value in values.items()}
    return shapes
