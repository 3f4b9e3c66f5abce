"""Reads any .pte file: its method `forward`, and the graphs that XNNPACK runs of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backends.base.anatomy import (
    DYNAMIC,
    Anatomy,
    Arrays,
    FoundLayer,
    Port,
    Shapes,
    Trace,
    TracedLayer,
    image_layout,
    with_shapes,
    written,
)
from pipeline.backends.base.executed import ExecutedLayer
from pipeline.backends.executorch.inspect import (
    ATTENTION,
    LAYERS,
    WEIGHTED,
    dtype_of,
    layer_outputs,
    layers_of,
)
from pipeline.backends.executorch.program import XNNPACK, Graph, Program
from pipeline.backends.executorch.run import load_method, versions
from pipeline.core.errors import PipelineError
from pipeline.core.text import first_line

_FLOATS = {"fp32": "float32", "fp16": "float16"}
_ANEW = ("qdint8", "qpint8", "qduint8")
"""XNNPACK's types of activations that each call quantizes anew."""


def read(file: Path, shapes: Shapes) -> Anatomy:
    """See `backends.base.anatomy.Reader`."""
    program = _program(file)
    inputs = tuple(_port(program, "input", i) for i in program.plan.inputs)
    with_shapes(inputs, shapes, file)
    runs, why = _runs(file)
    name, version = next(iter(versions().items()))
    return Anatomy(
        format="ExecuTorch program",
        inputs=inputs,
        outputs=tuple(_port(program, "output", i) for i in program.plan.outputs),
        parameters=program.parameters(),
        size_bytes=file.stat().st_size,
        operators=_operators(program),
        layers=tuple(
            _found(graph, node, layer, ran=runs) for graph, node, layer in layers_of(program)
        ),
        runtime=f"{name} {version}" if runs else None,
        why_not_run=why,
        cut=_cut(program),
        notes=tuple(
            f"what {name} computes is not known here: it is left out"
            for name in dict.fromkeys(program.foreign())
        ),
    )


def trace(file: Path, inputs: Arrays) -> Trace:
    """See `backends.base.anatomy.Reader`."""
    program = _program(file)
    if len(inputs) != 1:
        raise PipelineError(f"it has {len(inputs)} inputs; one is supported", where=str(file))
    (values,) = inputs.values()
    fixed = program.sizes(program.plan.inputs[0])
    step = fixed[0] if fixed else 1
    if len(values) % step:
        raise PipelineError(
            f"it takes {step} samples a call, and {len(values)} are given", where=str(file)
        )
    try:
        found = layer_outputs(file.read_bytes(), values, step)
        execute = load_method(str(file), threads=1)
        calls = [execute(values[i : i + step]) for i in range(0, len(values), step)]
    except RuntimeError as error:
        raise PipelineError(
            f"ExecuTorch cannot run it: {first_line(error)}", where=str(file)
        ) from error
    # Attention, two products in one, is no layer of `layer_outputs`.
    names = [layer.name for _, _, layer in layers_of(program) if ATTENTION not in layer.name]
    layers = tuple(TracedLayer(names[int(place)], output) for place, output in found.items())
    outputs = {
        f"output_{i}": np.concatenate([call[i] for call in calls])
        for i in range(len(program.plan.outputs))
    }
    return Trace(layers, outputs)


def _program(file: Path) -> Program:
    content = file.read_bytes()
    if content[4:6] != b"ET":
        raise PipelineError("is damaged or no .pte file", where=str(file))
    return Program(content)


def _runs(file: Path) -> tuple[bool, str | None]:
    """Whether ExecuTorch opens the method here, or why not."""
    try:
        load_method(str(file), threads=1)
    except RuntimeError as error:
        return False, f"ExecuTorch refuses it: {first_line(error)}"
    return True, None


def _port(program: Program, kind: str, index: int) -> Port:
    """Programs do not name their inputs and outputs: they are counted."""
    ends = program.plan.inputs if kind == "input" else program.plan.outputs
    shape = tuple(program.sizes(index))
    name = f"{kind}_{ends.index(index)}"
    return Port(name, dtype_of(program, index) or "scalar", shape, image_layout(shape))


def _operators(program: Program) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, graph, _ in program.steps():
        counts.update([name] if graph is None else (kind for kind, _ in graph.nodes()))
    return dict(counts.most_common())


def _found(graph: Graph | None, node: Any, layer: ExecutedLayer, *, ran: bool) -> FoundLayer:
    kind, _, _ = layer.name.partition(" ")
    precision, scales = "float32", None
    if graph is not None and kind in LAYERS:
        left = graph.values[node.input1Id].dtype
        right = graph.values[node.filterId if kind in WEIGHTED else node.input2Id].dtype
        narrow = _integers(right)
        if left in _ANEW:
            precision = DYNAMIC if narrow == "int8" else f"{DYNAMIC}, {narrow} weights"
        else:
            activations = _FLOATS.get(left) or _integers(left)
            precision = written(activations, _FLOATS.get(right) or narrow)
            if activations.startswith("float") and right not in _FLOATS:
                precision = written(activations, activations, narrow)
        if right not in _FLOATS:
            scales = {"qc": "per channel", "qb": "per block"}.get(right[:2], "per tensor")
    return FoundLayer(layer.name, kind, layer.macs, precision, precision if ran else None, scales)


def _integers(name: str) -> str:
    """NumPy's name of the integers of one of XNNPACK's types: `qcint8` are int8."""
    return name.lstrip("q").removeprefix("c").removeprefix("b").removeprefix("d").removeprefix("p")


def _cut(program: Program) -> str:
    parts = sum(graph is not None for _, graph, _ in program.steps())
    left = Counter(name for name, graph, _ in program.steps() if graph is None)
    rest = ", ".join(f"{count} {kind}" for kind, count in left.most_common())
    text = f"{XNNPACK} takes {parts} part{'' if parts == 1 else 's'}; "
    return text + (f"others: {rest}" if rest else "nothing is left to others")
