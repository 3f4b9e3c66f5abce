"""ONNX Runtime on CPU: the exported model as it is, or quantized by its own quantizer."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from pipeline.backends.base import Compiled, Job, Runner
from pipeline.backends.qdq import QUANTIZER, Front, quantize

MODEL = "model.onnx"

_FLOAT_PRODUCTS = (
    "Conv",
    "FusedConv",
    "ConvTranspose",
    "Gemm",
    "FusedGemm",
    "MatMul",
    "FusedMatMul",
)
_INT8_PRODUCTS = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")

_ALL_BITS = (
    "weights use all 8 bits on every build machine; `session.x64quantprecision` makes x86 "
    "processors without VNNI, whose 8-bit products overflow, take exact and slower kernels"
)
_EXACT_INPUT = "pixels enter the first convolution unchanged, at scale 1/64 and zero point 128"


class OnnxRuntime:
    name: ClassVar[str] = "onnxruntime"
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write `model.onnx`: fp32 byte for byte as exported, or int8 as Q/DQ."""
        file = folder / MODEL
        int8 = job.precision == "int8"
        notes: tuple[str, ...] = ()
        if int8:
            model, front = quantize(job.onnx, job.calibration, "uint8")
            notes = (_ALL_BITS, _EXACT_INPUT) if _feed_pixels(model, front) else (_ALL_BITS,)
            onnx.save(model, file)
        else:
            shutil.copyfile(job.onnx, file)
        operators = executed_operators(file)
        return Compiled(
            model_file=MODEL,
            quantizer=f"{QUANTIZER}, uint8 asymmetric activations" if int8 else None,
            operators=operators,
            int8_op_share=_int8_share(operators),
            notes=notes,
        )

    def load(self, model: Path, threads: int) -> Runner:
        return open_session(model, threads)

    def evaluator(self) -> str:
        return f"onnxruntime {importlib.metadata.version('onnxruntime')}"

    def unmeasurable(self) -> None:
        """It runs wherever this project does."""


def open_session(model: Path, threads: int) -> Runner:
    """`model` on the CPU provider with `threads` threads that sleep when they have no work."""
    session = onnxruntime.InferenceSession(
        model, _session_options(threads), providers=["CPUExecutionProvider"]
    )

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32]
        (logits,) = session.run(["logits"], {"image": np.ascontiguousarray(images)})
        return logits

    return run


def executed_operators(model: Path) -> dict[str, int]:
    """Operators by type in the graph as this machine's session really runs it."""
    options = _session_options(threads=1)
    with tempfile.TemporaryDirectory() as scratch:
        optimized = Path(scratch, "optimized.onnx")
        options.optimized_model_filepath = str(optimized)
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(optimized).graph
    return dict(sorted(Counter(node.op_type for node in graph.node).items()))


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # it warns whenever an optimised graph is saved
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _int8_share(operators: dict[str, int]) -> float:
    int8 = sum(operators.get(name, 0) for name in _INT8_PRODUCTS)
    return int8 / max(1, int8 + sum(operators.get(name, 0) for name in _FLOAT_PRODUCTS))


def _feed_pixels(model: onnx.ModelProto, front: Front) -> bool:
    """Put the raw pixels where their quantized normalised values stand: they are the same.

    x = round(((x - 128) / 64) / (1 / 64)) + 128, so casting, normalising and quantizing
    give way to a transposition of bytes. False, and nothing changed, for a graph that also
    uses the float values.
    """
    graph = model.graph
    removed = [node for node in graph.node if node.name in front.nodes]
    removed += [
        node
        for node in graph.node
        if front.tensor in node.input and node.op_type == "QuantizeLinear"
    ]
    users = Counter(name for node in graph.node for name in node.input)
    made = [node.output[0] for node in removed[:-1]]
    if len(removed) != len(front.nodes) + 1 or any(users[name] != 1 for name in made):
        return False
    pixels = onnx.helper.make_node(
        "Transpose", ["image"], [removed[-1].output[0]], name="pixels", perm=[0, 3, 1, 2]
    )
    for node in removed:
        graph.node.remove(node)
    graph.node.insert(0, pixels)
    return True
