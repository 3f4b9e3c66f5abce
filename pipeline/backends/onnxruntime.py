"""ONNX Runtime on CPU: the exported model as it is, or quantized by its own quantizer."""

from __future__ import annotations

import importlib.metadata
import math
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from pipeline.backends.base import (
    Compiled,
    FloatRunner,
    Job,
    LayerOutputs,
    Product,
    Runner,
    matrix_macs,
    prove,
)
from pipeline.backends.onnx_inside import float_fed, layer_outputs
from pipeline.backends.onnx_session import new_session, open_session, session_options
from pipeline.backends.qdq import QUANTIZER, RANGES, Front, quantize
from pipeline.contracts import Proof

MODEL = "model.onnx"

_FLOAT = ("Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
_INT8 = {
    "QLinearConv": (3, 4),
    "QGemm": (3, 4),
    "QLinearMatMul": (3, 4),
    "MatMulIntegerToFloat": (1, 3),
}
"""Which inputs of an operator are its weights and their scales."""

_BLOCKED = "com.microsoft.nchwc"

_ALL_BITS = (
    "weights use all 8 bits on every build machine; `session.x64quantprecision` makes x86 "
    "processors without VNNI, whose 8-bit products overflow, take exact and slower kernels"
)
_FLOAT_LAYERS = (
    "open it with `disabled_optimizers=['WeightBiasQuantization']`, or ONNX Runtime rounds the "
    "layers that are kept in float, with one scale for all their channels"
)
_EXACT_INPUT = "pixels enter the first convolution unchanged, at scale 1/64 and zero point 128"


class OnnxRuntime:
    name: ClassVar[str] = "onnxruntime"
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")
    ranges: ClassVar[tuple[str, ...]] = RANGES
    bias_correction: ClassVar[bool] = False

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write `model.onnx`: fp32 byte for byte as exported, or int8 as Q/DQ."""
        file = folder / MODEL
        int8 = job.precision == "int8"
        notes: tuple[str, ...] = ()
        kept: tuple[str, ...] = ()
        if int8:
            made = quantize(job, "uint8")
            exact, kept = _feed_pixels(made.model, made.front), made.kept_float
            notes = (_ALL_BITS, _EXACT_INPUT) if exact else (_ALL_BITS,)
            notes += (_FLOAT_LAYERS,) if kept else ()
            onnx.save(made.model, file)
        else:
            shutil.copyfile(job.onnx, file)
        return Compiled(
            model_file=MODEL,
            quantizer=f"{QUANTIZER}, uint8 asymmetric activations" if int8 else None,
            proof=_inspect(file),
            notes=notes,
            kept_float=kept,
        )

    def load(self, model: Path, threads: int) -> Runner:
        return open_session(model, threads)

    def in_float(self, job: Job, folder: Path) -> Path:  # noqa: ARG002 - it exists already
        return job.onnx

    def layer_outputs(self, model: Path, images: NDArray[np.uint8]) -> LayerOutputs:
        return layer_outputs(model, images)

    def float_fed(self, model: Path) -> FloatRunner:
        return float_fed(model)

    def evaluator(self) -> str:
        return f"onnxruntime {importlib.metadata.version('onnxruntime')}"

    def unmeasurable(self) -> None:
        """It runs wherever this project does."""


def _inspect(file: Path) -> Proof:
    """The proof by the graph as this machine's session really runs it."""
    executed = _optimized(file, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    found = [node for node in executed.graph.node if node.op_type in (*_FLOAT, *_INT8)]
    blocked = [node for node in found if node.domain == _BLOCKED]
    # A blocked layout pads channels with zeros and names a convolution after its output in the
    # graph before this last step of optimisation, which has the true channels and names.
    before = _optimized(file, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
    makers = {node.output[0]: node for node in before.graph.node}
    unblocked = [makers[re.sub(r"_nchwc(_token_\d+)?$", "", node.name)] for node in blocked]
    products = _products(executed, [node for node in found if node.domain != _BLOCKED])
    given, taken = (
        onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        for value in (*executed.graph.input, *executed.graph.output)
    )
    return prove([*products, *_products(before, unblocked)], given, taken)


def _optimized(file: Path, level: onnxruntime.GraphOptimizationLevel) -> onnx.ModelProto:
    """The graph that a session makes of `file`."""
    options = session_options(threads=1)
    options.graph_optimization_level = level
    with tempfile.TemporaryDirectory() as scratch:
        optimized = Path(scratch, "optimized.onnx")
        options.optimized_model_filepath = str(optimized)
        new_session(file, options)
        return onnx.load(optimized)


def _products(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> list[Product]:
    """`nodes` of an optimised graph as they compute one image."""
    inputs = [_INT8.get(node.op_type, (1, 0)) for node in nodes]
    weights = [node.input[i] for node, (i, _) in zip(nodes, inputs, strict=True)]
    shapes = _shapes(model, [*weights, *(t for n in nodes for t in (n.input[0], n.output[0]))])
    constants = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    products = []
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
        products.append(
            Product(
                name=re.sub(r"/\w+Fusion/?$", "", node.name),
                macs=macs,
                int8=int8,
                per_channel=constants[node.input[scale]] == channels if per_channel else None,
            )
        )
    return products


def _shapes(model: onnx.ModelProto, tensors: list[str]) -> dict[str, tuple[int, ...]]:
    """Shapes for one image, found by computing one: optimisation loses many of them."""
    (image,) = model.graph.input
    size = [1, *(d.dim_value for d in image.type.tensor_type.shape.dim[1:])]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes[image.name] = tuple(size)
    wanted = sorted(set(tensors) - set(shapes))
    if wanted:
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        del probe.graph.output[:]
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        options = session_options(threads=1)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = new_session(probe.SerializeToString(), options)
        values = session.run(wanted, {image.name: np.zeros(size, np.uint8)})
        shapes |= {name: value.shape for name, value in zip(wanted, values, strict=True)}
    return shapes


def _feed_pixels(model: onnx.ModelProto, front: Front) -> bool:
    """Put the raw pixels where their quantized normalised values stand: they are the same.

    x = round(((x - 128) / 64) / (1 / 64)) + 128, so casting, normalising and quantizing
    give way to a transposition of bytes. False, and nothing changed, for a graph that also
    uses the float values.
    """
    graph = model.graph
    removed = [node for node in graph.node if node.name in front.nodes]
    removed += [
        node
        for node in graph.node
        if front.tensor in node.input and node.op_type == "QuantizeLinear"
    ]
    users = Counter(name for node in graph.node for name in node.input)
    made = [node.output[0] for node in removed[:-1]]
    if len(removed) != len(front.nodes) + 1 or any(users[name] != 1 for name in made):
        return False
    pixels = onnx.helper.make_node(
        "Transpose", ["image"], [removed[-1].output[0]], name="pixels", perm=[0, 3, 1, 2]
    )
    for node in removed:
        graph.node.remove(node)
    graph.node.insert(0, pixels)
    return True
