"""The conv and linear layers that a runtime executes, and the report made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.backends.base.records import ExecutionReport, FloatLayer, Partitions


@dataclass(frozen=True)
class ExecutedLayer:
    """A conv or linear layer that a runtime executes for one image."""

    name: str
    """The runtime's own."""
    macs: int
    """Multiply-accumulates."""
    int8: bool
    """Whether both operands are int8."""
    per_channel: bool | None
    """Whether its int8 weights have a scale per output channel; None without int8 weights."""


def matrix_macs(left: Sequence[int], output: Sequence[int]) -> int:
    """Multiply-accumulates of [..., M, K] x [..., K, N] = [..., M, N].

    Args:
        left: shape of the left operand, which may be transposed to [..., K, M].
        output: shape of the result.
    """
    inner = left[-2] * left[-1] // output[-2]
    return math.prod(output) * inner


def execution_report(
    layers: Iterable[ExecutedLayer],
    input_type: str,
    output_type: str,
    partitions: Partitions | None = None,
) -> ExecutionReport:
    """The report of all conv and linear `layers` that a runtime executes for one image.

    Args:
        layers: in any order.
        input_type: NumPy's name of the model's input type.
        output_type: of its output type.
        partitions: how the runtime splits the graph; None for one that has no delegates.
    """
    layers = list(layers)
    floats = [FloatLayer(name=layer.name, macs=layer.macs) for layer in layers if not layer.int8]
    scales = [layer.per_channel for layer in layers if layer.per_channel is not None]
    return ExecutionReport(
        macs=sum(layer.macs for layer in layers),
        in_float=tuple(sorted(floats, key=lambda layer: -layer.macs)),
        per_channel=all(scales) if scales else None,
        partitions=partitions,
        input_type=input_type,
        output_type=output_type,
    )
