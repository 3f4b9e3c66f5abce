"""Evaluates the ML program of a .mlpackage by torch on any machine: in the lab, and in bundles.

Core ML runs on Apple's systems alone. This computes what the file says, operator by operator. Sums
are in float32, and what the program declares as float16 is rounded to it. Core ML's own kernels sum
in another order, on the Neural Engine also in float16, and fuse operators; so this proves the file,
not Core ML. Needs NumPy, torch, and coremltools for the definitions of the messages.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any, Callable, Iterable, Iterator, Mapping

import numpy as np
import torch

if __package__:
    from pipeline.backends.coreml.mil import Given, Op, Program
    from pipeline.backends.coreml.operators import OPERATORS
else:  # in a bundle
    from mil import Given, Op, Program  # type: ignore[no-redef]
    from operators import OPERATORS  # type: ignore[no-redef]

TOGETHER, SMALL = 16, 64 * 64
"""Images per call, where an image has at most so many pixels. Larger ones gain nothing by it."""

Runner = Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]


def load(model: str, threads: int, batch: int = 0) -> Runner:
    """A function of raw pixels uint8 [N, H, W, C] to logits float32 [N, classes].

    Args:
        model: path of the .mlpackage.
        threads: of the CPU.
        batch: images per call; the runner takes any number.
    """
    del batch
    evaluator = Evaluator(Program(model))
    (logits,) = evaluator.program.outputs

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            parts = [found[logits] for found in evaluator.each(channels_first(images), (logits,))]
        finally:
            torch.set_num_threads(before)
        return np.concatenate(parts)

    return run


def channels_first(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Raw pixels uint8 [N, H, W, C] as programs take them, float32 [N, C, H, W]."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)


def versions() -> dict[str, str]:
    """The version of torch by its package's name."""
    return {"torch": importlib.metadata.version("torch").partition("+")[0]}


class Evaluator:
    """A program that runs on torch's tensors.

    Raises:
        ValueError: for an operator that is not known here.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._constants: dict[str, Any] = {}
        unknown = sorted({op.kind for op in program.ops} - OPERATORS.keys())
        if unknown:
            raise ValueError(f"operators that are not evaluated here: {', '.join(unknown)}")
        self._steps: list[tuple[Op, dict[str, Any]]] = []
        for op in program.ops:
            fixed = {name: self._fixed(given) for name, given in op.inputs.items()}
            if op.kind == "reshape":  # of several images, too, and with every size
                shape = list(program.types[op.outputs[0]].shape)
                fixed["shape"] = [-1, *shape[1:]] if shape[0] == 1 else shape
            self._steps.append((op, {k: v for k, v in fixed.items() if v is not None}))
            if op.kind.startswith("constexpr_"):
                self._constants[op.outputs[0]] = self._compute(op, self._steps.pop()[1])[0]
        self._batches = all(_keeps_images_apart(program, op) for op, _ in self._steps)
        self._last = {
            one: place
            for place, (op, _) in enumerate(self._steps)
            for given in op.inputs.values()
            for one in given
            if isinstance(one, str)
        }

    def each(
        self, images: np.ndarray[Any, Any], wanted: Iterable[str], at: str | None = None
    ) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """`run` of images [N, ...]: `TOGETHER` in a call where the program allows it, else one.

        A last call of fewer images is filled up: the logits of an image then do not depend on how
        many others are asked for, as they would by the kernels that torch chooses.

        Args:
            images: for the program's only input, or for the output of an operator.
            wanted: see `run`.
            at: the name of that operator's output.
        """
        name, wanted = at or self.program.inputs[0], tuple(wanted)
        step = TOGETHER if self._batches and np.prod(images.shape[2:]) <= SMALL else 1
        for start in range(0, len(images), step):
            part = images[start : start + step]
            whole = np.concatenate([part, *[part[-1:]] * (step - len(part))])
            found = self.run({name: whole}, wanted)
            yield {one: values[: len(part)] for one, values in found.items()}

    def run(
        self, given: Mapping[str, Any], wanted: Iterable[str]
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Values by name.

        Args:
            given: arrays for the inputs or for outputs of operators, which are then not computed.
            wanted: names of inputs or of outputs of operators.
        """
        wanted = set(wanted)
        values = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in given.items()}
        found = {name: values[name].numpy() for name in wanted & values.keys()}
        with torch.no_grad():
            for place, (op, fixed) in enumerate(self._steps):
                if wanted <= found.keys():
                    break
                if op.outputs[0] in given or not self._has_all(op, values):
                    continue
                live = {
                    name: [self._live(one, values) for one in operands]
                    for name, operands in op.inputs.items()
                    if name not in fixed
                }
                arguments = {k: v if k == "values" else v[0] for k, v in live.items()}
                results = self._compute(op, {**fixed, **arguments})
                for name, value in zip(op.outputs, results):
                    values[name] = value
                    if name in wanted:
                        found[name] = value.numpy()
                for operands in op.inputs.values():
                    for one in operands:
                        if isinstance(one, str) and self._last[one] == place:
                            values.pop(one, None)
        return found

    def _has_all(self, op: Op, values: Mapping[str, Any]) -> bool:
        """Whether the operands are there; not so in front of a value that is given."""
        operands = (one for given in op.inputs.values() for one in given)
        return all(one in values or self._known(one) for one in operands)

    def _known(self, operand: Given) -> bool:
        return self.program.is_constant(operand) or operand in self._constants

    def _fixed(self, given: list[Given]) -> Any:
        """A constant operand: numbers and text as Python's, arrays as tensors; None for others."""
        if len(given) != 1 or not self._known(given[0]):
            return None
        return self._live(given[0], {})

    def _live(self, operand: Given, values: Mapping[str, Any]) -> Any:
        if isinstance(operand, str):
            if operand in values:
                return values[operand]
            if operand in self._constants:
                return self._constants[operand]
        value = self.program.value(operand)
        if value.dtype.kind in "Ub" and not value.shape:
            return value.item()
        if value.dtype.kind in "iu" and value.dtype.itemsize > 1:
            return value.tolist()  # axes, sizes, pads
        if value.dtype == np.float16:
            value = value.astype(np.float32)
        return torch.from_numpy(np.array(value))

    def _compute(self, op: Op, arguments: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        results = OPERATORS[op.kind](**arguments)
        results = tuple(results) if isinstance(results, (tuple, list)) else (results,)
        types = [self.program.types[name].dtype for name in op.outputs]
        return tuple(
            value.half().float() if dtype == "float16" else value
            for value, dtype in zip(results, types)
        )


def _keeps_images_apart(program: Program, op: Op) -> bool:
    """Whether an operator of a program for one image can take several along the first axis."""
    leading = [program.types[name].shape[:1] for name in op.outputs]
    leading += [program.types[one].shape[:1] for one in _streams(program, op)]
    if any(size != (1,) for size in leading):
        return False
    rank = len(program.types[op.outputs[0]].shape)
    named = [program.value(op.inputs[name][0]) for name in ("axis", "axes") if name in op.inputs]
    if op.kind in ("quantize", "dequantize"):
        named = []  # an axis of scales
    if any(axis in (0, -rank) for axes in named for axis in np.atleast_1d(axes)):
        return False
    if op.kind == "transpose":
        return int(program.value(op.inputs["perm"][0])[0]) == 0
    if op.kind == "slice_by_index":
        mask = op.inputs.get("end_mask")
        return mask is not None and bool(program.value(mask[0])[0])
    return not op.kind.startswith("reduce_") or bool(named)


def _streams(program: Program, op: Op) -> Iterator[str]:
    """The operands that are outputs of operators or inputs of the program."""
    for given in op.inputs.values():
        for one in given:
            if isinstance(one, str) and not program.is_constant(one):
                maker = program.makers.get(one)
                if maker is None or not maker.kind.startswith("constexpr_"):
                    yield one
