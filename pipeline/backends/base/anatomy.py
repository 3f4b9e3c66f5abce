"""What is known of a model file that anybody may have made, and how a backend reads its format."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError

INT8, INT16, DYNAMIC = "int8", "int16x8", "dynamic int8"
"""Products of integers: both operands quantized ahead (int8 also stands for uint8), activations of
16 bits, and float activations that are quantized anew in each call."""
UNKNOWN = "unknown"

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of inputs that a user gives, by name."""
Arrays = dict[str, NDArray[Any]]
"""Inputs of a model by name."""


@dataclass(frozen=True)
class Port:
    """An input or output of a model."""

    name: str
    dtype: str
    """NumPy's name where it has one."""
    shape: tuple[int | str, ...] | None
    """A size that is not fixed is its name in the file, or `?`; None: of any rank."""
    layout: str | None = None
    quantized: str | None = None
    """The integer type whose values stand for real ones: its own, or that of a float input which
    the graph quantizes at once."""
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    """Real value = scale x (integer - zero point)."""


@dataclass(frozen=True)
class FoundLayer:
    """A convolution, matrix product or recurrent layer of a file."""

    name: str
    op: str
    macs: int | None
    """Multiply-accumulates of one call at the shapes of `Anatomy.inputs`; None: not known."""
    written: str
    """The precision of its products as the file has it, Q/DQ pairs taken at their word."""
    executed: str | None = None
    """As the runtime computes them here; None where it was not asked."""
    scales: str | None = None
    """Of its quantized weights: `per channel`, `per tensor`, `per block`; None without such."""

    @property
    def precision(self) -> str:
        """As executed, where that is known."""
        return self.executed or self.written


@dataclass(frozen=True)
class Anatomy:
    """What a backend finds out about a file of its format."""

    format: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    parameters: int
    """Elements of constants that floats or quantized weights are stored in."""
    size_bytes: int
    operators: Mapping[str, int]
    layers: tuple[FoundLayer, ...]
    runtime: str | None = None
    """Name and version of what executed it; None where nothing did."""
    why_not_run: str | None = None
    cut: str | None = None
    """How the runtime divides the graph."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TracedLayer:
    """The output of a layer as the next one reads it: behind fused activations, dequantized."""

    name: str
    values: NDArray[np.float32]
    """Channels first."""


@dataclass(frozen=True)
class Trace:
    """What a model computes from given inputs, layer by layer in order of execution."""

    layers: tuple[TracedLayer, ...]
    outputs: Arrays = field(default_factory=dict)
    """Dequantized."""


class Reader(Protocol):
    """The module `reader` of a backend whose `reads` names suffixes of files."""

    def read(self, file: Path, shapes: Shapes) -> Anatomy:
        """Find out what `file` has; where its runtime refuses it, from the file alone.

        Raises:
            PipelineError: for a file that is not of this format, or damaged.
        """

    def trace(self, file: Path, inputs: Arrays) -> Trace:
        """Run `file` on `inputs`, by the names of its own inputs and with their dtypes.

        Raises:
            PipelineError: where the runtime cannot run it.
        """


def written(activations: str, weights: str, stored: str | None = None) -> str:
    """The precision of a product by the types of its operands.

    Args:
        activations: type of the left operand.
        weights: of the right one.
        stored: the narrower type in which the file keeps float `weights`.
    """
    integers = ("int8", "uint8")
    if activations in integers and weights in integers:
        return INT8
    if activations in ("int16", "uint16") and weights in integers:
        return INT16
    if activations in integers:
        return f"int8, {weights} weights"
    if stored:
        return f"{activations}, {stored.removeprefix('u')} weights"
    return activations


def is_int8(precision: str) -> bool:
    """Whether both operands were int8 ahead of the call."""
    return precision == INT8


def is_integer(precision: str) -> bool:
    """Whether products are of integers of any kind, or quantized anew in each call."""
    return precision.startswith((INT8, INT16, DYNAMIC))


def weight_scales(count: int, channels: int, *, blocks: bool = False) -> str | None:
    """`FoundLayer.scales` of weights with `count` scales for `channels` output channels.

    None for one scale of one channel, which is both.
    """
    if blocks or count > channels:
        return "per block"
    if channels == 1:
        return None
    return "per tensor" if count == 1 else "per channel"


def product_macs(output: Sequence[int] | None, inner: int | None) -> int | None:
    """Elements of `output` times the products of each; None where either is not known."""
    if output is None or inner is None or not all(isinstance(d, int) and d >= 0 for d in output):
        return None
    return math.prod(output) * inner


def image_layout(shape: Sequence[int | str] | None) -> str | None:
    """The layout of an image by its shape: it has 1, 3 or 4 channels, and longer sides."""
    if shape is None or len(shape) != 4:
        return None
    few, many = (
        [isinstance(size, int) and size in (1, 3, 4) for size in shape],
        [isinstance(size, str) or size > 4 for size in shape],
    )
    if few[1] and many[2] and many[3]:
        return "NCHW"
    return "NHWC" if few[3] and many[1] and many[2] else None


def with_shapes(inputs: Iterable[Port], shapes: Shapes, where: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each input for one call: as given, else as in the file with a batch of one.

    Inputs with another size that is not fixed are left out.

    Raises:
        PipelineError: for a shape that a user gives for no input, or that contradicts the file.
    """
    inputs = list(inputs)
    names = [port.name for port in inputs]
    found = {}
    for name, shape in shapes.items():
        fixed = next((port.shape for port in inputs if port.name == name), ())
        if name not in names:
            what = f"it has no input `{name}`; it has {', '.join(names) or 'none'}"
            raise PipelineError(what, where=str(where), fix="correct --shape")
        if fixed is not None and len(fixed) != len(shape):
            what = f"input `{name}` has {len(fixed)} dimensions, --shape {len(shape)}"
            raise PipelineError(what, where=str(where), fix="correct --shape")
    for port in inputs:
        shape_of = shapes.get(port.name, port.shape)
        if shape_of is None:
            continue
        sizes = tuple(1 if i == 0 and isinstance(d, str) else d for i, d in enumerate(shape_of))
        if all(isinstance(size, int) for size in sizes):
            found[port.name] = tuple(int(size) for size in sizes)
    return found


def drawn(inputs: Iterable[Port], shapes: Shapes, seed: int = 0) -> Arrays:
    """Inputs from a seeded generator, alike for files that differ in the types of inputs.

    Floats are normal; where the file quantizes the input, six standard deviations fill its range.
    Bytes without a scale are uniform, other integers 0 or 1, which are indices of any table.

    Args:
        inputs: of a model.
        shapes: of all of them.
        seed: of the generator.
    """
    found: Arrays = {}
    for number, port in enumerate(inputs):
        generator = np.random.default_rng((seed, number))
        shape = shapes[port.name]
        if port.dtype.startswith(("float", "bfloat")):
            low, high = value_range(port)
            values = generator.normal(size=shape)
            if low < high:
                values = np.clip((low + high) / 2 + (high - low) / 6 * values, low, high)
            found[port.name] = values.astype(port.dtype if port.dtype != "bfloat16" else "float32")
        elif port.dtype in ("uint8", "int8"):
            limits = np.iinfo(port.dtype)
            found[port.name] = generator.integers(
                limits.min, limits.max, shape, port.dtype, endpoint=True
            )
        elif port.dtype == "bool":
            found[port.name] = np.ones(shape, bool)
        else:
            found[port.name] = generator.integers(0, 2, shape).astype(port.dtype)
    return found


def value_range(port: Port) -> tuple[float, float]:
    """The real values that a quantized input stands for; (0, 0) for one without a scale."""
    if not port.scales or port.quantized is None:
        return 0.0, 0.0
    scale, zero, limits = port.scales[0], port.zero_points[0], np.iinfo(port.quantized)
    return scale * (int(limits.min) - zero), scale * (int(limits.max) - zero)
