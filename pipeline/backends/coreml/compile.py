"""Compiles for Core ML: converted from torch, int8 by ranges that torch finds in the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.job import Compiled, FloatRunner, Job, LayerOutputs, flat
from pipeline.backends.base.job import Compiler as Base
from pipeline.backends.base.spec import BackendSettings
from pipeline.backends.coreml.convert import convert, write
from pipeline.backends.coreml.graph import Evaluator, channels_first
from pipeline.backends.coreml.inspect import QUANTIZED, as_read, front, inspect, layers_of
from pipeline.backends.coreml.mil import Program
from pipeline.backends.coreml.quantize import ASYMMETRIC, quantize
from pipeline.backends.coreml.spec import CoreML, Settings
from pipeline.core.files import temporary_folder

MODEL = "model.mlpackage"
_QUANTIZER = "pairs of quantize and dequantize in the ML program: static, int8 weights per channel"
_UNCHECKED = (
    "UNCHECKED by Core ML itself, which takes a Mac: the figures are of the same program, "
    "evaluated by torch"
)
_FLOAT = "outside conv and linear layers the program computes in float16"


class Compiler(Base):
    """See `backends.base.job.Compiler`."""

    ranges = (ASYMMETRIC,)

    def __init__(self, settings: BackendSettings) -> None:
        assert isinstance(settings, Settings)
        self._target = settings.deployment_target
        self._last: tuple[tuple[Path, str], Any] | None = None

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write `model.mlpackage`: input `image` of 8-bit pixels, output `logits` float32."""
        precision, package = job.artifact.precision, folder / MODEL
        kept: tuple[str, ...] = ()
        notes: tuple[str, ...] = (_UNCHECKED,)
        if job.artifact.int8:
            model = self._converted(job, "fp16")
            with temporary_folder() as scratch:
                write(model, scratch / MODEL)
                made, kept = quantize(model, Program(scratch / MODEL), job)
            write(made, package)
            notes = (_UNCHECKED, CoreML.int8_note, _FLOAT)
        else:
            write(self._converted(job, precision), package)
        quantizer = _QUANTIZER if job.artifact.int8 else None
        return Compiled(MODEL, quantizer, inspect(Program(package)), notes, kept)

    def in_float(self, job: Job, folder: Path) -> Path:
        write(self._converted(job, "fp16"), folder / MODEL)
        return folder / MODEL

    def layer_outputs(self, model: Path, images: NDArray[np.uint8]) -> LayerOutputs:
        """See the base class. Layers are named by their position."""
        program = Program(model)
        layers = [layer.name for layer in layers_of(program) if layer.kind in QUANTIZED]
        names = [as_read(program, layer) for layer in layers]
        parts = list(Evaluator(program).each(channels_first(images), names))
        return {
            str(place): flat(np.concatenate([part[name] for part in parts]))
            for place, name in enumerate(names)
        }

    def float_fed(self, model: Path) -> FloatRunner:
        program = Program(model)
        pixels, evaluator = front(program, model), Evaluator(program)
        (logits,) = program.outputs

        def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
            given = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
            parts = [found[logits] for found in evaluator.each(given, (logits,), at=pixels)]
            return np.concatenate(parts)

        return run

    def _converted(self, job: Job, precision: str) -> Any:
        """The student in float; fp16 and int8, and the rungs of the ladder, share a conversion."""
        key = (job.weights, precision)
        if self._last is None or self._last[0] != key:
            self._last = key, convert(job, precision, self._target)
        return self._last[1]
