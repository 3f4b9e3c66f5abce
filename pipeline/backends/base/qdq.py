"""Static int8 by ONNX Runtime's quantizer: Q/DQ models for ONNX Runtime and for TensorRT."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.backends.base.job import Job
from pipeline.core.errors import PipelineError
from pipeline.core.files import temporary_folder
from pipeline.data.batches import batches
from pipeline.export.session import open_session
from pipeline.networks import grid

LAYERS = ("Conv", "Gemm", "MatMul")
QUANTIZER = "onnxruntime.quantization: static Q/DQ, int8 weights per channel"
RANGES = ("percentile 99.999", "percentile 99.99")

_IMAGES, _KEPT_IMAGES = 64, 512
"""Calibration images that are computed at once, and whose tensors the quantizer holds at once."""

_WITHOUT_INT8 = ("BatchNormalization", "InstanceNormalization", "LayerNormalization")
"""ONNX Runtime computes them in float anyway. Rounding for them costs accuracy, and sessions refuse
graphs in which two of them share their weights."""

_ARITHMETIC = ("Cast", "Sub", "Add", "Mul", "Div")


@dataclass(frozen=True)
class Quantized:
    """A Q/DQ model, the front of its float graph, and the names of the layers left in float."""

    model: onnx.ModelProto
    front: Front
    kept_float: tuple[str, ...]


@dataclass(frozen=True)
class Front:
    """The nodes that make normalised NCHW floats of raw pixels, and the tensor they give."""

    nodes: tuple[str, ...]
    tensor: str


def quantize(job: Job, activations: Literal["uint8", "int8 symmetric"]) -> Quantized:
    """Quantize an exported student by the job's recipe.

    The input is quantized at scale 1/64, the step that pixels already have, and therefore without
    error. Ranges are the smallest and largest values over the calibration set, or a percentile of
    them. (The quantizer's entropy method has 128 bins for 128 levels, so nothing to choose.)

    Args:
        job: what to quantize.
        activations: `uint8`: asymmetric, around every operator that has an integer kernel, with
            float logits. `int8 symmetric`: only the inputs of conv and linear layers, zero point
            0, float biases, as TensorRT's parser demands and its builder fuses best.

    Raises:
        PipelineError: for a student that does not normalise by (x - 128) / 64, and one that the
            quantizer refuses.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    symmetric = activations == "int8 symmetric"
    zero_point = np.array(0, np.int8) if symmetric else np.array(grid.CENTRE, np.uint8)
    options = _options(symmetric)
    method = CalibrationMethod.MinMax
    if job.recipe.ranges:
        method = CalibrationMethod.Percentile
        options["CalibPercentile"] = float(job.recipe.ranges.split()[1])
    printed = contextlib.redirect_stdout(io.StringIO())  # the calibrators' histograms
    with printed, temporary_folder() as scratch:
        prepared, result = scratch / "prepared.onnx", scratch / "quantized.onnx"
        # Its inference of shapes fails on some `Expand`; the exporter has written all of them.
        expands = any(node.op_type == "Expand" for node in onnx.load(job.onnx).graph.node)
        with job.refusals("onnxruntime.quantization"):
            quant_pre_process(job.onnx, prepared, skip_symbolic_shape=expands)
        graph = onnx.load(prepared)
        nodes = graph.graph.node
        front = find_front(graph)
        kept = job.kept_float([node.name for node in nodes if node.op_type in LAYERS])
        norms = [node.name for node in nodes if node.op_type in _WITHOUT_INT8]
        scale = np.array(grid.SCALE, np.float32)
        override = {front.tensor: [{"scale": scale, "zero_point": zero_point}]}
        with job.refusals("onnxruntime.quantization"):
            quantize_static(
                prepared,
                result,
                _Reader(job.calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(LAYERS) if symmetric else None,
                per_channel=True,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*front.nodes, *kept, *norms],
                calibrate_method=method,
                extra_options=options | {"TensorQuantOverrides": override, "CalibStridedMinMax": 1},
            )
        model = onnx.load(result)
    properties = onnx.load(job.onnx, load_external_data=False).metadata_props
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in properties})
    return Quantized(model, front, kept)


def _options(symmetric: bool) -> dict[str, Any]:
    if not symmetric:
        # The best logit often leads by less than one step of 8 bits.
        return {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]}
    return {
        "OpTypesToExcludeOutputQuantization": list(LAYERS),
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
    }


def find_front(model: onnx.ModelProto) -> Front:
    """The nodes from the pixels to (x - 128) / 64; `PipelineError` for another normalisation."""
    nodes: list[str] = []
    tensor, kind = "image", ""
    while kind != "Transpose":
        users = [node for node in model.graph.node if tensor in node.input]
        users = [node for node in users if node.op_type in (*_ARITHMETIC, "Transpose")]
        if len(users) != 1:
            break
        nodes.append(users[0].name)
        tensor, kind = users[0].output[0], users[0].op_type
    front = Front(tuple(nodes), tensor)
    if not nodes or not _is_exact(model, tensor):
        raise PipelineError(
            "does not begin with (x - 128) / 64 in NCHW, which int8 relies on",
            where="the exported student",
            fix="export it anew: `dvc repro`",
        )
    return front


def _is_exact(model: onnx.ModelProto, tensor: str) -> bool:
    """Whether `tensor` is (x - 128) / 64 in NCHW for each of the 256 pixel values x."""
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])
    if not all(shape):
        return False
    pixels = grid.every_pixel(shape)
    part = onnx.utils.Extractor(model).extract_model(["image"], [tensor])
    (found,) = open_session(part.SerializeToString(), threads=1).run(None, {"image": pixels})
    expected = grid.normalise(pixels).transpose(0, 3, 1, 2)
    return found.shape == expected.shape and bool((found == expected).all())


class _Reader:
    """The calibration set in parts, each in batches, as `quantize_static` reads it.

    For percentiles ONNX Runtime keeps all tensors of a part before it adds them to its histograms.
    """

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._parts = list(batches(images, _KEPT_IMAGES))

    def __len__(self) -> int:
        return len(self._parts)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Read one part next; `CalibStridedMinMax`, which is 1, is `end_index - start_index`."""
        assert end_index == start_index + 1
        self._batches = batches(self._parts[start_index], _IMAGES)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": np.ascontiguousarray(batch)}
