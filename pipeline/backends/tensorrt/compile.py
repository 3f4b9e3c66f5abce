"""Compiles for TensorRT: a portable strongly typed ONNX graph, and an engine where there is a GPU.

The same graph serves TensorRT 10 and 11 and TensorRT for RTX. Version 11 has strongly typed
networks only and no flags for precisions, so the precision is in the graph: float16, or Q/DQ pairs.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx

from pipeline.backends.base.job import Compiled, Job
from pipeline.backends.base.onnx_inside import OnnxCompiler
from pipeline.backends.base.qdq import QUANTIZER, quantize
from pipeline.backends.tensorrt.inspect import inspect
from pipeline.backends.tensorrt.run import Network
from pipeline.backends.tensorrt.spec import BACKEND, ENGINE, MAX_BATCH, MODEL, lab_module


class Compiler(OnnxCompiler):
    """See `backends.base.job.Compiler`.

    Layers are read from the portable graph in ONNX Runtime, with a GPU, too, because an engine
    hides them. Each Q/DQ pair is computed there as a rounding.
    """

    int8_kernels = False

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write `model.onnx`, checked by NVIDIA's parser, and `model.engine` where a GPU runs it.

        Raises:
            PipelineError: with the first error of a converter, the parser or the builder.
        """
        file = folder / MODEL
        notes = ["what runs in int8 is read from the network that NVIDIA's parser made"]
        kept: tuple[str, ...] = ()
        if job.artifact.int8:
            made = quantize(job, "int8 symmetric")
            model, kept = made.model, made.kept_float
            notes.append("outside conv and linear layers the network computes in float32")
        else:
            with job.refusals("onnxruntime.transformers"):
                model = _half(job.onnx)
        onnx.save(model, file)
        trt, reason = lab_module(), BACKEND.unmeasurable()
        with job.refusals("TensorRT", (RuntimeError,)):
            network = Network(trt, file)
            if reason is None:
                (folder / ENGINE).write_bytes(network.build(MAX_BATCH))
        if reason is None:
            notes.append("the engine runs on this GPU only and is not the same bytes in each build")
        else:
            notes.append(
                f"no engine was built: {reason}. An engine is bound to its GPU; build it there "
                "from the ONNX file"
            )
        return Compiled(
            model_file=MODEL if reason else ENGINE,
            quantizer=f"{QUANTIZER}, int8 symmetric activations" if job.artifact.int8 else None,
            execution=inspect(trt, network.network),
            notes=tuple(notes),
            kept_float=kept,
        )


def _half(source: Path) -> onnx.ModelProto:
    """The exported student with float16 weights and activations; its logits stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that round to the smallest half
        model: onnx.ModelProto = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    return model
