"""Compiles for LiteRT: converted from torch by litert-torch, quantized by ai-edge-quantizer."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.job import Compiled, FloatRunner, Job, LayerOutputs
from pipeline.backends.base.job import Compiler as Base
from pipeline.backends.base.spec import BackendSettings
from pipeline.backends.tflite.convert import (
    SAMPLES,
    Conversions,
    quiet,
    with_finite_padding,
    with_float_input,
    with_pixel_input,
)
from pipeline.backends.tflite.inspect import LAYERS, inspect, layer_outputs
from pipeline.backends.tflite.metadata import with_metadata
from pipeline.backends.tflite.run import load, open_interpreter
from pipeline.backends.tflite.spec import Settings
from pipeline.data.batches import batches
from pipeline.networks import grid

MODEL_FILE = "model.tflite"
SIGNATURE = "serving_default"
FLOAT_IMAGES = 512
"""Calibration images that are normalised at once, at most: see `pipeline.data.batches`."""

_QUANTIZER = "ai-edge-quantizer"
_HALF = f"{_QUANTIZER}: weights stored in float16, from which XNNPACK computes in float32"
_HARD_SWISH = "HARD_SWISH int8"
_SPLIT = (
    "XNNPACK has no kernel for {} int8 hard-swishes, which split the graph; `hard_swish: "
    "decomposed` of backends.tflite writes them as operators that it has"
)


class Compiler(Base):
    """See `backends.base.job.Compiler`."""

    ranges = ("min-max", "mean min-max")

    def __init__(self, settings: BackendSettings) -> None:
        assert isinstance(settings, Settings)
        self._settings = settings
        self._conversions = Conversions()

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write `model.tflite`: input `image` uint8 [1, H, W, C], output `logits` float32.

        The batch is fixed at 1, the shape that delegates of phones want. Metadata and labels are
        inside the file.
        """
        artifact = job.artifact
        quantizer: str | None = None
        kept: tuple[str, ...] = ()
        with quiet():
            if artifact.int8:
                quantizer = f"{_QUANTIZER}: static, int8 weights per channel"
                content, kept = self._int8(job)
            else:
                content = self._conversions.from_pixels(job)
            if artifact.precision == "fp16":
                quantizer = _HALF
                with job.refusals(_QUANTIZER):
                    content = _float16(content)
        channels, classes = job.manifest.channels, job.manifest.classes
        about = f"An image classifier of {len(classes)} classes, {artifact.precision}."
        path = folder / MODEL_FILE
        path.write_bytes(with_metadata(content, artifact.student, about, channels, classes))
        with job.refusals("LiteRT", (RuntimeError,)):
            execution = inspect(open_interpreter(str(path)))
            load(str(path), threads=1)(job.calibration[:SAMPLES])
        micro = None
        if artifact.int8 and self._settings.target == "micro":
            from pipeline.backends.tflite.micro import report

            micro = report(path.read_bytes(), job.calibration, f"compile of {artifact}")
        left = execution.partitions.builtin.get(_HARD_SWISH, 0) if execution.partitions else 0
        notes = [_SPLIT.format(left)] if left else []
        notes += [f"on a microcontroller: {micro}"] if micro else []
        return Compiled(MODEL_FILE, quantizer, execution, tuple(notes), kept, micro)

    def in_float(self, job: Job, folder: Path) -> Path:
        file = folder / MODEL_FILE
        with quiet():
            file.write_bytes(self._conversions.from_pixels(job))
        return file

    def layer_outputs(self, model: Path, images: NDArray[np.uint8]) -> LayerOutputs:
        """By LiteRT's built-in kernels: intermediate tensors of a delegate cannot be read."""
        with quiet():
            return layer_outputs(model, images)

    def float_fed(self, model: Path) -> FloatRunner:
        return load(with_float_input(model.read_bytes()), threads=1)

    def _int8(self, job: Job) -> tuple[bytes, tuple[str, ...]]:
        """Static int8, and the names of the layers that the recipe left in float.

        The network on normalised input is quantized, then fed with pixels. The pixel x is
        (x - 128) / 64, quantized at scale 1/64 and zero point 128. A single QUANTIZE operator
        changes it to int8 with zero point 0; no float arithmetic precedes it.
        """
        from ai_edge_quantizer.recipe_manager import RecipeManager

        recipe = RecipeManager()
        recipe.add_static_config(".*", "*", activation_num_bits=8, weight_num_bits=8)
        for boundary in ("INPUT", "OUTPUT"):  # which stay float
            recipe.add_quantization_config(".*", boundary, algorithm_key="no_quantize")
        decompose = self._settings.hard_swish == "decomposed"
        content = self._conversions.from_normalised(job, decompose_hard_swish=decompose)
        kept = _kept(content, job)
        for _, scope, operator in kept:
            recipe.add_quantization_config(scope, operator, algorithm_key="no_quantize")
        # It has no int8 kernel that XNNPACK could use, and fails where the divisor rounds to zero.
        recipe.add_quantization_config(".*", "DIV", algorithm_key="no_quantize")
        with job.refusals(_QUANTIZER):
            ranges = _calibrate(content, recipe, job.calibration, job.recipe.ranges)
            content, ranges = with_finite_padding(content, ranges)
            content = _quantized(content, recipe, ranges)
        return with_pixel_input(content), tuple(name for name, _, _ in kept)


def _float16(content: bytes) -> bytes:
    from ai_edge_quantizer.recipe_manager import RecipeManager

    recipe = RecipeManager()
    recipe.add_weight_only_config(".*", "*", num_bits=16, algorithm_key="float_casting")
    return _quantized(content, recipe, None)


def _kept(content: bytes, job: Job) -> tuple[tuple[str, str, str], ...]:
    """Name, scope and type of the operators that the job's recipe keeps in float."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as utils

    model = utils.read_model(content)
    graph = model.subgraphs[0]
    kinds = [utils.TFL_OP_CODE_TO_NAME.get(code.builtinCode) for code in model.operatorCodes]
    return job.kept_float(
        [
            (
                graph.tensors[operator.outputs[0]].name.decode(),
                f"^{re.escape(utils.get_op_scope(operator, graph.tensors))}$",
                kinds[operator.opcodeIndex],
            )
            for operator in graph.operators
            if kinds[operator.opcodeIndex] in LAYERS
        ]
    )


def _calibrate(
    content: bytes, recipe: Any, images: NDArray[np.uint8], estimator: str | None
) -> dict[str, Any]:
    """Ranges of all tensors over raw pixels `images`; the input's is set, not measured.

    By default each bound is a moving average over the images. The input's range [-2, 127/64],
    which all pixels together have, gives int8 the step 1/64 and zero point 0.
    """
    from ai_edge_quantizer.calibrator import CalibrationMode, Calibrator
    from ai_edge_quantizer.utils.qsv_utils import min_max_update, moving_average_update

    updates = {None: moving_average_update, "min-max": min_max_update, "mean min-max": _mean}
    # In this mode the interpreter records each tensor's bounds. The default mode finds the same
    # ones, but walks through the graph in Python for every image, in fifteen times the time.
    mode = CalibrationMode.CALIBRATION_PROFILER_BASED
    calibrator = Calibrator(content, 1, mode, updates[estimator])
    with _without_bars():
        for part in batches(images, FLOAT_IMAGES):
            samples = [{"image": image[None]} for image in grid.normalise(part)]
            calibrator.calibrate({SIGNATURE: samples}, recipe)
    ranges: dict[str, Any] = calibrator.get_model_qsvs()
    for bound, value in (("min", grid.LOWEST), ("max", grid.HIGHEST)):
        ranges[f"{SIGNATURE}_image"][bound][...] = value
    return ranges


def _mean(known: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The mean bounds of all images so far and of one more, whose bounds are `new`."""
    images = known.get("images", 1) + 1
    means = {bound: known[bound] + (new[bound] - known[bound]) / images for bound in ("min", "max")}
    return means | {"images": images}


def _quantized(content: bytes, recipe: Any, ranges: dict[str, Any] | None) -> bytes:
    from ai_edge_quantizer.quantizer import Quantizer

    quantizer = Quantizer(bytearray(content), recipe.get_quantization_recipe())
    with _without_bars():
        result = quantizer.quantize(ranges, enable_progress_report=False)
    return bytes(result.quantized_model)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Keep ai-edge-quantizer's progress bars, which it draws on any stderr, out of logs."""
    if sys.stderr.isatty():
        yield
        return
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            yield
    finally:
        for line in re.split(r"[\r\n]+", written.getvalue()):
            if line.strip() and not re.search(r"\d%\|", line):
                print(line, file=sys.stderr)
