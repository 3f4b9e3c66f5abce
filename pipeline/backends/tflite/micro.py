"""What TFLite Micro, the interpreter for microcontrollers, makes of an int8 .tflite file.

The package tflite-micro brings it for x86-64. It has the kernels that a microcontroller compiles
where its vendor has no faster ones, and these round as LiteRT's reference kernels do.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

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
WORKER = Path(__file__).with_name("micro_worker.py")

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
    micro, arena = run(content, images, where)
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
        arena_bytes=arena,
        operators=dict(sorted(reference.operators.items())),
        images=len(images),
        max_steps=round(steps, 3),
        same_class=int((micro.argmax(1) == usual.argmax(1)).sum()),
    )


def run(content: bytes, images: NDArray[np.uint8], where: str) -> tuple[NDArray[np.float32], int]:
    """Logits [N, classes] of raw pixels [N, H, W, C] by TFLite Micro, and the smallest arena.

    Args:
        content: of the .tflite file.
        images: raw pixels [N, H, W, C].
        where: see `report`, whose errors it has.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        done = _work(folder, content, images)
        if done.returncode:
            raise _refusal(content, images, done, where)
        logits: NDArray[np.float32] = np.load(folder / "logits.npy")
    return logits, int(done.stdout)


def _work(
    folder: Path, content: bytes, images: NDArray[np.uint8]
) -> subprocess.CompletedProcess[str]:
    """Run the worker. Its own folder is not on the path: modules there are named as Python's."""
    (folder / "model.tflite").write_bytes(content)
    np.save(folder / "images.npy", images)
    command = [sys.executable, "-P", str(WORKER), str(folder)]
    return subprocess.run(command, text=True, errors="replace", capture_output=True)


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


def _refusal(
    content: bytes,
    images: NDArray[np.uint8],
    done: subprocess.CompletedProcess[str],
    where: str,
) -> PipelineError:
    """The error of a model that TFLite Micro does not run, from what the worker printed."""
    lacking = _lacking(content, images) if _NO_KERNEL in done.stderr else ()
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = lines[0] if lines else f"it ended with exit code {done.returncode}"
    what = f"has no kernel for {', '.join(lacking)}" if lacking else f"cannot run it: {reason}"
    return PipelineError(
        f"TFLite Micro {what}",
        where=where,
        fix="set `target: cpu` in backends.tflite, or choose another student",
    )


def _lacking(content: bytes, images: NDArray[np.uint8]) -> tuple[str, ...]:
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
        with tempfile.TemporaryDirectory() as scratch:
            done = _work(Path(scratch), edit.content, images[:1])
        if _NO_KERNEL in done.stderr:
            found.append(names[codes[index].builtinCode])
    return tuple(sorted(found))
