"""What ExecuTorch executes: XNNPACK's graphs, and the operators that are left to other kernels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from executorch.exir.scalar_type import ScalarType
from numpy.typing import NDArray

from pipeline.backends.base.executed import ExecutedLayer, execution_report, matrix_macs
from pipeline.backends.base.job import LayerOutputs, flat
from pipeline.backends.base.records import ExecutionReport, Partitions
from pipeline.backends.executorch.program import Graph, Program, Value
from pipeline.backends.executorch.run import load_method

WEIGHTED = ("Conv2d", "DepthwiseConv2d", "FullyConnected")
LAYERS = (*WEIGHTED, "BatchMatrixMultiply")
ATTENTION = "ScaledDotProductAttention"
"""Two matrix products in one operator, in float."""
PORTABLE = ("convolution", "linear", "addmm", "mm", "bmm")
"""Of ExecuTorch's own kernels, all of which compute in float."""

_MOVING = ("Convert", "Copy", "StaticReshape", "StaticSlice", "StaticTranspose")

_TYPES = {
    ScalarType.BYTE: "uint8",
    ScalarType.CHAR: "int8",
    ScalarType.INT: "int32",
    ScalarType.LONG: "int64",
    ScalarType.FLOAT: "float32",
}


def inspect(content: bytes) -> ExecutionReport:
    """The execution report of a .pte file; layers are named by kind and place, from 0."""
    program = Program(content)
    builtin = Counter(
        f"{name} {dtype_of(program, arguments[0])}"
        for name, graph, arguments in program.steps()
        if graph is None
    )
    delegated = sum(graph is not None for _, graph, _ in program.steps())
    return execution_report(
        [layer for _, _, layer in layers_of(program)],
        dtype_of(program, program.plan.inputs[0]),
        dtype_of(program, program.plan.outputs[0]),
        Partitions(delegated=delegated, builtin=dict(sorted(builtin.items()))),
    )


def in_float(content: bytes) -> dict[str, int]:
    """Operators of an int8 file that XNNPACK computes in float, by kind, without layers.

    What stands in front of the first rounding is the exact normalisation of pixels.
    """
    found: Counter[str] = Counter()
    for graph in Program(content).graphs:
        rounded = False
        for kind, node in graph.nodes():
            rounded |= kind == "Convert"
            if rounded and kind not in (*LAYERS, *_MOVING):
                found[kind] += graph.values[node.outputId].dtype == "fp32"
    return dict(sorted((+found).items()))


def layer_names(content: bytes) -> list[str]:
    """Names of all conv and linear layers, in order of execution."""
    return [layer.name for _, _, layer in layers_of(Program(content))]


def layer_outputs(content: bytes, images: NDArray[Any], step: int = 1) -> LayerOutputs:
    """`Compiler.layer_outputs` of a .pte file: XNNPACK's own tensors, given out, too.

    All are named by their position. Layers outside of XNNPACK, and those between two of its graphs,
    are left out.

    Args:
        content: of the file.
        images: what it takes, `step` samples a call.
        step: the batch that it was made for.
    """
    program = Program(content)
    found: dict[str, tuple[Value, int, bool]] = {}
    position = 0
    for call, (name, graph, arguments) in enumerate(list(program.steps())):
        if graph is None:
            position += name in PORTABLE
            continue
        for kind, node in graph.nodes():
            if kind not in LAYERS:
                continue
            value = _as_read(graph, node.outputId)
            place = len(program.plan.outputs)
            if not value.table.flags:
                program.add_output(call, value)
                found[str(position)] = (value, place, "Conv2d" in kind)
            elif arguments[value.table.externalId] == program.plan.outputs[0]:
                found[str(position)] = (value, 0, False)
            position += 1
    execute = load_method(program.content(), threads=1)
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in found}
    for i in range(0, len(images), step):
        outputs = execute(images[i : i + step])
        for name, (value, place, channels_last) in found.items():
            real = _real(value, outputs[place])
            parts[name].append(np.moveaxis(real, -1, 1) if channels_last else real)
    return {name: flat(np.concatenate(values)) for name, values in parts.items()}


def _as_read(graph: Graph, value: int) -> Value:
    """The value that the next layer reads in place of a layer's output: clamped, and rounded."""
    while True:
        readers = graph.readers(value)
        if len(readers) != 1 or readers[0][0] not in ("Clamp", "Convert"):
            return graph.values[value]
        following = readers[0][1].outputId
        if readers[0][0] == "Convert" and graph.values[following].scale is None:
            return graph.values[value]
        value = following


def _real(value: Value, output: NDArray[Any]) -> NDArray[np.float32]:
    """The dequantized values of a tensor."""
    floats: NDArray[np.float32] = output.astype(np.float32)
    if output.dtype == np.int8:
        floats = (floats - np.float32(value.zero_point)) * np.float32(value.scale)
    return floats


def layers_of(program: Program) -> Iterator[tuple[Graph | None, Any, ExecutedLayer]]:
    """Each layer with XNNPACK's graph and node, in order of execution; None for other kernels."""
    place = 0
    for name, graph, arguments in program.steps():
        if graph is not None:
            for kind, node in _of_kind(graph):
                yield graph, node, _delegated(graph, kind, node, place)
                place += 1
        elif name in PORTABLE:
            left, right = (program.sizes(arguments[i]) for i in _operands(name))
            output = program.sizes(arguments[-1])
            macs = math.prod(output) * math.prod(right) // right[0]
            if name in ("addmm", "mm", "bmm"):
                macs = matrix_macs(left, output)
            yield None, None, ExecutedLayer(f"{name} {place}", macs, False, None)
            place += 1


def _of_kind(graph: Graph) -> Iterator[tuple[str, Any]]:
    return ((kind, node) for kind, node in graph.nodes() if kind in (*LAYERS, ATTENTION))


def _operands(name: str) -> tuple[int, int]:
    return (1, 2) if name == "addmm" else (0, 1)


def _delegated(graph: Graph, kind: str, node: Any, place: int) -> ExecutedLayer:
    name = f"{kind} {place}"
    if kind == ATTENTION:
        query, key = graph.values[node.queryId], graph.values[node.keyId]
        return ExecutedLayer(name, 2 * math.prod(query.dims) * key.dims[-2], False, None)
    left, output = graph.values[node.input1Id], graph.values[node.outputId]
    weights = graph.values[node.filterId if kind in WEIGHTED else node.input2Id]
    int8 = left.dtype == "qint8" and weights.dtype in ("qint8", "qcint8")
    macs, per_channel = matrix_macs(left.dims, output.dims), None
    if kind in WEIGHTED:
        # Kernels are [O, H, W, I], depthwise [1, H, W, O], matrices [O, I]: each output channel
        # has an equal share of the elements.
        macs = math.prod(output.dims) * math.prod(weights.dims) // output.dims[-1]
        if weights.dtype in ("qint8", "qcint8"):
            per_channel = weights.dtype == "qcint8"
    return ExecutedLayer(name, macs, int8, per_channel)


def dtype_of(program: Program, index: int) -> str:
    """NumPy's name of a tensor's type; ExecuTorch's own for others, nothing for a scalar."""
    tensor = program.tensor(index)
    if tensor is None:
        return ""
    return str(_TYPES.get(tensor.scalar_type, tensor.scalar_type.name.lower()))
