"""TensorRT: a portable strongly typed ONNX, and an engine where there is an NVIDIA GPU.

The same code serves TensorRT 10 and 11 and TensorRT for RTX. Version 11 knows strongly
typed networks only and has no flags for precisions, so the precision is in the graph: half
floats, or Q/DQ pairs. Version 10 takes the same graph if it is told to obey its types.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import math
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.backends.base import (
    Compiled,
    FloatRunner,
    Job,
    LayerOutputs,
    Product,
    Runner,
    matrix_macs,
    prove,
)
from pipeline.backends.onnx_inside import float_fed, layer_outputs
from pipeline.backends.onnx_session import open_session
from pipeline.backends.onnxruntime import MODEL, OnnxRuntime
from pipeline.backends.qdq import QUANTIZER, RANGES, quantize
from pipeline.contracts import Proof
from pipeline.errors import PipelineError

ENGINE = "model.engine"
MAX_BATCH = 256

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx-cu13": "tensorrt_rtx"}
"""Module by distribution; on a GPU the first that is installed counts."""


def _installed() -> tuple[str, ...]:
    return tuple(name for name, module in _MODULES.items() if importlib.util.find_spec(module))


class TensorRT:
    name: ClassVar[str] = "tensorrt"
    packages: ClassVar[tuple[str, ...]] = (
        "onnxruntime",
        "onnx",
        *(_installed() or ("tensorrt-rtx-cu13",)),
    )
    ranges: ClassVar[tuple[str, ...]] = RANGES
    bias_correction: ClassVar[bool] = False

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write `model.onnx`, checked by NVIDIA's parser, and `model.engine` where one runs here.

        Raises `PipelineError` with the parser's or builder's own words.
        """
        file = folder / MODEL
        int8 = job.precision == "int8"
        kept: tuple[str, ...] = ()
        if int8:
            made = quantize(job, "int8 symmetric")
            onnx.save(made.model, file)
            kept = made.kept_float
        else:
            onnx.save(_half(job.onnx), file)
        network = Network(file)
        notes = ["what runs in int8 is told by the network that NVIDIA's parser made"]
        if int8:
            notes.append("outside convolutions and products the network computes in float32")
        reason = self.unmeasurable()
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
            proof=network.proof(),
            notes=tuple(notes),
            kept_float=kept,
        )

    def load(self, model: Path, threads: int) -> Runner:
        """The engine on the GPU; where none runs, the ONNX file beside it in ONNX Runtime.

        There it is computed as it stands: ONNX Runtime's int8 kernels are not TensorRT's, and take
        three times as long for signed activations on x86 without VNNI. An artifact that was
        compiled elsewhere without a GPU is built first, in memory.
        """
        portable = model.with_name(MODEL)
        if self.unmeasurable():
            return open_session(portable, threads, int8_kernels=False)
        engine = model.read_bytes() if model.suffix == ".engine" else Network(portable).build()
        return _open_engine(engine, str(model))

    def in_float(self, job: Job, folder: Path) -> Path:  # noqa: ARG002 - it exists already
        return job.onnx

    def layer_outputs(self, model: Path, images: NDArray[np.uint8]) -> LayerOutputs:
        """By ONNX Runtime on the portable graph, on a GPU, too: an engine shows no insides."""
        return layer_outputs(model if model.suffix == ".onnx" else model.with_name(MODEL), images)

    def float_fed(self, model: Path) -> FloatRunner:
        """The portable graph in ONNX Runtime, as it stands."""
        return float_fed(model.with_name(MODEL), int8_kernels=False)

    def evaluator(self) -> str:
        if reason := self.unmeasurable():
            return f"{OnnxRuntime().evaluator()} on the same graph ({reason})"
        name, gpu = _installed()[0], _gpu()
        assert gpu  # else it is unmeasurable
        return f"{name} {importlib.metadata.version(name)} on {gpu.name}"

    def unmeasurable(self) -> str | None:
        gpu = _gpu()
        if gpu is None:
            return "no NVIDIA GPU here"
        if not _installed():
            return "neither tensorrt nor tensorrt-rtx is installed"
        if not _serves(trt := _tensorrt(), gpu.capability):
            return (
                f"{trt.__name__} {trt.__version__} runs no engine on {gpu.name}, of compute "
                f"capability {'.'.join(map(str, gpu.capability))}: install tensorrt"
            )
        return None


class Network:
    """A strongly typed network as NVIDIA's parser reads it from an ONNX file.

    Raises `PipelineError` with the parser's first complaint.
    """

    def __init__(self, file: Path) -> None:
        trt = _tensorrt()
        self._log = _log(trt)
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

    def proof(self) -> Proof:
        """A product is in int8 where both operands come dequantized, thus from int8."""
        layers = [self._network.get_layer(i) for i in range(self._network.num_layers)]
        dequantizers = {
            layer.get_output(0).name: layer for layer in layers if layer.type.name == "DEQUANTIZE"
        }
        ends = self._network.get_input(0), self._network.get_output(0)
        return prove(
            [_product(layer, dequantizers) for layer in layers if layer.type.name in _PRODUCTS],
            *(_TYPES.get(end.dtype.name, end.dtype.name.lower()) for end in ends),
        )

    def _complaint(self, otherwise: str) -> str:
        return self._log.errors[0] if self._log.errors else otherwise


_PRODUCTS = ("CONVOLUTION", "MATRIX_MULTIPLY")
_TYPES = {"FLOAT": "float32", "HALF": "float16"}


def _product(layer: Any, dequantizers: dict[str, Any]) -> Product:
    """A convolution or matrix product for one image: the batch of every shape is its -1."""
    output = [abs(size) for size in layer.get_output(0).shape]
    operands = [layer.get_input(i) for i in range(layer.num_inputs)]
    sources = [dequantizers.get(operand.name) for operand in operands[:2] if operand is not None]
    if layer.type.name == "MATRIX_MULTIPLY":
        channels, macs = output[-1], matrix_macs([abs(size) for size in operands[0].shape], output)
    else:
        layer.__class__ = _tensorrt().IConvolutionLayer  # else its own attributes are hidden
        weights = math.prod(operands[1].shape) if len(operands) > 1 else layer.kernel.size
        channels, macs = layer.num_output_maps, math.prod(output[2:]) * weights
    per_channel = None
    if len(sources) > 1 and sources[1] and -1 not in sources[1].get_input(0).shape:  # weights
        per_channel = math.prod(sources[1].get_input(1).shape) == channels
    return Product(layer.name, macs, len(sources) > 1 and all(sources), per_channel)


def _open_engine(serialized: bytes, where: str) -> Runner:
    import torch

    trt = _tensorrt()
    log = _log(trt)
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(serialized)
    if engine is None:
        raise PipelineError(
            f"{trt.__name__} {trt.__version__} cannot read this engine: "
            f"{log.errors[0] if log.errors else 'no reason given'}",
            where=where,
            fix="an engine fits one GPU and one version: compile it here, `dvc repro`",
        )
    context = engine.create_execution_context()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    classes = engine.get_tensor_shape("logits")[-1]

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits = np.empty((len(images), classes), np.float32)
        with torch.cuda.stream(stream):
            for start in range(0, len(images), MAX_BATCH):
                part = torch.tensor(images[start : start + MAX_BATCH], device="cuda")
                answer = torch.empty(len(part), classes, device="cuda")
                context.set_input_shape("image", tuple(part.shape))
                context.set_tensor_address("image", part.data_ptr())
                context.set_tensor_address("logits", answer.data_ptr())
                if not context.execute_async_v3(stream.cuda_stream):
                    raise RuntimeError(f"the engine failed: {log.errors}")
                logits[start : start + MAX_BATCH] = answer.cpu().numpy()
        return logits

    return run


def _tensorrt() -> ModuleType:
    """TensorRT's module. Its builder needs a GPU even to parse; TensorRT-RTX's does not."""
    names = _installed() if _gpu() else tuple(reversed(_installed()))
    if not names:
        raise PipelineError(
            "neither tensorrt nor tensorrt-rtx is installed",
            fix="`python -m pipeline doctor` prints the command that installs it",
        )
    return importlib.import_module(_MODULES[names[0]])


class _Gpu(NamedTuple):
    name: str
    capability: tuple[int, int]
    """CUDA's compute capability, major and minor."""


def _gpu() -> _Gpu | None:
    """The GPU that engines are built for and run on."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:  # no driver, which torch would need seconds of importing to say
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    return _Gpu(torch.cuda.get_device_name(), torch.cuda.get_device_capability())


def _serves(trt: ModuleType, capability: tuple[int, int]) -> bool:
    """Whether engines of `trt` run on a GPU of this compute capability.

    TensorRT for RTX builds on any machine, but only for those that it names and later ones: its
    1.7 names 7.5, 8.0, 8.6, 8.9, 12.0 and 12.1, neither Jetson (8.7) nor Hopper (9.0). That it
    does not run elsewhere was seen on 9.0.
    """
    if trt.__name__ != "tensorrt_rtx" or capability > (12, 1):
        return True
    return "SM{}{}".format(*capability) in trt.ComputeCapability.__members__


def _log(trt: ModuleType) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps errors for our own messages; the rest is chatter."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())

    return Log()


def _half(source: Path) -> onnx.ModelProto:
    """The exported student with float16 weights and activations; its logits stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that round to the smallest half
        model: onnx.ModelProto = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    return model
