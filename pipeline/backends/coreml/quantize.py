"""int8 of an ML program: pairs of `quantize` and `dequantize`, and int8 weights.

coremltools' `linear_quantize_activations` asks Core ML for the ranges of activations, and so needs
a Mac. Here they come from the same program, evaluated by torch; the operators whose inputs are
rounded are those of that function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.backends.base.job import Job
from pipeline.backends.coreml.convert import converting, passes
from pipeline.backends.coreml.graph import Evaluator, channels_first
from pipeline.backends.coreml.inspect import QUANTIZED, front, layers_of
from pipeline.backends.coreml.mil import Program, quiet
from pipeline.core.progress import track
from pipeline.data.batches import batches
from pipeline.networks import grid

with quiet():
    from coremltools.converters.mil.converter import mil_convert
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as everywhere
    from coremltools.converters.mil.mil import Operation, Var
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.models.utils import _apply_graph_pass

IMAGES = 64
"""Calibration images that are evaluated at once, at most: see `pipeline.data.batches`."""
ASYMMETRIC = "asymmetric min-max"
ROUNDED = (*QUANTIZED, "add", "avg_pool", "max_pool")
"""Operators whose inputs are rounded: `SUPPORTED_OP_TYPES` of coremltools 9.0."""

_BLOCKS_FROM = 9
"""The version of the format that has `constexpr_blockwise_shift_scale` in the place of the older
operator: that of iOS 18."""
_LEAST_SCALE = float(np.finfo(np.float16).tiny)


class Grid:
    """Scale and zero point of an activation: real value = scale x (integer - zero point).

    Args:
        low, high: its range over the calibration set.
        asymmetric: let the integers span just this range; else, where it is not all positive, int8
            with zero point 0.
    """

    def __init__(self, low: float, high: float, *, asymmetric: bool) -> None:
        low, high = min(low, 0.0), max(high, 0.0)
        self.zero_point = 0
        if low < 0 and not asymmetric:
            self.dtype, span, steps = "int8", max(-low, high), 127
        else:
            self.dtype, span, steps = "uint8", high - low, 255
        self.scale = float(np.float16(max(span / steps, _LEAST_SCALE)))
        if asymmetric:
            self.zero_point = int(np.clip(np.round(-low / self.scale), 0, 255))

    @classmethod
    def of_pixels(cls) -> Grid:
        """That of (x - 128) / 64, on which pixels are exact."""
        its = cls(grid.LOWEST, grid.HIGHEST, asymmetric=False)
        its.scale = grid.SCALE
        return its


def quantize(model: Any, program: Program, job: Job) -> tuple[Any, tuple[str, ...]]:
    """Quantize the float16 program of the job's student, by the job's recipe.

    Args:
        model: coremltools' `MLModel`.
        program: the same, as it was read back from its package.
        job: its calibration images give the ranges.

    Returns:
        The quantized `MLModel`, and the names of the layers that the recipe left in float.

    Raises:
        PipelineError: for a student that does not normalise by (x - 128) / 64, and one that
            coremltools refuses.
    """
    pixels = front(program, job.weights)
    layers = [layer.name for layer in layers_of(program) if layer.kind in QUANTIZED]
    kept = job.kept_float(layers)
    names = list(dict.fromkeys(_rounded(program, kept)))
    evaluator = Evaluator(program)
    ranges = _ranges(evaluator, names, job)
    asymmetric = job.recipe.ranges == ASYMMETRIC
    grids = {name: Grid(*ranges[name], asymmetric=asymmetric) for name in names}
    grids[pixels] = Grid.of_pixels()
    rounding = _Rounding({name: grids[name] for name in names}, set(layers) - set(kept))
    spec = model.get_spec()
    version = spec.specificationVersion
    with job.refusals("Core ML's converter"), converting():
        rounded = _apply_graph_pass(model, rounding, version, return_pymil_prog=True)
        made = mil_convert(
            rounded,
            convert_from="milinternal",
            convert_to="mlprogram",
            specification_version=version,
            compute_units=model.compute_unit,
            model_description=spec.description,
            pass_pipeline=passes(),
            skip_model_load=True,
        )
    return made, kept


def _rounded(program: Program, kept: tuple[str, ...]) -> Iterator[str]:
    """Names of the activations that are rounded: the inputs of `ROUNDED`, but not constants."""
    for op in program.ops:
        if op.kind not in ROUNDED or op.outputs[0] in kept:
            continue
        operands = [op.inputs[name][0] for name in ("x", "y") if name in op.inputs]
        if any(program.is_constant(one) for one in operands):
            continue
        yield from (one for one in operands if isinstance(one, str))


def _ranges(evaluator: Evaluator, names: list[str], job: Job) -> dict[str, tuple[float, float]]:
    """The smallest and largest value of each activation over the calibration set."""
    found = dict.fromkeys(names, (np.inf, -np.inf))
    parts = track(
        batches(job.calibration, IMAGES), "ranges", total=len(job.calibration), step=IMAGES
    )
    for part in parts:
        for values in evaluator.each(channels_first(part), names):
            for name, one in values.items():
                low, high = found[name]
                found[name] = min(low, float(one.min())), max(high, float(one.max()))
    return found


class _Rounding(AbstractGraphPass):  # type: ignore[misc]
    """Puts the pairs behind the activations of `grids`, and int8 weights into `layers`."""

    def __init__(self, grids: Mapping[str, Grid], layers: set[str]) -> None:
        self._grids = grids
        self._layers = layers

    def apply(self, prog: Any) -> None:
        block = prog.functions["main"]
        with block:
            operations = list(block.operations)
            for op, after in zip(operations, [*operations[1:], None], strict=True):
                if op.op_type in QUANTIZED and op.outputs[0].name in self._layers:
                    _narrow(op, in_blocks=block.opset_version.value >= _BLOCKS_FROM)
                for var in op.outputs:
                    if var.name in self._grids:
                        _round(var, self._grids[var.name], after)


def _round(var: Var, to: Grid, after: Operation) -> None:
    """Let all readers of `var`, which stand behind the operator `after` or are it, read it rounded
    to a grid."""
    scale = np.float16(to.scale)
    zero = np.uint8(to.zero_point) if to.zero_point else None
    whole = mb.quantize(
        input=var, scale=scale, zero_point=zero, output_dtype=to.dtype, before_op=after
    )
    real = mb.dequantize(input=whole, scale=scale, zero_point=zero, before_op=after)
    var.op.enclosing_block.replace_uses_of_var_after_op(
        anchor_op=real.op, old_var=var, new_var=real
    )


def _narrow(op: Operation, *, in_blocks: bool) -> None:
    """Give a layer int8 weights with a scale per output channel, which is their first axis."""
    weight = op.inputs["weight"]
    values = weight.val.astype(np.float32)
    largest = np.abs(values).max(axis=tuple(range(1, values.ndim)))
    scale = np.maximum(largest / 127, _LEAST_SCALE).astype(np.float16)
    steps = values / scale.astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
    narrow = np.clip(np.round(steps), -127, 127).astype(np.int8)
    if in_blocks:
        real = mb.constexpr_blockwise_shift_scale(
            data=narrow, scale=scale.reshape(-1, *[1] * (values.ndim - 1)), before_op=op
        )
    else:
        real = mb.constexpr_affine_dequantize(
            quantized_data=narrow, zero_point=np.int8(0), scale=scale, axis=0, before_op=op
        )
    op.enclosing_block.replace_uses_of_var_after_op(
        anchor_op=real.op, old_var=weight, new_var=real, no_check_var_types=True
    )
