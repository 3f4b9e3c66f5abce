"""Compiles for OpenVINO: its intermediate representation from ONNX, int8 by NNCF."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.job import Compiled, FloatRunner, Job, LayerOutputs, flat
from pipeline.backends.base.job import Compiler as Base
from pipeline.backends.openvino.inspect import conv_and_linear, inspect, readers
from pipeline.backends.openvino.run import ANY, compile_model, no_telemetry, read
from pipeline.core.errors import PipelineError
from pipeline.data.batches import batches
from pipeline.networks import grid

if TYPE_CHECKING:
    import openvino

MODEL_FILE = "model.xml"
PRECISION_NOTE = (
    "layers that are not int8 run in float32: runtime.py sets INFERENCE_PRECISION_HINT=f32; "
    "without it OpenVINO uses bfloat16 where the CPU has it"
)
IMAGES = 32
"""Calibration images that NNCF sees at once, at most: see `pipeline.data.batches`."""


class Compiler(Base):
    """See `backends.base.job.Compiler`."""

    ranges = ("histogram",)
    bias_correction = True

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write `model.xml` and `model.bin`: the ONNX in float32, or quantized by NNCF."""
        with job.refusals("OpenVINO"):
            model = _convert(job.onnx)
        quantizer = None
        kept: tuple[str, ...] = ()
        notes = [PRECISION_NOTE]
        if job.artifact.int8:
            model, kept = _quantize(model, job)
            quantizer = "NNCF: preset mixed, int8 weights per channel"
            notes.append(_pin_input_range(model))
        _save(model, folder / MODEL_FILE)
        return Compiled(MODEL_FILE, quantizer, inspect(folder / MODEL_FILE), tuple(notes), kept)

    def in_float(self, job: Job, folder: Path) -> Path:
        artifact = Artifact(job.artifact.student, job.artifact.backend, "fp32")
        return folder / self.compile(replace(job, artifact=artifact), folder).model_file

    def layer_outputs(self, model: Path, images: NDArray[np.uint8]) -> LayerOutputs:
        network = read(str(model))
        layers = conv_and_linear(network)
        ends = [_as_read(node.output(0)) for node in layers]
        network.add_outputs(ends)
        request = compile_model(network, os.cpu_count() or 1, ANY).create_infer_request()
        found = request.infer([images]).values()
        sources = [result.input_value(0).get_node().get_name() for result in network.get_results()]
        values = dict(zip(sources, found, strict=True))
        return {
            layer.get_friendly_name(): flat(values[end.get_node().get_name()])
            for layer, end in zip(layers, ends, strict=True)
        }

    def float_fed(self, model: Path) -> FloatRunner:
        from openvino import Model, opset13

        network = read(str(model))
        node = network.input().get_node()
        while node.get_type_name() not in ("FakeQuantize", "Transpose"):  # Convert, (x - 128) / 64
            following = readers(node.output(0))
            if len(following) != 1:
                raise PipelineError("reads its pixels in an unknown way", where=str(model))
            (node,) = following
        floats = opset13.parameter([-1, *network.input().partial_shape[1:]], np.float32)
        node.input(0).replace_source_output(floats.output(0))
        fed = Model(network.get_results(), [floats])
        request = compile_model(fed, threads=1, batch=ANY).create_infer_request()

        def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
            logits: NDArray[np.float32] = request.infer([images])[0].copy()
            return logits

        return run


def _convert(onnx: Path) -> openvino.Model:
    no_telemetry()
    import openvino

    # `read_model` reads ONNX, too, but leaves the weights of depthwise convolutions behind a
    # reshape. NNCF does not find them there, and they would stay in float.
    return openvino.convert_model(onnx)


def _quantize(model: openvino.Model, job: Job) -> tuple[openvino.Model, tuple[str, ...]]:
    """Quantize `model` by NNCF. Returns it and the names of the layers that stay in float.

    A student that learnt under int8's rounding gets the ranges that it learnt with, and its biases
    stay. Six such students, of three seeds, lost 0.0004 of top-1 on val by that, on average; with
    NNCF's own ranges and its fast bias correction 0.0019.

    Of other students, without `ranges` in the recipe, a bound is the mean, over batches, of a
    batch's extreme value. Batches of one image, as in NNCF's examples, cut off more: int8 of small
    images lost 1.5 to 2 times as much accuracy, and quantizing took three times as long.
    `histogram` chooses the ranges with the least square error.
    """
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.ERROR)  # it warns, layer by layer, of estimators that it cannot use
    advanced = nncf.AdvancedQuantizationParameters(
        disable_bias_correction=job.rounded and not job.recipe.bias_correction
    )
    if job.recipe.ranges == "histogram":
        advanced.activations_range_estimator_params = RangeEstimatorParametersSet.HISTOGRAM
    elif job.rounded:
        advanced.activations_range_estimator_params = RangeEstimatorParametersSet.MINMAX
    kept = job.kept_float([node.get_friendly_name() for node in conv_and_linear(model)])
    parts = list(batches(job.calibration, IMAGES))
    with job.refusals("NNCF"):
        quantized = nncf.quantize(
            model,
            nncf.Dataset(parts),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(parts),
            fast_bias_correction=not job.recipe.bias_correction,
            ignored_scope=nncf.IgnoredScope(names=list(kept)) if kept else None,
            advanced_parameters=advanced,
        )
    return quantized, kept


def _pin_input_range(model: openvino.Model) -> str:
    """Quantize the input at scale 1/64, also where calibration images lack some pixel values.

    Returns a note that says whether the graph has a quantizer at its input.
    """
    from openvino import opset13

    nodes = readers(model.input())
    while len(nodes) == 1:
        node = nodes[0]
        if node.get_type_name() == "FakeQuantize":
            for port, value in enumerate((grid.LOWEST, grid.HIGHEST) * 2, start=1):
                bound = opset13.constant(np.full(node.input(port).get_shape(), value, np.float32))
                node.input(port).replace_source_output(bound.output(0))
            return "input quantized exactly: scale 1/64, zero point 128, from the raw pixels"
        nodes = readers(node.output(0))
    return "input quantization is not exact: the graph has no single quantizer at its input"


def _as_read(output: openvino.Output) -> openvino.Output:
    """A layer's output as the next layer reads it: with bias and activation, and rounded."""
    while True:
        following = readers(output)
        if len(following) != 1:
            return output
        (node,) = following
        bias = node.get_type_name() == "Add" and _is_constant(node.input_value(1).get_node())
        if not bias and node.get_type_name() not in ("Relu", "Clamp", "FakeQuantize"):
            return output
        output = node.output(0)


def _is_constant(node: openvino.Node) -> bool:
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _save(model: openvino.Model, path: Path) -> None:
    import openvino

    openvino.save_model(model, path, compress_to_fp16=False)
    # OpenVINO names nameless layers by a counter of the process: `Constant_1234`. Named by their
    # ids, which count in the file's own order, equal networks give equal files.
    text = re.sub(
        r'<layer id="(\d+)" name="([A-Z][A-Za-z]*)_\d+"',
        r'<layer id="\1" name="\2_id\1"',
        path.read_text(),
    )
    path.write_text(text)
