"""What the graph of an ONNX file says about its conv and linear layers and their precision."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

from pipeline.backends.base.anatomy import (
    DYNAMIC,
    INT8,
    UNKNOWN,
    product_macs,
    weight_scales,
    written,
)

FLOAT = ("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul",
         "FusedMatMul", "Einsum", "DeformConv")  # fmt: skip
RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
_OPERANDS = {
    "QLinearConv": (0, 3, 4),
    "QLinearConvTranspose": (0, 3, 4),
    "QGemm": (0, 3, 4),
    "QLinearMatMul": (0, 3, 4),
    "ConvInteger": (0, 1, None),
    "MatMulInteger": (0, 1, None),
    "MatMulIntegerToFloat": (0, 1, 3),
    "DynamicQuantizeMatMul": (0, 1, 2),
    "MatMulNBits": (0, 1, 2),
    "Attention": (0, 1, None),
    "QAttention": (0, 1, 4),
}
"""Which inputs of an operator are its activations, its weights and the scales of these."""
LAYERS = (*FLOAT, *RECURRENT, *_OPERANDS)
FOLLOWED = ("Relu", "Clip", "BatchNormalization", "QuantizeLinear", "DequantizeLinear", "Cast")
"""Operators that compute nothing but what runtimes fuse into the layer before them."""
_MOVING = ("Transpose", "Reshape", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Identity")


@dataclass(frozen=True)
class Constant:
    """A constant tensor of a graph."""

    dtype: str
    dims: tuple[int, ...]


class Graph:
    """A graph of an ONNX model with what is asked of it: constants, makers, readers."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.nodes = list(self.graph.node)
        self.constants = dict(_constants(self.graph))
        self.makers = {end: node for node in self.nodes for end in node.output if end}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for tensor in filter(None, node.input):
                self.readers.setdefault(tensor, []).append(node)
        values = (*self.graph.input, *self.graph.output, *self.graph.value_info)
        self.types = {v.name: _dtype(v.type.tensor_type.elem_type) for v in values}

    def layers(self) -> list[onnx.NodeProto]:
        """The conv, linear and recurrent layers outside of branches and loops."""
        return [node for node in self.nodes if is_layer(node)]

    def dtype(self, tensor: str) -> str:
        """NumPy's name of a tensor's type; `unknown` where the file does not say it."""
        if tensor in self.constants:
            return self.constants[tensor].dtype
        maker = self.makers.get(tensor)
        if maker is not None and maker.op_type == "Cast":
            return _dtype(attribute(maker, "to", 0))
        if maker is not None and maker.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
            zero = maker.input[2] if len(maker.input) > 2 else ""
            return self.constants[zero].dtype if zero in self.constants else "uint8"
        if (known := self.types.get(tensor, UNKNOWN)) != UNKNOWN or maker is None:
            return known
        return self.dtype(maker.input[0]) if maker.input and maker.input[0] else UNKNOWN

    def dequantized(self, tensor: str) -> tuple[str, onnx.NodeProto] | None:
        """Type and dequantizing node of a tensor that comes from integers."""
        maker = self.makers.get(tensor)
        while maker is not None and maker.op_type in ("Transpose", "Reshape", "Cast", "Identity"):
            maker = self.makers.get(maker.input[0])
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        return self.dtype(maker.input[0]), maker

    def precision(self, node: onnx.NodeProto, *, trust_pairs: bool) -> str:
        """Of a layer's products.

        Args:
            node: the layer.
            trust_pairs: whether a float operator between Q/DQ pairs is one of int8, as files mean
                it. In the graph that a session runs it is one of floats.
        """
        if node.op_type in _OPERANDS:
            return self._integer(node)
        if node.op_type == "DynamicQuantizeLSTM":
            return DYNAMIC
        left, right = (self.dequantized(tensor) for tensor in node.input[:2])
        stored = self._stored(node.input[1])
        if left is None or right is None or not trust_pairs:
            activations = self.dtype(node.input[0])
            narrow = right[0] if right is not None and left is None else stored
            return written(activations, activations, narrow)
        return written(left[0], right[0])

    def scales(self, node: onnx.NodeProto) -> str | None:
        """`FoundLayer.scales` of a layer."""
        if node.op_type in ("MatMulNBits",):
            return "per block"
        if node.op_type in _OPERANDS:
            _, weight, scale = _OPERANDS[node.op_type]
            if node.input[weight] not in self.constants:
                return None
            tensor = node.input[scale] if scale is not None else self._scale_behind(node)
            known = self.constants.get(tensor)
            return weight_scales(math.prod(known.dims), _channels(node, self)) if known else None
        found = self.dequantized(node.input[1])
        if found is None or self._rounded(found[1]) not in self.constants:
            return None
        known = self.constants.get(found[1].input[1])
        if known is None:
            return None
        blocks = bool(attribute(found[1], "block_size", 0))
        return weight_scales(math.prod(known.dims), _channels(node, self), blocks=blocks)

    def end(self, tensor: str) -> str:
        """The tensor that the next layer reads in place of `tensor`, an output of a layer.

        Behind what runtimes fuse: activations, rounding, a bias, and scales of integer sums.
        """
        while True:
            readers = self.readers.get(tensor, [])
            if len(readers) != 1 or not self._is_fused(readers[0], tensor):
                return tensor
            tensor = readers[0].output[0]

    def _is_fused(self, node: onnx.NodeProto, tensor: str) -> bool:
        if node.op_type in FOLLOWED:
            return True
        if node.op_type not in ("Add", "Mul") or len(node.input) != 2:
            return False
        (other,) = [name for name in node.input if name != tensor] or [tensor]
        maker = self.makers.get(other)
        of_scales = maker is not None and all(
            name in self.constants or name.endswith("_scale") for name in maker.input
        )
        return other in self.constants or (other != tensor and of_scales)

    def _integer(self, node: onnx.NodeProto) -> str:
        """The precision of a layer that only a quantizer or an optimizer writes."""
        if node.op_type == "MatMulNBits":
            bits = attribute(node, "bits", 4)
            dynamic = attribute(node, "accuracy_level", 0) == 4
            return f"{DYNAMIC if dynamic else self.dtype(node.input[0])}, int{bits} weights"
        if node.op_type == "DynamicQuantizeMatMul":
            return DYNAMIC
        if node.op_type == "Attention":
            return self.dtype(node.input[0])
        if node.op_type in ("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"):
            maker = self.makers.get(node.input[0])
            while maker is not None and maker.op_type in _MOVING:
                maker = self.makers.get(maker.input[0])
            if maker is not None and maker.op_type == "DynamicQuantizeLinear":
                return DYNAMIC
        return INT8

    def _rounded(self, node: onnx.NodeProto) -> str:
        """What a DequantizeLinear stands for: its input, or the floats that are rounded to it."""
        maker = self.makers.get(node.input[0])
        if maker is None or maker.op_type != "QuantizeLinear":
            return str(node.input[0])
        return str(maker.input[0])

    def _stored(self, tensor: str) -> str | None:
        """The narrower float type that weights are cast from."""
        maker = self.makers.get(tensor)
        if maker is not None and maker.op_type == "Cast" and maker.input[0] in self.constants:
            stored = self.constants[maker.input[0]].dtype
            return stored if stored in ("float16", "bfloat16") else None
        return None

    def _scale_behind(self, node: onnx.NodeProto) -> str:
        """The scale of the weights of ConvInteger or MatMulInteger: it is multiplied later."""
        weight = node.input[1].removesuffix("_quantized")
        return f"{weight}_scale"


def is_layer(node: onnx.NodeProto) -> bool:
    """Whether a node is a convolution, a matrix product or a recurrent layer."""
    return node.op_type in LAYERS and len(node.input) > 1


def macs(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Multiply-accumulates of a layer for tensors of these shapes; None where one is unknown."""
    left, output = shapes.get(node.input[0]), shapes.get(node.output[0])
    weight = shapes.get(node.input[_OPERANDS.get(node.op_type, (0, 1, None))[1]])
    if node.op_type in RECURRENT:
        recurrent = shapes.get(node.input[2])
        if left is None or weight is None or recurrent is None:
            return None
        return left[0] * left[1] * (math.prod(weight) + math.prod(recurrent))
    if left is None or output is None or weight is None or node.op_type in _NOT_COUNTED:
        return None
    if "Transpose" in node.op_type:
        return math.prod((left[0], *left[2:])) * math.prod(weight)
    if "Conv" in node.op_type:
        return product_macs(output, math.prod(weight[1:]))
    if node.op_type == "MatMulNBits":
        return product_macs(output, attribute(node, "K", 0) or None)
    if len(left) < 2 or not output:
        return product_macs(output, left[-1] if left else None)
    rows = left[-2] * left[-1]
    inner = rows // output[-2] if len(output) > 1 and len(weight) > 1 else left[-1]
    return product_macs(output, inner)


_NOT_COUNTED = ("Einsum", "Attention", "QAttention", "DeformConv")


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of an attribute of a node."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def inner_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graphs of branches and loops inside of a graph, at any depth."""
    for node in graph.node:
        for entry in node.attribute:
            for inner in (entry.g, *entry.graphs):
                if inner.node:
                    yield inner
                    yield from inner_graphs(inner)


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each kind a model has, inside of branches, too; the most frequent first."""
    counts: Counter[str] = Counter()
    for graph in (model.graph, *inner_graphs(model.graph)):
        for node in graph.node:
            if node.op_type == "Constant":
                continue
            counts[node.op_type if node.domain in ("", "ai.onnx") else
                   f"{node.domain}.{node.op_type}"] += 1  # fmt: skip
    return dict(counts.most_common())


def parameters(model: onnx.ModelProto) -> int:
    """Elements of constants: no indices, and no scales and zero points that a quantizer adds."""
    total = 0
    for graph in (model.graph, *inner_graphs(model.graph)):
        known = dict(_constants(graph))
        for node in graph.node:
            aside = _ASIDE.get(node.op_type, ())
            for name in [name for i, name in enumerate(node.input) if i in aside]:
                known.pop(name, None)
            if node.op_type == "MatMulNBits" and known.pop(node.input[1], None):
                total += attribute(node, "K", 0) * attribute(node, "N", 0)
        numbers = [c for c in known.values() if c.dtype not in ("int64", "bool", "string")]
        total += sum(math.prod(constant.dims) for constant in numbers)
    return total


_ASIDE = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "DynamicQuantizeMatMul": (2, 3),
    "MatMulNBits": (2, 3),
}
"""Inputs with scales and zero points."""


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, Constant]]:
    for tensor in graph.initializer:
        yield tensor.name, Constant(_dtype(tensor.data_type), tuple(tensor.dims))
    for sparse in graph.sparse_initializer:
        yield sparse.values.name, Constant(_dtype(sparse.values.data_type), tuple(sparse.dims))
    for node in graph.node:
        if node.op_type == "Constant":
            for entry in node.attribute:
                if entry.name == "value":
                    yield node.output[0], Constant(_dtype(entry.t.data_type), tuple(entry.t.dims))


def _channels(node: onnx.NodeProto, graph: Graph) -> int:
    """The output channels of a layer whose weights are constant; 1 where that is not known."""
    weight = node.input[_OPERANDS.get(node.op_type, (0, 1, None))[1]]
    if (found := graph.dequantized(weight)) is not None:
        weight = graph._rounded(found[1])
    known = graph.constants.get(weight)
    if known is None or not known.dims:
        return 1
    if "Conv" in node.op_type or attribute(node, "transB", 0):
        return known.dims[0]
    return known.dims[-1]


def _dtype(number: int) -> str:
    if not number:
        return UNKNOWN
    name = str(onnx.TensorProto.DataType.Name(number)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
