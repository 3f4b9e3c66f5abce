"""Compiles for LiteRT: converted from torch by litert-torch, quantized by ai-edge-quantizer."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.job import Compiled, FloatRunner, Job, LayerOutputs
from pipeline.backends.base.spec import BackendSettings
from pipeline.backends.tflite.convert import (
    Conversions,
    quiet,
    with_float_input,
    with_pixel_input,
)
from pipeline.backends.tflite.inspect import LAYERS, inspect, layer_outputs
from pipeline.backends.tflite.metadata import with_metadata
from pipeline.backends.tflite.params import Settings
from pipeline.backends.tflite.run import load, open_interpreter
from pipeline.networks import grid

MODEL_FILE = "model.tflite"
SIGNATURE = "serving_default"

_HARD_SWISH = "HARD_SWISH int8"
_SPLIT = (
    "XNNPACK does not take {} int8 hard-swishes, which split the graph; `hard_swish: decomposed` "
    "of backends.tflite writes them as operators that it takes"
)


class Compiler:
    """See `backends.base.job.Compiler`."""

    ranges: ClassVar[tuple[str, ...]] = ("min-max", "mean min-max")
    bias_correction: ClassVar[bool] = False

    def __init__(self, settings: BackendSettings) -> None:
        assert isinstance(settings, Settings)
        self._conversions = Conversions()
        int8 = partial(_int8, decompose_hard_swish=settings.hard_swish == "decomposed")
        self._builders: dict[str, Callable[[Conversions, Job], _Built]] = {
            "fp32": _float32,
            "fp16": _float16,
            "int8": int8,
        }

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write `model.tflite`: input `image` uint8 [1, H, W, C], output `logits` float32.

        The batch is fixed at 1, the shape that delegates of phones want. Metadata and labels are
        inside the file.
        """
        artifact = job.artifact
        with quiet():
            content, quantizer, kept = self._builders[artifact.precision](self._conversions, job)
        channels, classes = job.manifest.channels, job.manifest.classes
        about = f"An image classifier of {len(classes)} classes, {artifact.precision}."
        path = folder / MODEL_FILE
        path.write_bytes(with_metadata(content, artifact.student, about, channels, classes))
        execution = inspect(open_interpreter(str(path)))
        left = execution.partitions.builtin.get(_HARD_SWISH, 0) if execution.partitions else 0
        notes = (_SPLIT.format(left),) if left else ()
        return Compiled(MODEL_FILE, quantizer, execution, notes, kept)

    def in_float(self, job: Job, folder: Path) -> Path:
        file = folder / MODEL_FILE
        with quiet():
            file.write_bytes(self._conversions.from_pixels(job))
        return file

    def layer_outputs(self, model: Path, images: NDArray[np.uint8]) -> LayerOutputs:
        """By LiteRT's own kernels: what a delegate computes between two layers cannot be read."""
        with quiet():
            return layer_outputs(model, images)

    def float_fed(self, model: Path) -> FloatRunner:
        return load(with_float_input(model.read_bytes()), threads=1)


_Built = tuple[bytes, str | None, tuple[str, ...]]
"""A .tflite, its quantizer, and the names of the layers that the recipe left in float."""


def _float32(conversions: Conversions, job: Job) -> _Built:
    return conversions.from_pixels(job), None, ()


def _float16(conversions: Conversions, job: Job) -> _Built:
    from ai_edge_quantizer.quantizer import Quantizer
    from ai_edge_quantizer.recipe_manager import RecipeManager

    recipe = RecipeManager()
    recipe.add_weight_only_config(".*", "*", num_bits=16, algorithm_key="float_casting")
    quantizer = Quantizer(bytearray(conversions.from_pixels(job)), recipe.get_quantization_recipe())
    stored = "ai-edge-quantizer: weights stored in float16, from which XNNPACK computes in float32"
    return _quantized(quantizer, None), stored, ()


def _int8(conversions: Conversions, job: Job, *, decompose_hard_swish: bool) -> _Built:
    """Static int8: the network on normalised input is quantized, then fed with pixels.

    The pixel x of (x - 128) / 64 is the quantized input at scale 1/64, zero point 128. One
    QUANTIZE operator moves the zero point to int8's; no float arithmetic precedes it.
    """
    from ai_edge_quantizer.quantizer import Quantizer
    from ai_edge_quantizer.recipe_manager import RecipeManager

    recipe = RecipeManager()
    recipe.add_static_config(".*", "*", activation_num_bits=8, weight_num_bits=8)
    for boundary in ("INPUT", "OUTPUT"):  # stay float in the signature
        recipe.add_quantization_config(".*", boundary, algorithm_key="no_quantize")
    content = conversions.from_normalised(job, decompose_hard_swish=decompose_hard_swish)
    kept = _kept(content, job)
    for _, scope, operator in kept:
        recipe.add_quantization_config(scope, operator, algorithm_key="no_quantize")
    ranges = _calibrate(content, recipe, grid.normalise(job.calibration), job.recipe.ranges)
    quantizer = Quantizer(bytearray(content), recipe.get_quantization_recipe())
    content = with_pixel_input(_quantized(quantizer, ranges))
    names = tuple(name for name, _, _ in kept)
    return content, "ai-edge-quantizer: static, int8 weights per channel", names


def _kept(content: bytes, job: Job) -> tuple[tuple[str, str, str], ...]:
    """Name, scope and type of the operators that the job's recipe keeps in float."""
    from ai_edge_quantizer.utils.tfl_flatbuffer_utils import (
        TFL_OP_CODE_TO_NAME,
        get_op_scope,
        read_model,
    )

    model = read_model(content)
    graph = model.subgraphs[0]
    kinds = [TFL_OP_CODE_TO_NAME.get(code.builtinCode) for code in model.operatorCodes]
    return job.kept_float(
        [
            (
                graph.tensors[operator.outputs[0]].name.decode(),
                f"^{re.escape(get_op_scope(operator, graph.tensors))}$",
                kinds[operator.opcodeIndex],
            )
            for operator in graph.operators
            if kinds[operator.opcodeIndex] in LAYERS
        ]
    )


def _calibrate(
    content: bytes, recipe: Any, images: NDArray[np.float32], estimator: str | None
) -> dict[str, Any]:
    """Ranges of all tensors over normalised `images`; the input's is set, not measured.

    By default each bound is a moving average over the images. Over [-2, 127/64], all that
    pixels can give, int8 has the step 1/64 and zero point 0.
    """
    from ai_edge_quantizer.calibrator import CalibrationMode, Calibrator
    from ai_edge_quantizer.utils.qsv_utils import min_max_update, moving_average_update

    updates = {None: moving_average_update, "min-max": min_max_update, "mean min-max": _mean}
    samples = [{"image": images[i : i + 1]} for i in range(len(images))]
    # The interpreter itself notes each tensor's bounds. The default mode gives the same ones,
    # but walks through the graph in Python for every image: fifteen times as long.
    mode = CalibrationMode.CALIBRATION_PROFILER_BASED
    calibrator = Calibrator(content, 1, mode, updates[estimator])
    with _without_bars():
        calibrator.calibrate({SIGNATURE: samples}, recipe)
    ranges: dict[str, Any] = calibrator.get_model_qsvs()
    for bound, value in (("min", grid.LOWEST), ("max", grid.HIGHEST)):
        ranges[f"{SIGNATURE}_image"][bound][...] = value
    return ranges


def _mean(known: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Bounds averaged over all images so far, `new` being those of one more."""
    images = known.get("images", 1) + 1
    means = {bound: known[bound] + (new[bound] - known[bound]) / images for bound in ("min", "max")}
    return means | {"images": images}


def _quantized(quantizer: Any, ranges: dict[str, Any] | None) -> bytes:
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
