"""Builds model.engine from model.onnx on the NVIDIA GPU that will run it.

    python build_engine.py [--max-batch N] [--timing-cache FILE]

For TensorRT 10.3 to 11 and TensorRT for RTX. An engine runs on this kind of GPU and with this
version only.
"""

from __future__ import annotations

from common import FOLDER, BundleError, check_files, finish, install, open_model, record

# isort: split

import argparse
import time
from pathlib import Path


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
    from runtime import ENGINE, Device, Network, refusal, tensorrt, write_whole

    try:
        trt = tensorrt()
    except ImportError as error:
        raise BundleError(str(error), install("runtime")) from None
    device = Device()
    reason = refusal(trt, device.name, device.capability)
    if reason:
        raise BundleError(reason, "pip install 'tensorrt>=10.3'")
    start = time.monotonic()
    network = Network(trt, FOLDER / record()["model_file"])
    engine = network.build(arguments.max_batch, arguments.timing_cache)
    write_whole(FOLDER / ENGINE, engine)
    open_model(threads=1)
    seconds = time.monotonic() - start
    print(f"{ENGINE}: {len(engine):,} bytes by {trt.__name__} {trt.__version__}, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    finish(main)
