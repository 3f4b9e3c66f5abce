"""Builds model.engine from model.onnx on the NVIDIA GPU that will run it.

    python build_engine.py [--max-batch N] [--timing-cache FILE]

For TensorRT 10.3 to 11 and TensorRT for RTX. Precision is in the graph: the network is built
strongly typed. An engine runs on this kind of GPU and this version only.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from common import FOLDER, BundleError, check_files, finish, install, open_model, record
from runtime import ENGINE, Device, complaint, logger, tensorrt


def main() -> int:
    parser = argparse.ArgumentParser(description="Build model.engine on this GPU.")
    parser.add_argument("--max-batch", type=int, default=8, metavar="N", help="8 by default")
    parser.add_argument(
        "--timing-cache", type=Path, default=FOLDER / "timing.cache", metavar="FILE",
        help="kernel timings, which make the next build faster; timing.cache by default",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.max_batch < 1:
        parser.error("--max-batch is at least 1")
    check_files()
    try:
        trt = tensorrt()
    except ImportError as error:
        raise BundleError(str(error), install("runtime")) from None
    check_device(trt, Device())  # complains before the long work
    start = time.monotonic()
    model = FOLDER / record()["model_file"]
    engine = build(trt, model, arguments.max_batch, arguments.timing_cache)
    _write(FOLDER / ENGINE, engine)
    open_model(threads=1)
    seconds = time.monotonic() - start
    print(f"{ENGINE}: {len(engine):,} bytes by {trt.__name__} {trt.__version__}, {seconds:.0f} s")
    return 0


def check_device(trt: Any, device: Device) -> None:
    """Raise `BundleError` for a GPU that engines of `trt` do not run on.

    TensorRT for RTX builds on any machine, but only for those compute capabilities that it names
    and later ones.
    """
    if trt.__name__ != "tensorrt_rtx" or device.capability > (12, 1):
        return
    if "SM{}{}".format(*device.capability) not in trt.ComputeCapability.__members__:
        raise BundleError(
            f"tensorrt_rtx {trt.__version__} runs no engine on {device.name}, of compute "
            "capability {}.{}".format(*device.capability),
            "pip install 'tensorrt>=10.3'",
        )


def build(trt: Any, model: Path, max_batch: int, cache_file: Path) -> bytes:
    """A serialized engine for batches of 1 to `max_batch`, tuned for 1."""
    log = logger(trt)
    try:
        builder = trt.Builder(log)
    except (TypeError, RuntimeError) as error:  # how the bindings report a null pointer
        reason = log.errors[0] if log.errors else error
        raise BundleError(
            f"{trt.__name__} {trt.__version__} does not start: {reason}",
            "look whether `nvidia-smi` (Jetson: `tegrastats`) sees the GPU and its driver",
        ) from None
    # version 10 must be told; 11 has no other networks and ignores it
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.read_bytes()):
        fault = parser.get_error(0)
        raise BundleError(
            f"the parser of {trt.__name__} {trt.__version__} refuses {fault.node_operator()} "
            f"`{fault.node_name()}`: {fault.desc()}"
        )
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    shape = tuple(network.get_input(0).shape)[1:]
    profile.set_shape("image", (1, *shape), (1, *shape), (max_batch, *shape))
    config.add_optimization_profile(profile)
    measures = trt.__name__ == "tensorrt"  # TensorRT for RTX chooses kernels without timing them
    if measures:
        known = cache_file.read_bytes() if cache_file.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BundleError(f"no engine could be built: {complaint(log)}")
    if measures:
        _write(cache_file, bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


def _write(file: Path, content: bytes) -> None:
    """The file appears whole or not at all."""
    scratch = file.with_name(f".{file.name}.partial")
    scratch.write_bytes(content)
    scratch.replace(file)


if __name__ == "__main__":
    finish(main)
