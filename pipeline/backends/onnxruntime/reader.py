"""Reads any .onnx file: what its graph says, and what a session of ONNX Runtime makes of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pipeline.backends.base.anatomy import (
    UNKNOWN,
    Anatomy,
    Arrays,
    FoundLayer,
    Port,
    Shapes,
    Trace,
    TracedLayer,
    drawn,
    image_layout,
    with_shapes,
)
from pipeline.backends.base.job import flat
from pipeline.backends.onnxruntime import graph as graphs
from pipeline.backends.onnxruntime.files import load
from pipeline.backends.onnxruntime.graph import Graph
from pipeline.core.errors import PipelineError
from pipeline.core.files import temporary_folder
from pipeline.core.text import first_line
from pipeline.export.session import _onnxruntime, open_session, versions

_SIZES = dict[str, tuple[int, ...]]


def read(file: Path, shapes: Shapes) -> Anatomy:
    """See `backends.base.anatomy.Reader`.

    A session with default options says what is executed: `session.py` disables an optimizer that
    other people's sessions have.
    """
    loaded = load(file)
    model, why = loaded.model, loaded.unread
    graph = Graph(_inferred(model, {}))
    ports, outputs = _inputs(graph), tuple(_port(value) for value in graph.graph.output)
    call = with_shapes(ports, shapes, file)
    graph = Graph(_inferred(model, call))
    optimized, sizes = None, _static_sizes(graph)
    if why is None:
        whole = model.SerializeToString() if loaded.apart else str(file)
        optimized, why = _optimized(whole)
    if optimized is not None and len(call) == len(ports):
        sizes |= _run_sizes(graph, drawn(ports, call))
    layers = _layers(graph, sizes, Graph(_inferred(optimized, call)) if optimized else None)
    return Anatomy(
        format=_format(model),
        inputs=tuple(ports),
        outputs=outputs,
        parameters=graphs.parameters(model),
        size_bytes=file.stat().st_size + loaded.weight_bytes,
        operators=graphs.operators(model),
        layers=layers,
        runtime=None if optimized is None else f"ONNX Runtime {versions()['onnxruntime']}",
        why_not_run=why,
        notes=_notes(graph, layers, [port.name for port in ports if port.name not in call]),
    )


def trace(file: Path, inputs: Arrays) -> Trace:
    """See `backends.base.anatomy.Reader`. Without the graph optimizer; Q/DQ pairs are roundings."""
    loaded = load(file)
    if loaded.unread:
        raise PipelineError(loaded.unread, where=str(file))
    model, graph = loaded.model, Graph(loaded.model)
    layers = [node for node in graph.layers() if not graph.constants.keys() >= set(node.input)]
    ends = {_name(node): graph.end(node.output[0]) for node in layers}
    outputs = [value.name for value in model.graph.output]
    values = _values(model, [*ends.values(), *outputs], inputs)
    traced = []
    for name, end in ends.items():
        found = _real(graph, end, values[end])
        traced.append(TracedLayer(name, flat(found) if found.ndim else found.reshape(1, 1)))
    return Trace(tuple(traced), {name: _real(graph, name, values[name]) for name in outputs})


def _format(model: onnx.ModelProto) -> str:
    used = {node.domain for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    opsets = ", ".join(
        f"{entry.domain or 'opset'} {entry.version}"
        for entry in model.opset_import
        if entry.domain in ("", *used)
    )
    made_by = " ".join(filter(None, (model.producer_name, model.producer_version)))
    return f"ONNX {opsets}" + (f", by {made_by}" if made_by else "")


def _inputs(graph: Graph) -> list[Port]:
    """The inputs that a caller gives: old files list constants among them."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    ports = [_port(value) for value in graph.graph.input if value.name not in constants]
    return [_quantized_at_once(graph, port) for port in ports]


def _quantized_at_once(graph: Graph, port: Port) -> Port:
    """A port with the scale of the only node that reads it, where that quantizes or dequantizes."""
    readers = graph.readers.get(port.name, [])
    if len(readers) != 1 or readers[0].op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return port
    node = readers[0]
    kind = graph.dtype(node.output[0] if node.op_type == "QuantizeLinear" else port.name)
    scale, zero = (_constant(graph, name) for name in (*node.input, "")[1:3])
    if scale is None or scale.size != 1 or kind not in ("int8", "uint8", "int16", "uint16"):
        return port
    zeros = (0,) if zero is None else (int(zero.reshape(-1)[0]),)
    found = Port(port.name, port.dtype, port.shape, port.layout, kind, (float(scale),), zeros)
    return found


def _constant(graph: Graph, name: str) -> np.ndarray[Any, Any] | None:
    for tensor in graph.graph.initializer:
        if tensor.name == name:
            return onnx.numpy_helper.to_array(tensor)
    return None


def _port(value: onnx.ValueInfoProto) -> Port:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return Port(value.name, str(kind).removesuffix("_type"), None)
    tensor = value.type.tensor_type
    shape: tuple[int | str, ...] | None = None
    if tensor.HasField("shape"):
        shape = tuple(_size(dim) for dim in tensor.shape.dim)
    return Port(value.name, graphs._dtype(tensor.elem_type), shape, image_layout(shape))


def _size(dim: Any) -> int | str:
    """A size, or its name; some exporters write -1, and shape inference names that begin so."""
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    unnamed = not dim.dim_param or dim.dim_param.startswith("unk__") or dim.dim_param == "-1"
    return "?" if unnamed else str(dim.dim_param)


def _inferred(model: onnx.ModelProto, call: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A copy of `model` whose inputs have the shapes of a call, and its tensors inferred ones."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, call.get(value.name, ()),
                             strict=False):  # fmt: skip
            dim.dim_value = size
    if call:
        for value in copy.graph.output:
            value.type.tensor_type.ClearField("shape")
        del copy.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except Exception:  # of any type, for files that break a rule: their own shapes remain
        return copy


def _static_sizes(graph: Graph) -> _SIZES:
    sizes = {name: constant.dims for name, constant in graph.constants.items()}
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            sizes.setdefault(value.name, tuple(d.dim_value for d in dims))
    return sizes


def _run_sizes(graph: Graph, inputs: Arrays) -> _SIZES:
    """Shapes of the operands and results of layers as one call has them; none if it fails."""
    tensors = [t for node in graph.layers() for t in (*node.input, node.output[0]) if t]
    wanted = [t for t in dict.fromkeys(tensors) if t in graph.makers]
    try:
        values = _values(graph.model, wanted, inputs)
    except PipelineError:  # drawn numbers need not suit a model; shapes in the file remain
        return {}
    return {name: np.shape(value) for name, value in values.items()}


def _values(model: onnx.ModelProto, names: list[str], inputs: Arrays) -> Arrays:
    """Tensors of a model that runs without the graph optimizer."""
    wanted = list(dict.fromkeys(names))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    try:
        session = open_session(probe.SerializeToString(), threads=1, level="DISABLE_ALL")
        return dict(zip(wanted, session.run(wanted, inputs), strict=True)) if wanted else {}
    except Exception as error:  # ONNX Runtime has a dozen types
        raise PipelineError(f"ONNX Runtime cannot run it: {first_line(error)}") from error


def _optimized(source: str | bytes) -> tuple[onnx.ModelProto | None, str | None]:
    """The graph that a session with default options makes of a model, or why there is none.

    A model whose weights lie apart is given whole: with its file, a session refuses to write the
    graph. Before the last step, which gives float layers a blocked memory layout and other names.
    """
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with temporary_folder() as scratch:
        options.optimized_model_filepath = str(scratch / "optimized.onnx")
        try:
            runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            return onnx.load(scratch / "optimized.onnx"), None
        except Exception as error:  # see `_values`
            return None, f"ONNX Runtime refuses it: {first_line(error)}"


def _layers(graph: Graph, sizes: _SIZES, executed: Graph | None) -> tuple[FoundLayer, ...]:
    inner = [_within(sub, graph) for sub in graphs.inner_graphs(graph.graph)]
    ran = _executed([graph, *inner], executed) if executed else {}
    found = []
    for node in graph.layers():
        if graph.constants.keys() >= set(filter(None, node.input)):
            continue  # folded
        name, precision = _name(node), graph.precision(node, trust_pairs=True)
        done = ran.get(name, UNKNOWN) if executed else None
        if done == UNKNOWN and precision == UNKNOWN:
            done = None
        macs = graphs.macs(node, sizes)
        found.append(FoundLayer(name, node.op_type, macs, precision, done, graph.scales(node)))
    for sub in inner:
        for node in sub.layers():
            name, precision = _name(node), sub.precision(node, trust_pairs=True)
            done = ran.get(name, UNKNOWN) if executed else None
            found.append(FoundLayer(name, node.op_type, None, precision, done, sub.scales(node)))
    return tuple(found)


def _within(inner: onnx.GraphProto, outer: Graph) -> Graph:
    """The graph of a branch or loop, which sees the tensors around it."""
    found = Graph(onnx.ModelProto(graph=inner))
    found.constants = outer.constants | found.constants
    found.types = outer.types | found.types
    return found


def _executed(written: list[Graph], executed: Graph) -> dict[str, str]:
    """By name of a layer of the file: the precision of the node that computes it in `executed`.

    Args:
        written: the graph of the file, and those of its branches.
        executed: what a session makes of it.
    """
    layers = [(graph, node) for graph in written for node in graph.layers()]
    names = {_name(node) for _, node in layers}
    makes = {graph.end(node.output[0]): _name(node) for graph, node in layers}
    makes |= {node.output[0]: _name(node) for _, node in layers}
    reads = {node.input[1]: _name(node) for _, node in layers}
    found = {}
    inner = [_within(sub, executed) for sub in graphs.inner_graphs(executed.graph)]
    for graph in (executed, *inner):
        for node in graph.layers():
            own = re.sub(r"/\w+Fusion/?$", "", node.name)
            ends = (node.output[0], graph.end(node.output[0]))
            name = own if own in names else next((makes[end] for end in ends if end in makes), None)
            name = name or reads.get(node.input[1])
            if name is not None:
                found[name] = graph.precision(node, trust_pairs=False)
    return found


def _notes(graph: Graph, layers: tuple[FoundLayer, ...], open_: list[str]) -> tuple[str, ...]:
    """What a reader of the report has to know.

    Args:
        graph: of the file.
        layers: of it.
        open_: inputs whose size is not known.
    """
    notes = []
    subs = list(graphs.inner_graphs(graph.graph))
    inner = sum(graphs.is_layer(node) for sub in subs for node in sub.node)
    if open_ and sum(layer.macs is None for layer in layers) > inner:
        notes.append(
            f"MACs are known where they do not depend on the size of {', '.join(open_)}; give it "
            f"with --shape {open_[0]}=1x..."
        )
    if inner:
        notes.append(
            f"{inner} layers are inside of branches or loops: how often they run depends on the "
            "input, so their MACs are left out"
        )
    return tuple(notes)


def _real(graph: Graph, tensor: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The real values of a tensor; an integer one has the scale of the operator that made it."""
    node = graph.makers.get(tensor)
    place = {"QuantizeLinear": 1, "QLinearConv": 6, "QLinearMatMul": 6, "QGemm": 7}
    if node is None or node.op_type not in place or values.dtype.kind == "f":
        return values.astype(np.float32)
    names = (*node.input, "", "")[place[node.op_type] : place[node.op_type] + 2]
    scale, zero = (_constant(graph, name) for name in names)
    if scale is None or scale.size != 1:
        return values.astype(np.float32)
    offset = 0.0 if zero is None else float(zero.reshape(-1)[0])
    return (values.astype(np.float32) - np.float32(offset)) * np.float32(scale)


def _name(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]
