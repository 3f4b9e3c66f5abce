"""Compiles for TensorRT: a portable strongly typed ONNX graph, and an engine where there is a GPU.

The same code serves TensorRT 10 and 11 and TensorRT for RTX. Version 11 knows strongly typed
networks only and has no flags for precisions, so the precision is in the graph: float16, or Q/DQ
pairs. Version 10 takes the same graph if it is told to obey its types.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.backends.base import onnx_inside
from pipeline.backends.base.job import Compiled, FloatRunner, Job, LayerOutputs
from pipeline.backends.base.qdq import QUANTIZER, RANGES, quantize
from pipeline.backends.base.records import ExecutionReport
from pipeline.backends.base.spec import BackendSettings
from pipeline.backends.tensorrt.inspect import inspect
from pipeline.backends.tensorrt.run import logger
from pipeline.backends.tensorrt.spec import (
    BACKEND,
    ENGINE,
    MODEL,
    MODULES,
    Gpu,
    find_gpu,
    installed,
)
from pipeline.core.errors import PipelineError

MAX_BATCH = 256


class Compiler:
    """See `backends.base.job.Compiler`."""

    ranges: ClassVar[tuple[str, ...]] = RANGES
    bias_correction: ClassVar[bool] = False

    def __init__(self, settings: BackendSettings) -> None:
        del settings  # they only say which precisions are asked for

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write `model.onnx`, checked by NVIDIA's parser, and `model.engine` where one runs here.

        Raises `PipelineError` with the parser's or builder's own words.
        """
        file = folder / MODEL
        int8 = job.artifact.int8
        kept: tuple[str, ...] = ()
        if int8:
            made = quantize(job, "int8 symmetric")
            onnx.save(made.model, file)
            kept = made.kept_float
        else:
            onnx.save(_half(job.onnx), file)
        network = Network(file)
        notes = ["what runs in int8 is read from the network that NVIDIA's parser made"]
        if int8:
            notes.append("outside conv and linear layers the network computes in float32")
        reason = BACKEND.unmeasurable()
        if reason:
            notes.append(
                f"no engine was built: {reason}. An engine is bound to its GPU; build it there "
                "from the ONNX file"
            )
        else:
            (folder / ENGINE).write_bytes(network.build())
            notes.append("the engine runs on this GPU only and is not the same bytes in each build")
        return Compiled(
            model_file=MODEL if reason else ENGINE,
            quantizer=f"{QUANTIZER}, int8 symmetric activations" if int8 else None,
            execution=network.execution(),
            notes=tuple(notes),
            kept_float=kept,
        )

    def in_float(self, job: Job, folder: Path) -> Path:  # noqa: ARG002 - it exists already
        return job.onnx

    def layer_outputs(self, model: Path, images: NDArray[np.uint8]) -> LayerOutputs:
        """By ONNX Runtime on the portable graph, on a GPU, too: an engine shows no insides."""
        return onnx_inside.layer_outputs(model.with_name(MODEL), images)

    def float_fed(self, model: Path) -> FloatRunner:
        """The portable graph in ONNX Runtime, each Q/DQ pair as the rounding it stands for."""
        return onnx_inside.float_fed(model.with_name(MODEL), int8_kernels=False)


class Network:
    """A strongly typed network as NVIDIA's parser reads it from an ONNX file.

    Raises `PipelineError` with the parser's first complaint.
    """

    def __init__(self, file: Path) -> None:
        trt = _tensorrt()
        self._log = logger(trt)
        try:
            self._builder = trt.Builder(self._log)
        except (TypeError, RuntimeError) as error:  # how the bindings report a null pointer
            raise PipelineError(
                f"{trt.__name__} {trt.__version__} does not start: {self._complaint(str(error))}",
                fix="without an NVIDIA GPU install tensorrt-rtx-cu13, whose parser needs none",
            ) from None
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._network = self._builder.create_network(typed)
        self._parser = trt.OnnxParser(self._network, self._log)  # owns the weights
        if not self._parser.parse(file.read_bytes()):
            fault = self._parser.get_error(0)
            raise PipelineError(
                f"the parser of {trt.__name__} {trt.__version__} refuses {fault.node_operator()} "
                f"`{fault.node_name()}`: {fault.desc()}",
                where=str(file),
            )

    def build(self) -> bytes:
        """A serialized engine for batches of 1 to `MAX_BATCH`, tuned for 1."""
        config = self._builder.create_builder_config()
        profile = self._builder.create_optimization_profile()
        shape = tuple(self._network.get_input(0).shape)[1:]
        profile.set_shape("image", (1, *shape), (1, *shape), (MAX_BATCH, *shape))
        config.add_optimization_profile(profile)
        engine = self._builder.build_serialized_network(self._network, config)
        if engine is None:
            raise PipelineError(f"no engine could be built: {self._complaint('no reason given')}")
        return bytes(engine)

    def execution(self) -> ExecutionReport:
        """What it executes."""
        return inspect(_tensorrt(), self._network)

    def _complaint(self, otherwise: str) -> str:
        return self._log.errors[0] if self._log.errors else otherwise


def _tensorrt() -> ModuleType:
    """TensorRT's module. Its builder needs a GPU even to parse; TensorRT for RTX's does not."""
    names = installed() if find_gpu() else tuple(reversed(installed()))
    if not names:
        raise PipelineError(
            "neither tensorrt nor tensorrt-rtx is installed",
            fix="`python -m pipeline doctor` prints the command that installs it",
        )
    return importlib.import_module(MODULES[names[0]])


def refusal(gpu: Gpu) -> str | None:
    """Why the installed TensorRT runs no engine on this GPU; None where it does."""
    if serves(trt := _tensorrt(), gpu.capability):
        return None
    return (
        f"{trt.__name__} {trt.__version__} runs no engine on {gpu.name}, of compute "
        f"capability {'.'.join(map(str, gpu.capability))}: install tensorrt"
    )


def serves(trt: ModuleType, capability: tuple[int, int]) -> bool:
    """Whether engines of `trt` run on a GPU of this compute capability.

    TensorRT for RTX builds on any machine, but only for those that it names and later ones: its
    1.7 names 7.5, 8.0, 8.6, 8.9, 12.0 and 12.1, neither Jetson (8.7) nor Hopper (9.0). That it
    does not run elsewhere was seen on 9.0.
    """
    if trt.__name__ != "tensorrt_rtx" or capability > (12, 1):
        return True
    return "SM{}{}".format(*capability) in trt.ComputeCapability.__members__


def _half(source: Path) -> onnx.ModelProto:
    """The exported student with float16 weights and activations; its logits stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that round to the smallest half
        model: onnx.ModelProto = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    return model
