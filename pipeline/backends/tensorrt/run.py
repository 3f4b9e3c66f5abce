"""Builds and runs TensorRT engines on an NVIDIA GPU: in the lab and, as runtime.py, in bundles.

For TensorRT 10.3 or newer and TensorRT for RTX. Needs NumPy, TensorRT and CUDA's driver, which
handles the buffers and is installed wherever an NVIDIA GPU works. The precision is in the graph:
networks are built strongly typed. All errors are `RuntimeError`, a missing package `ImportError`.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any, Callable

import numpy as np

ENGINE = "model.engine"
OLDEST = (10, 3)
BUILD = "python build_engine.py"

Runner = Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]


def load(model: str, threads: int, batch: int = 0) -> Runner:
    """A function of raw pixels uint8 [N, H, W, C] to logits float32 [N, classes].

    Args:
        model: a file beside which `model.engine` lies, or that file itself.
        threads: of the CPU; unused.
        batch: images per call. The engine takes as many at a time as it was built for.
    """
    del threads, batch
    file = Path(model).with_name(ENGINE)
    if not file.is_file():
        raise RuntimeError(
            f"there is no {ENGINE} yet, as it is built on the GPU that runs it: {BUILD}"
        )
    return open_engine(file.read_bytes())


def open_engine(content: bytes) -> Runner:
    """The runner of a serialized engine; `RuntimeError` for one that does not fit this machine."""
    trt = tensorrt()
    log = logger(trt)
    device = Device()
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise RuntimeError(
            f"{trt.__name__} {trt.__version__} cannot read {ENGINE}: {complaint(log)}; "
            f"an engine fits one GPU and one version: {BUILD}"
        )
    context = engine.create_execution_context()
    if context is None:
        raise RuntimeError(f"the engine cannot be prepared: {complaint(log)}")
    most = int(engine.get_tensor_profile_shape("image", 0)[2][0])
    shape = tuple(engine.get_tensor_shape("image"))[1:]
    classes = int(engine.get_tensor_shape("logits")[-1])
    pixels = device.allocate(most * int(np.prod(shape)))
    answer = device.allocate(most * classes * 4)
    context.set_tensor_address("image", pixels)
    context.set_tensor_address("logits", answer)
    chosen = [0]  # the batch that the context is prepared for

    def part(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        count = len(images)
        if chosen[0] != count:
            context.set_input_shape("image", (count, *shape))
            chosen[0] = count
        device.upload(np.ascontiguousarray(images), pixels)
        if not context.execute_async_v3(device.stream):
            raise RuntimeError(f"the engine failed: {complaint(log)}")
        logits = np.empty((count, classes), np.float32)
        device.download(answer, logits)
        return logits

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if images.shape[1:] != shape or images.dtype != np.uint8:
            raise RuntimeError(
                f"images are uint8 {['N', *shape]}, not {images.dtype} {list(images.shape)}"
            )
        parts = [part(images[i : i + most]) for i in range(0, len(images), most)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return run


def versions() -> dict[str, str]:
    """The version of TensorRT by the name of its module."""
    trt = tensorrt()
    return {trt.__name__: trt.__version__}


def tensorrt() -> Any:
    """The module, TensorRT's own first. Raises `ImportError` where there is none."""
    for name in ("tensorrt", "tensorrt_rtx"):
        if importlib.util.find_spec(name):
            trt = importlib.import_module(name)
            found = tuple(int(part) for part in trt.__version__.split(".")[:2])
            if name == "tensorrt" and found < OLDEST:
                raise RuntimeError(
                    f"TensorRT {trt.__version__} is too old for strongly typed int8 networks: "
                    "install 10.3 or newer (Jetson: JetPack 6.1 or newer)"
                )
            return trt
    raise ImportError("neither tensorrt nor tensorrt_rtx is installed")


class Network:
    """A strongly typed network, as NVIDIA's parser reads it from an ONNX file.

    Args:
        trt: TensorRT's module.
        model: path of the ONNX file.

    Raises:
        RuntimeError: with the first error of the builder or the parser.
    """

    def __init__(self, trt: Any, model: Path) -> None:
        self._trt = trt
        self._log = logger(trt)
        version = f"{trt.__name__} {trt.__version__}"
        try:
            self._builder = trt.Builder(self._log)
        except (TypeError, RuntimeError) as error:  # the bindings' answer to a null pointer
            raise RuntimeError(
                f"{version} does not start: {complaint(self._log, str(error))}. It needs an NVIDIA "
                "GPU and its driver, which `nvidia-smi` (Jetson: `tegrastats`) shows; only the "
                "builder of tensorrt-rtx-cu13 needs none"
            ) from None
        # Version 10 needs the flag; version 11 has no other networks and ignores it.
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = self._builder.create_network(typed)
        self._parser = trt.OnnxParser(self.network, self._log)  # owns the weights
        if not self._parser.parse(model.read_bytes()):
            fault = self._parser.get_error(0)
            raise RuntimeError(
                f"the parser of {version} refuses {fault.node_operator()} "
                f"`{fault.node_name()}`: {fault.desc()}"
            )

    def build(self, max_batch: int, timing_cache: Path | None = None) -> bytes:
        """A serialized engine for batches of 1 to `max_batch`, tuned for 1.

        Args:
            max_batch: the largest batch.
            timing_cache: file of kernel timings, read and written to make later builds faster.
                TensorRT for RTX chooses kernels without timing them and leaves it alone.
        """
        config = self._builder.create_builder_config()
        profile = self._builder.create_optimization_profile()
        shape = tuple(self.network.get_input(0).shape)[1:]
        profile.set_shape("image", (1, *shape), (1, *shape), (max_batch, *shape))
        config.add_optimization_profile(profile)
        cache = timing_cache if self._trt.__name__ == "tensorrt" else None
        if cache:
            known = cache.read_bytes() if cache.is_file() else b""
            config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
        engine = self._builder.build_serialized_network(self.network, config)
        if engine is None:
            raise RuntimeError(f"no engine could be built: {complaint(self._log)}")
        if cache:
            write_whole(cache, bytes(config.get_timing_cache().serialize()))
        return bytes(engine)


def write_whole(file: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    scratch = file.with_name(f".{file.name}.partial")
    scratch.write_bytes(content)
    scratch.replace(file)


def refusal(trt: Any, name: str, capability: tuple[int, int]) -> str | None:
    """Why engines of the module `trt` do not run on a GPU; None where they do.

    TensorRT for RTX builds on any machine, but its engines run only on the compute capabilities
    that it names and on later ones. 1.7 names 7.5, 8.0, 8.6, 8.9, 12.0 and 12.1, neither Jetson
    (8.7) nor Hopper (9.0); on 9.0 an engine was seen to fail.

    Args:
        trt: TensorRT's module.
        name: of the GPU, for the message.
        capability: its compute capability, major and minor.
    """
    if trt.__name__ != "tensorrt_rtx" or capability > (12, 1):
        return None
    if "SM{}{}".format(*capability) in trt.ComputeCapability.__members__:
        return None
    return (
        f"{trt.__name__} {trt.__version__} runs no engine on {name}, of compute capability "
        "{}.{}".format(*capability)
    )


def logger(trt: Any) -> Any:
    """A logger for TensorRT that keeps errors in `errors` and drops everything else."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())

    return Log()


def complaint(log: Any, otherwise: str = "no reason given") -> str:
    """The first error that a `logger` kept."""
    return str(log.errors[0]) if log.errors else otherwise


class Device:
    """The first GPU, by CUDA's driver API: one stream, buffers, and copies in both directions.

    `name` is the driver's, `capability` CUDA's compute capability, major and minor.
    """

    def __init__(self) -> None:
        name = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
        try:
            self._cuda = ctypes.CDLL(name)
        except OSError as error:
            raise RuntimeError(f"there is no NVIDIA driver here: {error}") from None
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        label = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", label, ctypes.c_int(len(label)), device)
        self.name = label.value.decode()
        self.capability = self._attribute(75, device), self._attribute(76, device)
        # TensorRT computes in the primary context.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(1))  # non-blocking
        self._stream = stream

    def _attribute(self, number: int, device: ctypes.c_int) -> int:
        """By its number in CUdevice_attribute of cuda.h."""
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(number), device)
        return value.value

    @property
    def stream(self) -> int:
        return self._stream.value or 0

    def allocate(self, size: int) -> int:
        """Address of `size` bytes on the GPU; they live as long as the process."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer.value

    def upload(self, source: np.ndarray[Any, Any], target: int) -> None:
        host, size = ctypes.c_void_p(source.ctypes.data), ctypes.c_size_t(source.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(target), host, size, self._stream)

    def download(self, source: int, target: np.ndarray[Any, Any]) -> None:
        """Copy, and wait for everything before it on the stream."""
        host, size = ctypes.c_void_p(target.ctypes.data), ctypes.c_size_t(target.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", host, ctypes.c_uint64(source), size, self._stream)
        self._call("cuStreamSynchronize", self._stream)

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._cuda, function)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(ctypes.c_int(status), ctypes.byref(text))
            reason = (text.value or b"unknown error").decode()
            raise RuntimeError(f"CUDA's {function} failed: {reason}")
