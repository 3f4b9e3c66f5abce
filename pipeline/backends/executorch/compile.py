"""Compiles for ExecuTorch: lowered from torch to XNNPACK, quantized by torchao."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.job import Compiled, FloatRunner, Job, LayerOutputs
from pipeline.backends.base.job import Compiler as Base
from pipeline.backends.base.spec import BackendSettings
from pipeline.backends.executorch.run import load
from pipeline.core.errors import PipelineError

MODEL_FILE = "model.pte"
_QUANTIZER = "torchao PT2E by XNNPACKQuantizer: static, int8 weights per channel"
_FLOATS = "XNNPACK computes these in float, between conversions, beside layers: {}"


class Compiler(Base):
    """See `backends.base.job.Compiler`."""

    ranges = ("min-max", "moving min-max")

    def __init__(self, settings: BackendSettings) -> None:
        del settings  # they only say which precisions are asked for

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write `model.pte`: input `image` uint8 [1, H, W, C], output `logits` float32.

        Raises:
            PipelineError: where a tool refuses the network, or the runtime the program.
        """
        with _quiet():
            from pipeline.backends.executorch.inspect import in_float, inspect, layer_names

        content = _lowered(job)
        (folder / MODEL_FILE).write_bytes(content)
        with job.refusals("ExecuTorch", (RuntimeError,)):  # some programs that it lowers do not run
            load(content, threads=1)(job.calibration[:1])
        kept = job.kept_float(layer_names(content)) if job.recipe.float_layers else ()
        execution, quantizer = inspect(content), None
        notes: tuple[str, ...] = ()
        if job.artifact.int8:
            quantizer = _QUANTIZER
            floats = ", ".join(f"{count} {kind}" for kind, count in in_float(content).items())
            notes = (_FLOATS.format(floats),) if floats else ()
        return Compiled(MODEL_FILE, quantizer, execution, notes, kept)

    def in_float(self, job: Job, folder: Path) -> Path:
        artifact = replace(job.artifact, precision="fp32")
        file = folder / MODEL_FILE
        file.write_bytes(_lowered(replace(job, artifact=artifact)))
        return file

    def layer_outputs(self, model: Path, images: NDArray[np.uint8]) -> LayerOutputs:
        with _quiet():
            from pipeline.backends.executorch.inspect import layer_outputs

        return layer_outputs(model.read_bytes(), images)

    def float_fed(self, model: Path) -> FloatRunner:
        with _quiet():
            from pipeline.backends.executorch.program import Program

        program = Program(model.read_bytes())
        try:
            program.feed_normalised()
        except ValueError as error:
            raise PipelineError(
                f"reads its pixels in an unknown way: {error}", where=str(model)
            ) from None
        return load(program.content(), threads=1)


def _lowered(job: Job) -> bytes:
    with _quiet():
        from pipeline.backends.executorch.lower import in_float, in_int8

        with job.refusals("ExecuTorch"):
            return in_int8(job) if job.artifact.int8 else in_float(job)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tools' known warnings; errors and other warnings pass."""
    for chatty in ("torchao", "torch.utils._pytree"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="executorch")
        yield
