"""What TFLite Micro, the interpreter for microcontrollers, makes of an int8 .tflite file.

The package tflite-micro brings it for x86-64. It has the kernels that a microcontroller compiles
where its vendor has no faster ones, and these round as LiteRT's reference kernels do.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections import Counter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.records import MicroReport
from pipeline.backends.base.spec import versions
from pipeline.backends.tflite.convert import edited
from pipeline.backends.tflite.run import load, open_interpreter
from pipeline.backends.tflite.spec import MICRO
from pipeline.core.errors import PipelineError

IMAGES = 64
"""Calibration images that are compared, at most."""
MAX_STEPS = 1
"""int8 steps that a logit may differ from that of LiteRT's reference kernels."""
ALIGNMENT = 16
"""Bytes: TFLite Micro aligns the arena and what it puts into it."""

_NO_KERNEL = "Didn't find op for builtin opcode"


def report(content: bytes, images: NDArray[np.uint8], where: str) -> MicroReport:
    """Run an int8 model by TFLite Micro and compare its logits with LiteRT's.

    Args:
        content: of the .tflite file.
        images: raw pixels [N, H, W, C].
        where: for an error: what is being compiled.

    Raises:
        PipelineError: for operators that TFLite Micro lacks or cannot run, and for logits that
            differ from those of LiteRT's reference kernels by more than `MAX_STEPS`.
    """
    images = images[:IMAGES]
    micro = logits(content, images, where)
    reference = _Reference(content)
    error = float(np.abs(micro - reference.logits(images)).max())
    steps = error / reference.step
    if not steps <= MAX_STEPS + 1e-3:  # logits are float32 multiples of a step
        raise PipelineError(
            f"TFLite Micro's logits differ from LiteRT's by {steps:.1f} int8 steps",
            where=where,
            fix="set `target: cpu` in backends.tflite, and report the network",
        )
    usual = load(content, threads=1)(images)
    ((package, version),) = versions((MICRO,)).items()
    return MicroReport(
        runtime=f"{package} {version}",
        arena_bytes=smallest_arena(content, where),
        operators=dict(sorted(reference.operators.items())),
        images=len(images),
        max_steps=round(steps, 3),
        same_class=int((micro.argmax(1) == usual.argmax(1)).sum()),
    )


def logits(content: bytes, images: NDArray[np.uint8], where: str) -> NDArray[np.float32]:
    """Logits [N, classes] of raw pixels [N, H, W, C] by TFLite Micro; errors as of `report`."""
    interpreter = _open(content, where)
    found = []
    for i in range(len(images)):
        interpreter.set_input(images[i : i + 1], 0)
        interpreter.invoke()
        found.append(interpreter.get_output(0).copy())
    return np.concatenate(found)


def smallest_arena(content: bytes, where: str) -> int:
    """Bytes of the smallest tensor arena in which TFLite Micro prepares the model."""
    with _Printed() as printed:
        _open(content, where).print_allocations()
    total = re.search(r"Arena allocation total (\d+) bytes", printed.text)
    assert total, printed.text
    # The total is what is in use at the end. Planning needs scratch memory on top of it, which may
    # lie in the part that tensors take later.
    fails, works = _aligned(int(total[1]) // 2), _aligned(int(total[1]) * 2)
    while works - fails > ALIGNMENT:
        middle = _aligned((fails + works) // 2)
        try:
            with _Printed():
                _interpreter(content, middle)
            works = middle
        except RuntimeError:
            fails = middle
    return works


class _Reference:
    """LiteRT with its reference kernels."""

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert.interpreter import OpResolverType

        self._interpreter = open_interpreter(
            content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
        )
        nodes = self._interpreter._get_ops_details()
        self.operators = Counter[str](node["op_name"] for node in nodes)
        scale = self._interpreter._get_tensor_details(nodes[-1]["inputs"][0], 0)["quantization"][0]
        self._last_scale = float(scale) if nodes[-1]["op_name"] == "DEQUANTIZE" else None
        self._spread = 0.0

    @property
    def step(self) -> float:
        """Of the int8 logits; where a recipe left them in float, that of their range in int8."""
        return self._last_scale or self._spread / 255 or 1.0

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        pixels = self._interpreter.get_input_details()[0]["index"]
        output = self._interpreter.get_output_details()[0]["index"]
        found = []
        for i in range(len(images)):
            self._interpreter.set_tensor(pixels, images[i : i + 1])
            self._interpreter.invoke()
            found.append(self._interpreter.get_tensor(output))
        values: NDArray[np.float32] = np.concatenate(found)
        self._spread = float(np.ptp(values))
        return values


def _open(content: bytes, where: str) -> Any:
    printed = _Printed()
    try:
        with printed:
            return _interpreter(content)
    except RuntimeError as error:
        reason = _reason(printed.text) or str(error)
    lacking = _lacking(content) if _NO_KERNEL in reason else ()
    what = f"no kernel for {', '.join(lacking)}" if lacking else f"trouble with it: {reason}"
    raise PipelineError(
        f"TFLite Micro has {what}",
        where=where,
        fix="set `target: cpu` in backends.tflite, or choose another student",
    )


def _interpreter(content: bytes, arena: int | None = None) -> Any:
    """With a tensor arena of so many bytes; None: ten times the model's."""
    from tflite_micro import runtime

    return runtime.Interpreter.from_bytes(content, arena_size=arena)


def _reason(printed: str) -> str:
    """The first line that says what is wrong."""
    lines = [line.strip() for line in printed.splitlines()]
    return next((line for line in lines if line), "")


def _lacking(content: bytes) -> tuple[str, ...]:
    """Names of all operators in the model that TFLite Micro has no kernel for.

    It stops at the first one that it does not know. So each kind is tried in a model of its own,
    which may be refused for any other reason.
    """
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    names = {code: name for name, code in vars(BuiltinOperator).items() if isinstance(code, int)}
    with edited(content) as edit:
        graph = edit.model.subgraphs[0]
        kinds = {operator.opcodeIndex: operator for operator in graph.operators}
        codes = edit.model.operatorCodes
    found = []
    for index, operator in sorted(kinds.items()):
        with edited(content) as edit:
            edit.model.subgraphs[0].operators = [operator]
        printed = _Printed()
        with contextlib.suppress(RuntimeError), printed:
            _interpreter(edit.content)
        if _NO_KERNEL in printed.text:
            found.append(names[codes[index].builtinCode])
    return tuple(sorted(found))


def _aligned(size: int) -> int:
    return size // ALIGNMENT * ALIGNMENT


class _Printed:
    """Keeps what C++ code writes to the process's stderr while it is entered, as `text`."""

    text = ""

    def __enter__(self) -> Self:
        sys.stderr.flush()
        self._file = tempfile.TemporaryFile()
        self._stderr = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        return self

    def __exit__(self, *_: object) -> None:
        os.dup2(self._stderr, 2)
        os.close(self._stderr)
        self._file.seek(0)
        self.text = self._file.read().decode(errors="replace")
        self._file.close()
