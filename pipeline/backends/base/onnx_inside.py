"""Layer outputs and logits for float input of ONNX models, computed by ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.backends.base.job import Compiler, FloatRunner, Job, LayerOutputs, flat
from pipeline.backends.base.qdq import LAYERS, RANGES, find_front
from pipeline.core.errors import PipelineError
from pipeline.export.session import open_session

_FOLLOWED = ("Relu", "Clip", "QuantizeLinear", "DequantizeLinear")


class OnnxCompiler(Compiler):
    """A compiler whose artifacts are ONNX files, or have one of the same name beside them."""

    ranges = RANGES
    int8_kernels: ClassVar[bool] = True
    """See `open_session`."""

    def in_float(self, job: Job, folder: Path) -> Path:  # noqa: ARG002 - it exists already
        return job.onnx

    def layer_outputs(self, model: Path, images: NDArray[np.uint8]) -> LayerOutputs:
        return layer_outputs(model.with_suffix(".onnx"), images)

    def float_fed(self, model: Path) -> FloatRunner:
        return float_fed(model.with_suffix(".onnx"), int8_kernels=self.int8_kernels)


def layer_outputs(file: Path, images: NDArray[np.uint8]) -> LayerOutputs:
    """`Compiler.layer_outputs` of a float or Q/DQ model, without the graph optimizer.

    Each Q/DQ pair is computed as a rounding.
    """
    model = onnx.load(file)
    layers = [node for node in model.graph.node if node.op_type in LAYERS]
    ends = [_as_read(model, node.output[0]) for node in layers]
    values = tensor_values(model, ends, np.ascontiguousarray(images))
    return {node.name: flat(values[end]) for node, end in zip(layers, ends, strict=True)}


def tensor_values(
    model: onnx.ModelProto, names: Sequence[str], images: NDArray[np.uint8]
) -> dict[str, NDArray[Any]]:
    """The tensors `names` of a model for raw pixels `images`, without the graph optimizer."""
    wanted = list(dict.fromkeys(names))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    content, threads = probe.SerializeToString(), os.cpu_count() or 1
    values = open_session(content, threads, level="DISABLE_ALL").run(wanted, {"image": images})
    return dict(zip(wanted, values, strict=True))


def _as_read(model: onnx.ModelProto, tensor: str) -> str:
    """The tensor that the next layer reads in place of `tensor`: behind a ReLU, and rounded."""
    while True:
        readers = [node for node in model.graph.node if tensor in node.input]
        if len(readers) != 1 or readers[0].op_type not in _FOLLOWED:
            return tensor
        tensor = readers[0].output[0]


def float_fed(file: Path, *, int8_kernels: bool = True) -> FloatRunner:
    """`Compiler.float_fed` of a Q/DQ model that casts its pixels or takes them as quantized.

    Args:
        file: the model.
        int8_kernels: see `open_session`.

    Raises:
        PipelineError: for a graph that begins in another way.
    """
    model = onnx.load(file)
    graph = model.graph
    (first,) = (node for node in graph.node if "image" in node.input)
    if first.op_type == "Transpose":  # of bytes, which stand for their quantized values
        tensor, removed = first.output[0], [first.name]
        reader = next(node for node in graph.node if tensor in node.input)
        if reader.op_type != "DequantizeLinear":
            raise PipelineError("reads its pixels in an unknown way", where=str(file))
        quantize = onnx.helper.make_node(
            "QuantizeLinear", ["normalised", *reader.input[1:]], [tensor], name="quantize_floats"
        )
        graph.node.insert(0, quantize)
    else:
        front = find_front(model)
        removed = list(front.nodes)
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == front.tensor:
                    node.input[i] = "normalised"
    for node in [node for node in graph.node if node.name in removed]:
        graph.node.remove(node)
    batch, height, width, channels = graph.input[0].type.tensor_type.shape.dim
    sides = [dim.dim_value for dim in (channels, height, width)]
    floats = onnx.helper.make_tensor_value_info(
        "normalised", onnx.TensorProto.FLOAT, [batch.dim_param, *sides]
    )
    del graph.input[:]
    graph.input.append(floats)
    session = open_session(model.SerializeToString(), threads=1, int8_kernels=int8_kernels)

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        logits: NDArray[np.float32]
        (logits,) = session.run(["logits"], {"normalised": images})
        return logits

    return run
