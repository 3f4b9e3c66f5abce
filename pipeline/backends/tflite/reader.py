"""Reads any .tflite file: what its graph says, and what LiteRT with XNNPACK makes of it."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backends.base.anatomy import (
    DYNAMIC,
    UNKNOWN,
    Anatomy,
    Arrays,
    FoundLayer,
    Port,
    Shapes,
    Trace,
    TracedLayer,
    image_layout,
    product_macs,
    weight_scales,
    with_shapes,
    written,
)
from pipeline.backends.base.executed import matrix_macs
from pipeline.backends.base.job import flat
from pipeline.backends.tflite import hybrid
from pipeline.backends.tflite.convert import quiet
from pipeline.backends.tflite.inspect import _inside, _kind, _real
from pipeline.backends.tflite.run import PACKAGES, _package, open_interpreter, versions
from pipeline.core.errors import PipelineError
from pipeline.core.text import first_line

WEIGHT = {
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "FULLY_CONNECTED": 1,
    "TRANSPOSE_CONV": 1,
    "CONV_3D": 1,
    "BATCH_MATMUL": 1,
    "SVDF": 1,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": 2,
    "LSTM": 2,
}
"""Kinds of layers, and which of their inputs are weights."""
_UNPACKING = ("DEQUANTIZE", "DENSIFY", "CAST")
"""Operators by which a file keeps weights in fewer bytes than they are computed from."""


def read(file: Path, shapes: Shapes) -> Anatomy:
    """See `backends.base.anatomy.Reader`."""
    graph = FileGraph(file)
    inputs = tuple(graph.port(i) for i in graph.graph.inputs)
    call = with_shapes(inputs, shapes, file)
    interpreter, why = _opened(file, call if shapes else {})
    sizes = {i: graph.shape(i) for i in range(len(graph.tensors))}
    if interpreter is not None:
        for details in interpreter.get_tensor_details():
            sizes[details["index"]] = tuple(map(int, details["shape"]))
    layers = tuple(
        _layer(graph, operator, sizes, ran=interpreter is not None)
        for operator in graph.graph.operators
        if graph.kind(operator) in WEIGHT
    )
    name, version = next(iter(versions().items()))
    return Anatomy(
        format=f"TensorFlow Lite, schema {graph.model.version}",
        inputs=inputs,
        outputs=tuple(graph.port(i) for i in graph.graph.outputs),
        parameters=graph.parameters(),
        size_bytes=file.stat().st_size,
        operators=graph.operators(),
        layers=layers,
        runtime=None if interpreter is None else f"{name} {version}",
        why_not_run=why,
        cut=None if interpreter is None else _cut(interpreter),
        notes=_notes(graph),
    )


def trace(file: Path, inputs: Arrays) -> Trace:
    """See `backends.base.anatomy.Reader`. By built-in kernels: a delegate hides its tensors."""
    from ai_edge_litert.interpreter import OpResolverType

    graph = FileGraph(file)
    interpreter, why = _opened(
        file, {name: values.shape for name, values in inputs.items()},
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )  # fmt: skip
    if interpreter is None:
        raise PipelineError(str(why), where=str(file))
    places = {details["name"]: details["index"] for details in interpreter.get_input_details()}
    try:
        for name, values in inputs.items():
            interpreter.set_tensor(places[name], values)
        interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        raise PipelineError(
            f"LiteRT cannot run it: {first_line(error)}", where=str(file)
        ) from error
    traced = []
    for operator in graph.graph.operators:
        if graph.kind(operator) in WEIGHT:
            end = operator.outputs[0]
            values = _real(interpreter, end)
            traced.append(TracedLayer(graph.name(end), flat(np.atleast_2d(values))))
    outputs = {graph.name(i): _real(interpreter, i, moved=False) for i in graph.graph.outputs}
    return Trace(tuple(traced), outputs)


class FileGraph:
    """The main graph of a .tflite file, as its schema has it."""

    def __init__(self, file: Path) -> None:
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.tools import flatbuffer_utils

        self.file, content = file, file.read_bytes()
        if content[4:8] != b"TFL3":
            raise PipelineError("is damaged or no .tflite file", where=str(file))
        try:
            self.model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
            self.graph = self.model.subgraphs[0]
            self.tensors = self.graph.tensors
            self._types: dict[int, str] = {
                v: k.lower() for k, v in vars(schema.TensorType).items() if k[0] != "_"
            }
            codes = {v: k for k, v in vars(schema.BuiltinOperator).items() if k[0] != "_"}
            self._kinds = [_kind_of(code, codes) for code in self.model.operatorCodes]
            for graph in self.model.subgraphs:  # what a damaged file lacks shows here
                graph.operators = [] if graph.operators is None else graph.operators
                assert all((tensor.name or b"").decode() is not None for tensor in graph.tensors)
                for operator in graph.operators:
                    tensors = [i for i in operator.inputs if i >= 0], operator.outputs
                    assert self.kind(operator) and all(graph.tensors[i] for t in tensors for i in t)
            self.makers = {end: one for one in self.graph.operators for end in one.outputs}
        except Exception as error:  # a flatbuffer with wrong offsets raises anything
            raise PipelineError("is damaged: its graph cannot be read", where=str(file)) from error

    def kind(self, operator: Any) -> str:
        """The name of an operator, of a custom one its own."""
        kind: str = self._kinds[operator.opcodeIndex]
        return kind

    def name(self, tensor: int) -> str:
        """The name of a tensor."""
        return _text(self.tensors[tensor].name)

    def dtype(self, tensor: int) -> str:
        """NumPy's name of the type of a tensor."""
        return self._types.get(self.tensors[tensor].type, UNKNOWN)

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The shape of a tensor, with 1 for sizes that are not fixed."""
        shape = self.tensors[tensor].shape
        return () if shape is None else tuple(map(int, shape))

    def constant(self, tensor: int) -> bool:
        """Whether the file holds the values of a tensor."""
        buffer = self.model.buffers[self.tensors[tensor].buffer]
        return buffer.data is not None or bool(getattr(buffer, "size", 0))

    def stored(self, tensor: int) -> int:
        """The tensor that a file stores of what may be unpacked to `tensor`."""
        while (maker := self.makers.get(tensor)) is not None and self.kind(maker) in _UNPACKING:
            tensor = maker.inputs[0]
        return tensor

    def scales(self, tensor: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Scales and zero points of a tensor, none for one without."""
        found = self.tensors[tensor].quantization
        if found is None or found.scale is None or len(found.scale) == 0:
            return (), ()
        scales = tuple(map(float, found.scale))
        zeros = () if found.zeroPoint is None else tuple(map(int, found.zeroPoint))
        return scales, zeros or (0,) * len(scales)

    def port(self, tensor: int) -> Port:
        """An input or output; a float one with the scale of an only reader that quantizes it."""
        signature, scales = self.tensors[tensor].shapeSignature, self.scales(tensor)
        shape: tuple[int | str, ...] = self.shape(tensor)
        if signature is not None and len(signature) == len(shape):
            shape = tuple("?" if d < 0 else int(d) for d in signature)
        dtype = quantized = self.dtype(tensor)
        at_once = [one for one in self.graph.operators if tensor in one.inputs]
        if len(at_once) == 1 and self.kind(at_once[0]) == "QUANTIZE" and not scales[0]:
            end = at_once[0].outputs[0]
            quantized, scales = self.dtype(end), self.scales(end)
        kind = quantized if scales[0] else None
        return Port(self.name(tensor), dtype, shape, image_layout(shape), kind, *scales)

    def operators(self) -> dict[str, int]:
        """How many operators of each kind all graphs have, the most frequent first."""
        graphs = self.model.subgraphs
        counts = Counter(self.kind(one) for graph in graphs for one in graph.operators)
        return dict(counts.most_common())

    def parameters(self) -> int:
        """Elements of the constants of all graphs that are no shapes or indices."""
        total, seen = 0, set[int]()
        for graph in self.model.subgraphs:
            reads = {(self.kind(one), i) for one in graph.operators for i in one.inputs}
            shapes = {i for kind, i in reads if kind not in WEIGHT}
            for number, tensor in enumerate(graph.tensors):
                kind = self._types.get(tensor.type, "")
                data = self.model.buffers[tensor.buffer].data
                index = kind in ("int32", "int64", "bool", "string") and number in shapes
                if data is None or len(data) == 0 or index or tensor.buffer in seen:
                    continue
                seen.add(tensor.buffer)
                total += math.prod(tensor.shape) if tensor.shape is not None else 1
        return total


def _kind_of(code: Any, names: dict[int, str]) -> str:
    """The name of a kind of operator. Files of before 2020 have its number in another field."""
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    name = names.get(number, f"operator {number}")
    return (_text(code.customCode) or name) if name == "CUSTOM" else name


def _opened(file: Path, call: Shapes, **options: Any) -> tuple[Any, str | None]:
    """An interpreter for inputs of the shapes `call`, or why there is none."""
    try:
        with quiet():
            if not call:
                return open_interpreter(str(file), **options), None
            module = importlib.import_module(PACKAGES[_package()])
            interpreter = module.Interpreter(model_path=str(file), num_threads=1, **options)
            for details in interpreter.get_input_details():
                if tuple(details["shape"]) != call.get(details["name"], tuple(details["shape"])):
                    interpreter.resize_tensor_input(details["index"], call[details["name"]])
            interpreter.allocate_tensors()
            return interpreter, None
    except (ValueError, RuntimeError, TypeError) as error:  # UnicodeDecodeError is a ValueError
        return None, f"LiteRT refuses it: {first_line(error)}"


def _layer(
    graph: FileGraph, operator: Any, sizes: dict[int, tuple[int, ...]], *, ran: bool
) -> FoundLayer:
    kind = graph.kind(operator)
    place = WEIGHT[kind]
    activations = operator.inputs[2 if kind == "TRANSPOSE_CONV" else 0]
    weight, output = operator.inputs[place], operator.outputs[0]
    if weight < 0:  # an LSTM without the optional weights of its input gate
        weight = operator.inputs[place + 1]
    kept, macs = graph.stored(weight), _macs(graph, operator, sizes)
    left, right, stored = graph.dtype(activations), graph.dtype(weight), graph.dtype(kept)
    hybrid_layer = left.startswith("float") and not right.startswith("float")
    narrow = stored if stored != left and left.startswith("float") else None
    precision = written(left, right, narrow)
    if hybrid_layer:
        precision = f"{DYNAMIC}" if right == "int8" else f"{DYNAMIC}, {right} weights"
    executed: str | None = precision if ran else None
    if ran and hybrid_layer:
        in_float = hybrid.computes_in_float(graph.model, operator, sizes)
        executed = UNKNOWN if in_float is None else executed
        executed = f"{left}, {right} weights" if in_float else executed
    scales = None
    if not stored.startswith(("float", "bfloat")) and graph.constant(kept):
        count = len(graph.scales(kept)[0])
        details = graph.tensors[kept].quantization
        blocks = getattr(details, "detailsType", 0) not in (0, 1) if details else False
        scales = weight_scales(max(count, 1), sizes[output][-1], blocks=blocks)
    return FoundLayer(graph.name(output), kind, macs, precision, executed, scales)


def _macs(graph: FileGraph, operator: Any, sizes: dict[int, tuple[int, ...]]) -> int | None:
    """Multiply-accumulates of a layer.

    Kernels are [O, H, W, I], depthwise [1, H, W, O], volumes [D, H, W, I, O], matrices [O, I]:
    each output channel has an equal share of the elements.
    """
    kind, output = graph.kind(operator), sizes[operator.outputs[0]]
    left, right = sizes[operator.inputs[0]], sizes[operator.inputs[1]]
    if kind == "BATCH_MATMUL":
        return matrix_macs(left, output)
    if kind == "TRANSPOSE_CONV":
        image = sizes[operator.inputs[2]]
        return math.prod(image[:-1]) * math.prod(right)
    if kind == "SVDF":
        return left[0] * (math.prod(right) + math.prod(sizes[operator.inputs[2]]))
    if kind in ("UNIDIRECTIONAL_SEQUENCE_LSTM", "LSTM"):
        weights = [math.prod(sizes[i]) for i in operator.inputs[1:9] if i >= 0]
        return math.prod(left[:-1]) * sum(weights)
    return product_macs(output, math.prod(right) // output[-1])


def _cut(interpreter: Any) -> str:
    """How many parts of the graph XNNPACK takes, and which operators it leaves."""
    nodes = interpreter._get_ops_details()
    graph = [node for node in nodes if node["op_name"] != "DELEGATE"]
    delegates = [node for node in nodes if node["op_name"] == "DELEGATE"]
    taken = set[int]().union(*(_inside(delegate, graph) for delegate in delegates))
    left = Counter(_kind(node) for i, node in enumerate(graph) if i not in taken)
    rest = ", ".join(f"{count} {kind}" for kind, count in left.most_common())
    parts = f"{len(delegates)} partition{'' if len(delegates) == 1 else 's'}"
    return f"XNNPACK takes {len(taken)} of {len(graph)} operators in {parts}; " + (
        f"built-in kernels: {rest}" if rest else "nothing is left to built-in kernels"
    )


def _notes(graph: FileGraph) -> tuple[str, ...]:
    others = graph.model.subgraphs[1:]
    inner = sum(graph.kind(one) in WEIGHT for other in others for one in other.operators)
    if not inner:
        return ()
    return (
        f"it has {len(others) + 1} graphs, and {inner} layers in others than the first: they are "
        "left out, as how often they run depends on the input",
    )


def _text(raw: Any) -> str:
    return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw or "")
