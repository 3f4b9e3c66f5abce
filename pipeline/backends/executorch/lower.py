"""Students as .pte programs: exported by torch, quantized by torchao, lowered to XNNPACK."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
from numpy.typing import NDArray
from torch.export import Dim, export
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec, QuantizationConfig

from pipeline.backends.base.job import Job
from pipeline.core.errors import PipelineError
from pipeline.data.batches import batches
from pipeline.networks import grid
from pipeline.networks.folding import fold_batch_norm
from pipeline.networks.pixels import PixelsToLogits, student_normalisation
from pipeline.networks.weights import load_model, load_pixels_to_logits

IMAGES = 64
"""Calibration images that are observed at once, at most: see `pipeline.data.batches`."""
OBSERVERS = {
    None: HistogramObserver,
    "min-max": MinMaxObserver,
    "moving min-max": MovingAverageMinMaxObserver,
}
"""Estimators of activation ranges. A histogram's range has the least square error; a moving average
is over the extremes of batches."""

_LEAST_ACTIVATION_SCALE = 2.0**-12
"""XNNPACK's quantizer has this one for weights, too: it would round channels of small weights away,
which folding a batch norm makes."""
_LEAST_WEIGHT_SCALE = 2.0**-16
_CLAMPED = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
_CLAMPS = (torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default)


def in_float(job: Job) -> bytes:
    """The job's student in float32, from pixels uint8 [1, H, W, C] to logits float32."""
    model, _ = load_pixels_to_logits(job.weights)
    pixels = _pixels(job)
    return convert(_plain(model, pixels), pixels)


def in_int8(job: Job) -> bytes:
    """The job's student in static int8, weights per channel, by the job's recipe.

    The network on normalised images is quantized, its input at scale 1/64 and zero point 0. The
    normalisation (x - 128) / 64 in front of it stays in float, where it is exact.

    Raises:
        PipelineError: for a student that normalises in another way.
    """
    network, card = load_model(job.weights)
    if card.normalisation != student_normalisation(card.channels):
        raise PipelineError(
            f"normalised by mean {card.normalisation.mean}, std {card.normalisation.std}: "
            "pixels are int8 input only for mean 128, std 64",
            where=str(job.weights),
            fix="train the student with (x - 128) / 64",
        )
    model = PixelsToLogits(quantized(network, job), card.normalisation)
    return convert(model, _pixels(job))


def quantized(network: torch.nn.Module, job: Job) -> GraphModule:
    """`network`, which takes normalised images float32 [N, C, H, W], with its roundings."""
    plain = _plain(network, _normalised(job.calibration[:1]))
    some = _normalised(np.repeat(job.calibration[:1], 2, axis=0))
    graph = export(plain, (some,), dynamic_shapes=({0: Dim.DYNAMIC},)).module()
    prepared = prepare_pt2e(graph, _quantizer(job))
    with torch.no_grad():
        for part in batches(job.calibration, IMAGES):
            prepared(_normalised(part))
    return cast(GraphModule, convert_pt2e(prepared))


def _pixels(job: Job) -> torch.Tensor:
    """The shape and memory layout of a program's input."""
    return torch.tensor(np.ascontiguousarray(job.calibration[:1]))


def _normalised(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.tensor(grid.normalise(np.ascontiguousarray(images))).permute(0, 3, 1, 2)


def _plain(model: torch.nn.Module, example: torch.Tensor) -> torch.nn.Module:
    """`model` with folded batch norms and contiguous weights."""
    folded = fold_batch_norm(model, example)
    for tensor in (*folded.parameters(), *folded.buffers()):
        tensor.data = tensor.data.contiguous()
    return folded


def convert(model: torch.nn.Module, pixels: torch.Tensor) -> bytes:
    """A .pte program of `model`, in float or quantized, for inputs shaped like `pixels`."""
    exported = export(model, (pixels,))
    _plain_pools(exported.graph_module)
    exported = exported.run_decompositions(
        {
            torch.ops.aten.hardsigmoid.default: _hard_sigmoid,
            torch.ops.aten.adaptive_avg_pool2d.default: _average_pool,
        }
    )
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    program = edge.to_executorch(ExecutorchBackendConfig(extract_delegate_segments=True))
    return cast(bytes, program.buffer)


def _plain_pools(model: GraphModule) -> None:
    """Let pools that never reach over the border not say how they would.

    XNNPACK has no such pools, and leaves all of them to another kernel.
    """
    for node in model.graph.nodes:
        if node.target != torch.ops.aten.avg_pool2d.default or len(node.args) < 5:
            continue
        image, kernel, strides, padding, *_ = node.args
        sizes = image.meta["val"].shape[-2:]
        stay = ((size - k) % s == 0 for size, k, s in zip(sizes, kernel, strides, strict=True))
        if not any(padding) and all(stay) and len(node.args) < 7:
            node.args = (image, kernel, strides, padding, False, False)
    model.recompile()


def _hard_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Without torch's whole numbers, which would be cast in every inference."""
    return torch.nn.functional.hardtanh(x + 3.0, 0.0, 6.0) * (1 / 6)


def _average_pool(x: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Without torch's change of strides, which XNNPACK does not have, where a mean does it."""
    if all(one == 1 for one in size):
        return x.mean((-2, -1), keepdim=True)
    return cast(torch.Tensor, torch.ops.aten._adaptive_avg_pool2d.default(x, size))


def _quantizer(job: Job) -> XNNPACKQuantizer:
    """XNNPACK's quantizer with the job's ranges, the exact input and the layers left in float."""
    ranges = job.recipe.ranges or ("min-max" if job.rounded else None)
    kept = set(job.recipe.float_layers)
    quantizer = _Quantizer().set_global(_config(OBSERVERS[ranges]))
    return quantizer.set_filter_function(lambda node: _module_of(node) not in kept)


def _config(observer: Any) -> QuantizationConfig:
    options = {"averaging_constant": 0.2} if observer is MovingAverageMinMaxObserver else {}
    config = get_symmetric_quantization_config(is_per_channel=True)
    activation = replace(
        config.input_activation,
        observer_or_fake_quant_ctr=observer.with_args(eps=_LEAST_ACTIVATION_SCALE, **options),
    )
    weight = replace(
        config.weight,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=_LEAST_WEIGHT_SCALE),
    )
    return replace(config, input_activation=activation, output_activation=activation, weight=weight)


def _module_of(node: Node) -> str:
    """Path of the module whose `forward` calls the operator of `node`."""
    stack = list(node.meta.get("nn_module_stack", {"": ("", None)}).values())
    return str(stack[-1][0])


class _Quantizer(XNNPACKQuantizer):  # type: ignore[misc]
    """XNNPACK's quantizer, which knows ReLU6 behind a layer, and pixels as the exact input."""

    def annotate(self, model: GraphModule) -> GraphModule:
        with _clamps_as_relu(model):
            super().annotate(model)
        (image,) = (node for node in model.graph.nodes if node.op == "placeholder")
        exact = FixedQParamsQuantizationSpec(
            dtype=torch.int8, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine,
            scale=grid.SCALE, zero_point=0,
        )  # fmt: skip
        for node in image.users:
            annotation = node.meta.get("quantization_annotation")
            if annotation is not None and image in annotation.input_qspec_map:
                annotation.input_qspec_map[image] = exact
        return model


@contextlib.contextmanager
def _clamps_as_relu(model: GraphModule) -> Iterator[None]:
    """Within this, a clamp (ReLU6) behind a convolution or linear layer looks like a ReLU.

    XNNPACK computes both inside the layer. Its quantizer takes only a ReLU as a part of it, and
    would give the layer's output the range in front of the clamp.
    """
    clamps = [
        (node, node.target, node.args)
        for node in model.graph.nodes
        if node.target in _CLAMPS and node.args[0].target in _CLAMPED
    ]
    for node, _, args in clamps:
        node.target, node.args = torch.ops.aten.relu.default, args[:1]
    try:
        yield
    finally:
        for node, target, args in clamps:
            node.target, node.args = target, args
