"""Exported graphs whose batch axis is dynamic, and whose image has one reader all the same.

Quantizers replace what reads the pixels, and the checks of int8 feed that place with floats. A
second reader that only asks for the size of the batch stands in their way, on every runtime.
"""

from __future__ import annotations

import onnx
import torch

from pipeline.core.errors import PipelineError

_LAYERS = ("Conv", "Gemm", "MatMul")


def write_means(program: torch.export.ExportedProgram) -> None:
    """Write adaptive average pooling to one value as the mean that it is, in place.

    On channels-last tensors torch decomposes it into a mean and a change of strides, which ONNX has
    not: a dozen operators gather every value by an index that is computed from the batch size.
    """
    aten = torch.ops.aten
    for node in program.graph.nodes:
        if node.target is aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:
            node.target, node.args = aten.mean.dim, (node.args[0], [-2, -1], True)


def read_image_once(graph: onnx.GraphProto, arch: str) -> None:
    """Take the batch size from a tensor behind the first layer, in place of from the image.

    What stands behind an `Expand` to the batch size (a class token, a position encoding) needs it.

    Args:
        graph: is changed in place; its nodes are in topological order and its tensors have shapes.
        arch: its network, for the error.

    Raises:
        PipelineError: where the image has several readers all the same.
    """
    image = graph.input[0]
    for shape in [node for node in graph.node if node.op_type == "Shape"]:
        if shape.input[0] == image.name and (source := _of_same_batch(graph, shape)):
            shape.input[0] = source
            graph.node.remove(shape)
            place = next(i for i, node in enumerate(graph.node) if source in node.output)
            graph.node.insert(place + 1, shape)
    readers = [node.op_type for node in graph.node if image.name in node.input]
    if len(readers) != 1:
        raise PipelineError(
            f"its graph reads the image in {len(readers)} places ({', '.join(readers)}), which no "
            "backend can quantize",
            where=f"export of {arch}",
            fix="choose another student, or another `global_pool` in its `args`",
        )


def _of_same_batch(graph: onnx.GraphProto, shape: onnx.NodeProto) -> str | None:
    """The last tensor before the first use of `shape` that has the image's batch axis.

    None where it has no such tensor behind a layer, or where `shape` is not the batch size alone.
    """
    span = {entry.name: entry.i for entry in shape.attribute}
    if (span.get("start", 0), span.get("end")) != (0, 1):
        return None
    batches = {
        value.name: value.type.tensor_type.shape.dim[0].dim_param
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.shape.dim
    }
    found, behind_layer = None, False
    for node in graph.node:
        if shape.output[0] in node.input:
            break
        behind_layer |= node.op_type in _LAYERS
        if behind_layer and batches.get(node.output[0]) == batches[graph.input[0].name]:
            found = node.output[0]
    return found
