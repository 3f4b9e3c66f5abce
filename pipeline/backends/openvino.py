"""OpenVINO on Intel CPUs: IR from ONNX, int8 from NNCF."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import os
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base import (
    Compiled,
    FloatRunner,
    Job,
    LayerOutputs,
    Product,
    Runner,
    flat,
    matrix_macs,
    prove,
    versions,
)
from pipeline.contracts import Proof
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    import openvino

# OpenVINO and NNCF report every use to their makers, unless this package cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

MODEL_FILE = "model.xml"
PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
KERNELS = ("Convolution", "FullyConnected", "MatMul")
INT8 = ("i8", "u8")
PRECISION_NOTE = (
    "layers that are not int8 run in float32: `load` sets INFERENCE_PRECISION_HINT=f32, "
    "without it OpenVINO takes bf16 where the CPU has it"
)
# (x - 128) / 64 of a pixel x in [0, 255]: over this range 256 levels have the step 1/64, so
# that quantized input and pixel are the same number.
INPUT_RANGE = (-2.0, 127 / 64)
BATCH = 32
"""Calibration images that NNCF sees at once."""


class OpenVino:
    name: ClassVar[str] = "openvino"
    packages: ClassVar[tuple[str, ...]] = ("openvino", "nncf")
    ranges: ClassVar[tuple[str, ...]] = ("histogram",)
    bias_correction: ClassVar[bool] = True

    def compile(self, job: Job, folder: Path) -> Compiled:
        """Write `model.xml` and `model.bin`: the ONNX in float32, or quantized by NNCF.

        The same job gives the same bytes. Raises `PipelineError` for an unknown precision, a
        package or an ONNX file that is missing.
        """
        if job.precision not in ("fp32", "int8"):
            raise PipelineError(
                f"openvino does not know the precision `{job.precision}`", fix="use fp32 or int8"
            )
        versions(self.packages)
        model = _convert(job.onnx)
        quantizer = None
        kept: tuple[str, ...] = ()
        notes = [PRECISION_NOTE]
        if job.precision == "int8":
            model, kept = _quantize(model, job)
            quantizer = "NNCF: preset mixed, int8 weights per channel"
            notes.append(_pin_input_range(model))
        _save(model, folder / MODEL_FILE)
        proof = _inspect(folder / MODEL_FILE)
        return Compiled(MODEL_FILE, quantizer, proof, tuple(notes), kept)

    def load(self, model: Path, threads: int) -> Runner:
        """A runner for one image at a time or many: one stream, one synchronous request.

        A single image has a network of fixed shape, which answers sooner; all other batch
        sizes share one of dynamic shape, compiled when the first of them comes.
        """
        single = _bound(_compile(_read(model), threads, batch=1))

        @cache
        def many() -> openvino.InferRequest:
            return _compile(_read(model), threads, batch=-1).create_infer_request()

        def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            if len(images) == 1:
                return single(images)
            logits: NDArray[np.float32] = many().infer([images])[0].copy()
            return logits

        return run

    def in_float(self, job: Job, folder: Path) -> Path:
        return folder / self.compile(replace(job, precision="fp32"), folder).model_file

    def layer_outputs(self, model: Path, images: NDArray[np.uint8]) -> LayerOutputs:
        network = _read(model)
        products = [node for node in network.get_ordered_ops() if node.get_type_name() in PRODUCTS]
        ends = [_as_read(node.output(0)) for node in products]
        network.add_outputs(ends)
        request = _compile(network, os.cpu_count() or 1, batch=-1).create_infer_request()
        found = request.infer([images]).values()
        sources = [result.input_value(0).get_node().get_name() for result in network.get_results()]
        values = dict(zip(sources, found, strict=True))
        return {
            product.get_friendly_name(): flat(values[end.get_node().get_name()])
            for product, end in zip(products, ends, strict=True)
        }

    def float_fed(self, model: Path) -> FloatRunner:
        from openvino import Model, opset13

        network = _read(model)
        node = network.input().get_node()
        while node.get_type_name() not in ("FakeQuantize", "Transpose"):  # Convert, (x - 128) / 64
            readers = _readers(node.output(0))
            if len(readers) != 1:
                raise PipelineError("reads its pixels in an unknown way", where=str(model))
            (node,) = readers
        floats = opset13.parameter([-1, *network.input().partial_shape[1:]], np.float32)
        node.input(0).replace_source_output(floats.output(0))
        fed = Model(network.get_results(), [floats])
        request = _compile(fed, threads=1, batch=-1).create_infer_request()

        def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
            logits: NDArray[np.float32] = request.infer([images])[0].copy()
            return logits

        return run

    def evaluator(self) -> str | None:
        try:
            return f"openvino {importlib.metadata.version('openvino')}"
        except importlib.metadata.PackageNotFoundError:
            return None

    def unmeasurable(self) -> str | None:
        return None if self.evaluator() else "the package openvino is not installed"


def _convert(onnx: Path) -> openvino.Model:
    import openvino

    # `read_model` takes ONNX, too, but leaves the weights of depthwise convolutions behind a
    # reshape, where NNCF does not find them: they would stay float.
    return openvino.convert_model(_existing(onnx))


def _read(path: Path) -> openvino.Model:
    import openvino

    return openvino.Core().read_model(_existing(path))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise PipelineError("there is no such model", where=str(path), fix="run `dvc repro`")
    return path


def _compile(model: openvino.Model, threads: int, batch: int) -> openvino.CompiledModel:
    """`model` on the CPU for a fixed batch size, or for any with -1."""
    import openvino

    model.reshape([batch, *list(model.input().partial_shape)[1:]])
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return openvino.Core().compile_model(model, "CPU", properties)


def _bound(compiled: openvino.CompiledModel) -> Runner:
    """A request of fixed shape that reads and writes the same memory every time.

    Handing it an array with each call would cost more than a small network takes to compute.
    """
    import openvino

    request = compiled.create_infer_request()
    pixels = np.empty(tuple(compiled.input().get_shape()), np.uint8)
    request.set_input_tensor(openvino.Tensor(pixels, shared_memory=True))
    logits = request.get_output_tensor().data

    def run(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        np.copyto(pixels, image)
        request.infer(share_outputs=True)
        copied: NDArray[np.float32] = logits.copy()
        return copied

    return run


def _quantize(model: openvino.Model, job: Job) -> tuple[openvino.Model, tuple[str, ...]]:
    """`model` by NNCF, and the names of the products that the recipe left in float.

    Ranges are NNCF's own and bias correction is its fast one where the recipe has no others.

    By default a bound is the mean, over batches, of a batch's extreme value. Over single images,
    which NNCF's examples take, it cuts off more, and int8 of small images lost 1.5 to 2 times as
    much; it also took three times as long. `histogram` takes the ranges with the least square
    error.
    """
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.ERROR)  # it tells for each layer which estimator it cannot use
    advanced = nncf.AdvancedQuantizationParameters()
    if job.recipe.ranges == "histogram":
        advanced.activations_range_estimator_params = RangeEstimatorParametersSet.HISTOGRAM
    products = [node for node in model.get_ordered_ops() if node.get_type_name() in PRODUCTS]
    kept = job.kept([node.get_friendly_name() for node in products])
    batches = [job.calibration[i : i + BATCH] for i in range(0, len(job.calibration), BATCH)]
    quantized = nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(batches),
        fast_bias_correction=not job.recipe.bias_correction,
        ignored_scope=nncf.IgnoredScope(names=list(kept)) if kept else None,
        advanced_parameters=advanced,
    )
    return quantized, kept


def _pin_input_range(model: openvino.Model) -> str:
    """Quantize the input at scale 1/64, whatever pixels the calibration images lack.

    Returns a note that says whether the graph has a quantizer at its input at all.
    """
    from openvino import opset13

    nodes = _readers(model.input())
    while len(nodes) == 1:
        node = nodes[0]
        if node.get_type_name() == "FakeQuantize":
            for port, value in enumerate(INPUT_RANGE * 2, start=1):
                bound = opset13.constant(np.full(node.input(port).get_shape(), value, np.float32))
                node.input(port).replace_source_output(bound.output(0))
            return "input quantized exactly: scale 1/64, zero point 128, from the raw pixels"
        nodes = _readers(node.output(0))
    return "input quantization is not exact: the graph has no single quantizer at its input"


def _readers(output: openvino.Output) -> list[openvino.Node]:
    """Nodes that read the values of `output`, not its shape alone."""
    nodes = [target.get_node() for target in output.get_target_inputs()]
    return [node for node in nodes if node.get_type_name() != "ShapeOf"]


def _as_read(output: openvino.Output) -> openvino.Output:
    """What becomes of a product's output before another layer reads it."""
    while True:
        readers = _readers(output)
        if len(readers) != 1:
            return output
        (node,) = readers
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
    # OpenVINO names nameless layers by a counter of the process: `Constant_1234`. Layer ids
    # are theirs in the file's own order, so that equal networks give equal files.
    text = re.sub(
        r'<layer id="(\d+)" name="([A-Z][A-Za-z]*)_\d+"',
        r'<layer id="\1" name="\2_id\1"',
        path.read_text(),
    )
    path.write_text(text)


def _inspect(path: Path) -> Proof:
    """Every product of the model, in int8 where the runtime's graph for one image says so.

    That graph fuses and reorders and moves scales away from weights, so shapes and scales are
    those of the model. A product that the graph does not mention counts as float.
    """
    model = _read(path)
    compiled = _compile(model, threads=1, batch=1)  # from here on `model` is of batch 1, too
    precisions: dict[str, str] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        if info["layerType"] in KERNELS and not info["primitiveType"].startswith("unknown"):
            for name in info["originalLayersNames"].split(","):
                precisions[name.split("/Dequantization")[0]] = info["runtimePrecision"]
    products = [node for node in model.get_ordered_ops() if node.get_type_name() in PRODUCTS]
    return prove(
        (_product(node, precisions) for node in products),
        compiled.input().get_element_type().to_dtype().name,
        compiled.output().get_element_type().to_dtype().name,
    )


def _product(node: openvino.Node, precisions: dict[str, str]) -> Product:
    """A convolution or product of a model, by the precision of the kernel that contains it."""
    name, output = node.get_friendly_name(), tuple(node.output(0).get_shape())
    # A product that is fused with its bias may be known by the bias's name alone.
    names = [name, *(reader.get_friendly_name() for reader in _readers(node.output(0)))]
    found = next((precisions[name] for name in names if name in precisions), "unknown")
    if node.get_type_name() == "MatMul":
        channels, macs = output[-1], matrix_macs(tuple(node.input(0).get_shape()), output)
    else:
        channels, weights = output[1], math.prod(node.input(1).get_shape())
        macs = math.prod(output[2:]) * weights
    scales = _weight_scales(node)
    return Product(name, macs, found in INT8, None if scales is None else scales == channels)


def _weight_scales(node: openvino.Node) -> int | None:
    """How many scales the int8 weights of a product have; None without such weights."""
    scaled = node.input_value(1).get_node()
    if scaled.get_type_name() != "Multiply":
        return None
    weights = scaled.input_value(0).get_node()
    while weights.get_type_name() in ("Convert", "Subtract"):
        weights = weights.input_value(0).get_node()
    int8 = weights.get_type_name() == "Constant" and weights.get_element_type().to_string() in INT8
    return math.prod(scaled.input(1).get_shape()) if int8 else None
