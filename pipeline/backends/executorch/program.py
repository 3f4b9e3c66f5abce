"""A .pte program taken apart: ExecuTorch's instructions, and the graphs that XNNPACK runs."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import flatbuffers
from executorch.backends.xnnpack import serialization
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
from executorch.exir._serialize._flatbuffer import _run_flatc
from executorch.exir._serialize._program import (
    PTEFile,
    deserialize_pte_binary,
    serialize_pte_binary,
)
from executorch.exir.scalar_type import ScalarType
from executorch.exir.schema import (
    AllocationDetails,
    DelegateCall,
    EValue,
    ExecutionPlan,
    KernelCall,
    Tensor,
)

ALIGNMENT = 16
"""Of tensors in a program's memory and of the parts of a graph, in bytes."""
CAST = "_to_dim_order_copy"
"""ExecuTorch's operator that casts."""
XNNPACK = "XnnpackBackend"
"""The name of its delegate."""
OUTPUT = 2
"""The flag XNN_VALUE_FLAG_EXTERNAL_OUTPUT."""


@dataclass
class Value:
    """A tensor of one of XNNPACK's graphs."""

    table: Any
    """Of the schema: its type, shape and ids."""
    scale: float | None
    """Of one scale for the whole tensor; None where it has none."""
    zero_point: int

    @property
    def dims(self) -> list[int]:
        """Its shape."""
        return [] if self.table.dims is None else list(map(int, self.table.dims))

    @property
    def dtype(self) -> str:
        """XNNPACK's name of its type, such as `fp32`, `qint8`, and `qcint8` per channel."""
        kinds = vars(schema().XNNDatatype)
        names = {kinds[name]: name for name in kinds if name.startswith("xnn_datatype_")}
        return str(names[self.table.datatype]).removeprefix("xnn_datatype_")


class Graph:
    """One of XNNPACK's graphs."""

    def __init__(self, blob: bytes) -> None:
        header = XNNHeader.from_bytes(blob[: XNNHeader.EXPECTED_LENGTH])
        if header.constant_data_size:
            raise ValueError("a graph with its constants inside")
        start = header.flatbuffer_offset
        self.table = schema().XNNGraphT.InitFromPackedBuf(bytearray(blob[start:]), 0)
        self.values: dict[int, Value] = {}
        for value in self.table.xvalues:
            table, parameters = value.xvalueUnion, None
            if hasattr(table, "tensorValue"):
                table, parameters = table.tensorValue, table.quantParams
            scale = getattr(parameters, "scale", None)
            whole = isinstance(scale, float)
            zero_point = getattr(parameters, "zeroPoint", 0)
            self.values[table.idOut] = Value(table, scale if whole else None, zero_point)

    def nodes(self) -> Iterator[tuple[str, Any]]:
        """Kind, such as `Conv2d`, and table of each node, in order of execution."""
        kinds = vars(schema().XNodeUnion)
        names = {kinds[name]: name.removeprefix("XNN") for name in kinds if name.startswith("XNN")}
        for node in self.table.xnodes:
            yield names[node.xnodeUnionType], node.xnodeUnion

    def readers(self, value: int) -> list[tuple[str, Any]]:
        """Kind and table of the nodes that read the value of that id."""
        return [
            (kind, node)
            for kind, node in self.nodes()
            if value in (getattr(node, name) for name in _inputs(node))
        ]

    def drop_front(self) -> None:
        """Let the graph begin behind (x - 128) / 64: its input is normalised already.

        Raises:
            ValueError: for a graph that does not begin with a subtraction and a multiplication.
        """
        (first, subtract), (second, multiply) = list(self.nodes())[:2]
        chained = multiply.input1Id == subtract.outputId
        if (first, second) != ("Subtract", "Multiply") or not chained:
            raise ValueError(f"a graph that begins with {first} and {second}")
        for _, node in self.readers(multiply.outputId):
            for name in _inputs(node):
                if getattr(node, name) == multiply.outputId:
                    setattr(node, name, subtract.input1Id)
        del self.table.xnodes[:2]

    def content(self) -> bytes:
        """As the runtime reads it: a header, and the graph; constants lie outside of it."""
        builder = flatbuffers.Builder()
        builder.Finish(self.table.Pack(builder), b"XN01")
        graph = bytes(builder.Output())
        start, size = _aligned(XNNHeader.EXPECTED_LENGTH), _aligned(len(graph))
        header: bytes = XNNHeader(start, len(graph), start + size, 0).to_bytes()
        return header.ljust(start, b"\0") + graph.ljust(size, b"\0")


class Program:
    """The method `forward` of a .pte file; what is no graph of XNNPACK stays closed."""

    def __init__(self, content: bytes) -> None:
        self._file: PTEFile = deserialize_pte_binary(content)
        plans = {plan.name: plan for plan in self._file.program.execution_plan}
        if "forward" not in plans:
            raise ValueError(f"it has no method `forward`, but {', '.join(plans)}")
        self.plan: ExecutionPlan = plans["forward"]
        self._graphs = [
            Graph(self._blob(i).data) if delegate.id == XNNPACK else None
            for i, delegate in enumerate(self.plan.delegates)
        ]

    @property
    def graphs(self) -> list[Graph]:
        """Those of XNNPACK."""
        return [graph for graph in self._graphs if graph is not None]

    def foreign(self) -> list[str]:
        """The names of other delegates, once for each of their graphs."""
        return [delegate.id for delegate in self.plan.delegates if delegate.id != XNNPACK]

    def content(self) -> bytes:
        """As a file."""
        for i, graph in enumerate(self._graphs):
            if graph is not None:
                self._blob(i).data = graph.content()
        return bytes(serialize_pte_binary(self._file, extract_delegate_segments=True))

    def steps(self) -> Iterator[tuple[str, Graph | None, Sequence[int]]]:
        """Name, XNNPACK's graph and arguments of each step; no graph for what others compute."""
        for instruction in self.plan.chains[0].instructions:
            call = instruction.instr_args
            if isinstance(call, DelegateCall):
                its = self.plan.delegates[call.delegate_index].id
                yield its, self._graphs[call.delegate_index], call.args
            elif isinstance(call, KernelCall):
                operator = self.plan.operators[call.op_index]
                yield operator.name.partition("::")[2], None, call.args

    def tensor(self, index: int) -> Tensor | None:
        """The program's value, where it is a tensor."""
        value = self.plan.values[index].val
        return value if isinstance(value, Tensor) else None

    def sizes(self, index: int) -> list[int]:
        """The shape of the program's value; of a scalar nothing."""
        tensor = self.tensor(index)
        return [] if tensor is None else list(tensor.sizes)

    def parameters(self) -> int:
        """Elements of all constants, also of those inside XNNPACK's graphs."""
        shapes = [
            value.val.sizes
            for value in self.plan.values
            if isinstance(value.val, Tensor) and value.val.data_buffer_idx
        ]
        shapes += [
            value.dims
            for graph in self.graphs
            for value in graph.values.values()
            if value.table.constantBufferIdx
        ]
        return sum(math.prod(shape) for shape in shapes)

    def add_output(self, step: int, value: Value) -> None:
        """Give out a value inside a graph of XNNPACK, too: in float32 or int8, as it is.

        Args:
            step: position of the graph's call among the instructions.
            value: of that graph.
        """
        kind, width = (ScalarType.CHAR, 1) if value.dtype == "qint8" else (ScalarType.FLOAT, 4)
        call = self.plan.chains[0].instructions[step].instr_args
        assert isinstance(call, DelegateCall)
        graph = self._graphs[call.delegate_index]
        assert graph is not None
        offset = _aligned(self.plan.non_const_buffer_sizes[1])
        self.plan.non_const_buffer_sizes[1] = offset + width * math.prod(value.dims)
        logits = self.tensor(self.plan.outputs[0])
        assert logits is not None
        tensor = Tensor(
            kind, 0, value.dims, list(range(len(value.dims))), False, 0, 0,
            AllocationDetails(1, offset, 0), logits.shape_dynamism,
        )  # fmt: skip
        index = len(self.plan.values)
        self.plan.values.append(EValue(tensor))
        self.plan.outputs.append(index)
        call.args.append(index)  # its position is the external id
        value.table.externalId = graph.table.numExterns
        value.table.flags |= OUTPUT
        graph.table.numExterns += 1
        graph.table.outputIds = [*graph.table.outputIds, value.table.idOut]

    def feed_normalised(self) -> None:
        """Take (x - 128) / 64 in float in place of the pixels x, and leave the normalisation out.

        Raises:
            ValueError: where the program does not begin with a cast and XNNPACK's normalisation.
        """
        instructions = self.plan.chains[0].instructions
        (cast, _, arguments), (_, graph, given) = list(self.steps())[:2]
        if cast != CAST or graph is None or arguments[-1] != given[0]:
            raise ValueError(f"a program that begins with {cast}")
        graph.drop_front()
        self.plan.inputs = [given[0]]
        del instructions[0]

    def _blob(self, delegate: int) -> Any:
        place = self.plan.delegates[delegate].processed
        return self._file.program.backend_delegate_data[place.index]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _inputs(node: Any) -> list[str]:
    """Attributes of a node that hold the ids of its operands, without weights and bias."""
    return [name for name in vars(node) if name.startswith("input") and name.endswith("Id")]


@cache
def schema() -> ModuleType:
    """Classes of XNNPACK's graphs, which flatc writes from the schema; ExecuTorch brings both."""
    name = "schema_generated"
    file = Path(next(iter(serialization.__path__))) / "schema.fbs"
    with tempfile.TemporaryDirectory() as folder:
        options = ("--python", "--gen-object-api", "--gen-onefile", "-o", folder)
        _run_flatc([*options, str(file)])
        spec = importlib.util.spec_from_file_location(name, Path(folder) / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    # flatc 24.3 defines some functions in another spelling than it calls them by
    defined = {name.lower(): function for name, function in vars(module).items()}
    for name in ("XNNQuantParams", "XNodeUnion", "XValueUnion"):
        setattr(module, f"{name}Creator", defined[f"{name}creator".lower()])
    return module
