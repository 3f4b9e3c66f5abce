"""Compiles for ONNX Runtime: the exported model as it is, or quantized by its own quantizer."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import onnx

from pipeline.backends.base.job import Compiled, Job
from pipeline.backends.base.onnx_inside import OnnxCompiler
from pipeline.backends.base.qdq import QUANTIZER, Front, quantize
from pipeline.backends.onnxruntime.inspect import inspect
from pipeline.export.session import open_session

MODEL = "model.onnx"

_ALL_BITS = (
    "weights use all 8 bits; on x86 processors without VNNI, whose 8-bit sums overflow, "
    "`session.x64quantprecision` selects exact and slower kernels"
)
_FLOAT_LAYERS = (
    "open it with `disabled_optimizers=['WeightBiasQuantization']`, or ONNX Runtime rounds the "
    "layers that are kept in float, with one scale for all their channels"
)
_EXACT_INPUT = "pixels enter the first convolution unchanged, at scale 1/64 and zero point 128"


class Compiler(OnnxCompiler):
    """See `backends.base.job.Compiler`."""

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write `model.onnx`: fp32 byte for byte as exported, or int8 as Q/DQ."""
        file = folder / MODEL
        if not job.artifact.int8:
            shutil.copyfile(job.onnx, file)
            return Compiled(MODEL, None, inspect(file))
        made = quantize(job, "uint8")
        exact, kept = _feed_pixels(made.model, made.front), made.kept_float
        onnx.save(made.model, file)
        with job.refusals("ONNX Runtime"):
            open_session(str(file), threads=1)
        notes = (
            _ALL_BITS,
            *((_EXACT_INPUT,) if exact else ()),
            *((_FLOAT_LAYERS,) if kept else ()),
        )
        quantizer = f"{QUANTIZER}, uint8 asymmetric activations"
        return Compiled(MODEL, quantizer, inspect(file), notes, kept)


def _feed_pixels(model: onnx.ModelProto, front: Front) -> bool:
    """Replace casting, normalising and quantizing the pixels by a transposition of bytes.

    The values are the same, as x = round(((x - 128) / 64) / (1 / 64)) + 128. Returns False, and
    changes nothing, for a graph that also uses the float values.
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
