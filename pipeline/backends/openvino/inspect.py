"""What OpenVINO executes of a model: its conv and linear layers and their kernels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.backends.base.executed import ExecutedLayer, execution_report, matrix_macs
from pipeline.backends.base.records import ExecutionReport
from pipeline.backends.openvino.run import compile_model, read

if TYPE_CHECKING:
    import openvino

LAYERS = ("Convolution", "GroupConvolution", "MatMul")
"""Types of a network's nodes that are conv and linear layers."""
_KERNELS = ("Convolution", "FullyConnected", "MatMul")
_INT8 = ("i8", "u8")


def conv_and_linear(network: openvino.Model) -> list[openvino.Node]:
    """The conv and linear layers of a network, in order of execution."""
    return [node for node in network.get_ordered_ops() if node.get_type_name() in LAYERS]


def readers(output: openvino.Output) -> list[openvino.Node]:
    """Nodes that read the values of `output`, not its shape alone."""
    nodes = [target.get_node() for target in output.get_target_inputs()]
    return [node for node in nodes if node.get_type_name() != "ShapeOf"]


def inspect(path: Path) -> ExecutionReport:
    """The execution report of an .xml file, by the precisions in the runtime's graph for one image.

    That graph fuses and reorders layers and moves scales away from weights, so shapes and scales
    are taken from the model. A layer that the graph does not mention counts as float.
    """
    model = read(str(path))
    compiled = compile_model(model, threads=1, batch=1)  # from here on `model` is of batch 1, too
    precisions: dict[str, str] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        if info["layerType"] in _KERNELS and not info["primitiveType"].startswith("unknown"):
            for name in info["originalLayersNames"].split(","):
                precisions[name.split("/Dequantization")[0]] = info["runtimePrecision"]
    return execution_report(
        (_layer(node, precisions) for node in conv_and_linear(model)),
        compiled.input().get_element_type().to_dtype().name,
        compiled.output().get_element_type().to_dtype().name,
    )


def _layer(node: openvino.Node, precisions: dict[str, str]) -> ExecutedLayer:
    """A conv or linear layer of a model, by the precision of the kernel that contains it."""
    name, output = node.get_friendly_name(), tuple(node.output(0).get_shape())
    # The kernel of a layer that is fused with its bias may mention the bias alone.
    names = [name, *(reader.get_friendly_name() for reader in readers(node.output(0)))]
    found = next((precisions[name] for name in names if name in precisions), "unknown")
    if node.get_type_name() == "MatMul":
        channels, macs = output[-1], matrix_macs(tuple(node.input(0).get_shape()), output)
    else:
        channels, weights = output[1], math.prod(node.input(1).get_shape())
        macs = math.prod(output[2:]) * weights
    scales = _weight_scales(node)
    return ExecutedLayer(name, macs, found in _INT8, None if scales is None else scales == channels)


def _weight_scales(node: openvino.Node) -> int | None:
    """How many scales the int8 weights of a layer have; None without such weights."""
    scaled = node.input_value(1).get_node()
    if scaled.get_type_name() != "Multiply":
        return None
    weights = scaled.input_value(0).get_node()
    while weights.get_type_name() in ("Convert", "Subtract"):
        weights = weights.input_value(0).get_node()
    int8 = weights.get_type_name() == "Constant" and weights.get_element_type().to_string() in _INT8
    return math.prod(scaled.input(1).get_shape()) if int8 else None
