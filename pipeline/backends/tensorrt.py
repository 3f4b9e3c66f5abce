"""TensorRT: a portable strongly typed ONNX, and an engine where there is an NVIDIA GPU.

The same code serves TensorRT 10 and 11 and TensorRT for RTX. Version 11 knows strongly
typed networks only and has no flags for precisions, so the precision is in the graph: half
floats, or Q/DQ pairs. Version 10 takes the same graph if it is told to obey its types.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.backends.base import Compiled, Job, Runner
from pipeline.backends.onnxruntime import MODEL, OnnxRuntime, open_session
from pipeline.backends.qdq import QUANTIZER, quantize
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

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write `model.onnx`, checked by NVIDIA's parser; on a GPU `model.engine`, too.

        Raises `PipelineError` with the parser's or builder's own words.
        """
        file = folder / MODEL
        int8 = job.precision == "int8"
        if int8:
            onnx.save(quantize(job.onnx, job.calibration, "int8 symmetric")[0], file)
        else:
            onnx.save(_half(job.onnx), file)
        network = Network(file)
        notes = ["operators and int8 share are those of the network that NVIDIA's parser made"]
        if int8:
            notes.append("outside convolutions and products the network computes in float32")
        if _has_gpu():
            (folder / ENGINE).write_bytes(network.build())
            notes.append("the engine runs on this GPU only and is not the same bytes in each build")
        else:
            notes.append(
                "no engine was built: no NVIDIA GPU was found here. An engine is bound to its "
                "GPU; build it there from the ONNX file"
            )
        return Compiled(
            model_file=ENGINE if _has_gpu() else MODEL,
            quantizer=f"{QUANTIZER}, int8 symmetric activations" if int8 else None,
            operators=network.operators(),
            int8_op_share=network.int8_share(),
            notes=tuple(notes),
        )

    def load(self, model: Path, threads: int) -> Runner:
        """The engine on the GPU; without one, the ONNX file beside it in ONNX Runtime.

        An artifact that was compiled elsewhere without a GPU is built first, in memory.
        """
        portable = model.with_name(MODEL)
        if self.unmeasurable():
            return open_session(portable, threads)
        engine = model.read_bytes() if model.suffix == ".engine" else Network(portable).build()
        return _open_engine(engine, str(model))

    def evaluator(self) -> str:
        if reason := self.unmeasurable():
            return f"{OnnxRuntime().evaluator()} on the same graph ({reason})"
        import torch

        name = _installed()[0]
        version = importlib.metadata.version(name)
        return f"{name} {version} on {torch.cuda.get_device_name()}"

    def unmeasurable(self) -> str | None:
        if not _has_gpu():
            return "no NVIDIA GPU here"
        return None if _installed() else "neither tensorrt nor tensorrt-rtx is installed"


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

    def operators(self) -> dict[str, int]:
        """Layers by kind and type; `int8` where every operand comes dequantized from int8."""
        kinds = Counter(
            f"{layer.type.name} {'INT8' if self._in_int8(layer) else layer.get_output_type(0).name}"
            for layer in self._layers()
            if layer.type.name != "CONSTANT"
        )
        return {name.lower(): count for name, count in sorted(kinds.items())}

    def int8_share(self) -> float:
        products = [layer for layer in self._layers() if layer.type.name in _PRODUCTS]
        return sum(map(self._in_int8, products)) / max(1, len(products))

    def _layers(self) -> list[Any]:
        return [self._network.get_layer(i) for i in range(self._network.num_layers)]

    def _in_int8(self, layer: Any) -> bool:
        if layer.type.name not in _PRODUCTS or layer.num_inputs < 2:
            return False
        dequantized = {
            maker.get_output(0).name for maker in self._layers() if maker.type.name == "DEQUANTIZE"
        }
        operands = [layer.get_input(i) for i in range(2)]
        return all(operand is not None and operand.name in dequantized for operand in operands)

    def _complaint(self, otherwise: str) -> str:
        return self._log.errors[0] if self._log.errors else otherwise


_PRODUCTS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")


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
    names = _installed() if _has_gpu() else tuple(reversed(_installed()))
    if not names:
        raise PipelineError(
            "neither tensorrt nor tensorrt-rtx is installed",
            fix="`python -m pipeline doctor` prints the command that installs it",
        )
    return importlib.import_module(_MODULES[names[0]])


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


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
