"""What LiteRT executes: the layers of a graph, and the operators that XNNPACK takes of it."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.executed import ExecutedLayer, execution_report, matrix_macs
from pipeline.backends.base.job import LayerOutputs, flat
from pipeline.backends.base.records import ExecutionReport, Partitions
from pipeline.backends.tflite.run import open_interpreter

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
LAYERS = (*WEIGHTED, "BATCH_MATMUL")


def inspect(interpreter: Any) -> ExecutionReport:
    """The execution report of an open interpreter; layers are named by their output tensors."""
    # LiteRT has no public list of operators. This one holds the graph's own operators, then a
    # DELEGATE for each partition that XNNPACK has taken.
    nodes = interpreter._get_ops_details()
    graph = [node for node in nodes if node["op_name"] != "DELEGATE"]
    delegates = [node for node in nodes if node["op_name"] == "DELEGATE"]
    taken = set[int]().union(*(_inside(delegate, graph) for delegate in delegates))
    builtin = Counter(_kind(node) for i, node in enumerate(graph) if i not in taken)
    return execution_report(
        [_layer(interpreter, node) for node in graph if node["op_name"] in LAYERS],
        np.dtype(interpreter.get_input_details()[0]["dtype"]).name,
        np.dtype(interpreter.get_output_details()[0]["dtype"]).name,
        Partitions(delegated=len(delegates), builtin=dict(sorted(builtin.items()))),
    )


def layer_outputs(model: Path, images: NDArray[np.uint8]) -> LayerOutputs:
    """`Compiler.layer_outputs` of a .tflite file. Layers are named by their position, as the
    names in a float file and in its int8 file differ."""
    from ai_edge_litert.interpreter import OpResolverType

    interpreter = open_interpreter(
        str(model),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    ends = [
        node["outputs"][0] for node in interpreter._get_ops_details() if node["op_name"] in LAYERS
    ]
    pixels = interpreter.get_input_details()[0]["index"]
    found: list[list[NDArray[np.float32]]] = [[] for _ in ends]
    for i in range(len(images)):
        interpreter.set_tensor(pixels, images[i : i + 1])
        interpreter.invoke()
        for values, end in zip(found, ends, strict=True):
            values.append(_real(interpreter, end))
    return {str(i): flat(np.concatenate(values)) for i, values in enumerate(found)}


def _real(interpreter: Any, tensor: int, *, moved: bool = True) -> NDArray[np.float32]:
    """The dequantized values of a tensor; `moved`: channels first."""
    values: NDArray[np.float32] = interpreter.get_tensor(tensor).astype(np.float32)
    scale, zero_point = interpreter._get_tensor_details(tensor, 0)["quantization"]
    if scale:
        values = (values - np.float32(zero_point)) * np.float32(scale)
    return np.moveaxis(values, -1, 1) if moved and values.ndim > 1 else values


def _layer(interpreter: Any, node: dict[str, Any]) -> ExecutedLayer:
    left, right, output = (
        interpreter._get_tensor_details(tensor, 0)
        for tensor in (*node["inputs"][:2], node["outputs"][0])
    )
    int8 = node["operand_types"][:2] == [np.int8, np.int8]
    shape, per_channel = output["shape"].tolist(), None
    if node["op_name"] in WEIGHTED:
        # Kernels are [O, H, W, I], depthwise [1, H, W, O], matrices [O, I]: each output channel
        # has an equal share of the elements.
        macs = math.prod(shape) * math.prod(right["shape"].tolist()) // shape[-1]
        if right["dtype"] == np.int8:
            per_channel = len(right["quantization_parameters"]["scales"]) == shape[-1]
    else:
        macs = matrix_macs(left["shape"].tolist(), shape)
    return ExecutedLayer(output["name"], macs, int8, per_channel)


def _kind(node: dict[str, Any]) -> str:
    types = node["operand_types"]
    return f"{node['op_name']} {np.dtype(types[0])}" if types else str(node["op_name"])


def _inside(partition: dict[str, Any], graph: list[dict[str, Any]]) -> set[int]:
    """Operators of `graph` that a delegate replaces: those between its inputs and outputs."""
    producer = {tensor: i for i, node in enumerate(graph) for tensor in node["outputs"]}
    given = set(partition["inputs"])
    found = set[int]()
    tensors = list(partition["outputs"])
    while tensors:
        tensor = tensors.pop()
        if tensor in given or tensor not in producer or producer[tensor] in found:
            continue
        found.add(producer[tensor])
        tensors += list(graph[producer[tensor]]["inputs"])
    return found
