"""Simulated int8: a float network with the rounding that a backend's quantizer will add.

Weights are rounded symmetrically per output channel and inputs of conv and linear layers
asymmetrically per tensor (arXiv 1712.05877, 1806.08342). The gradient of the rounding is 1, and 0
where an input is outside its range (straight-through estimator, arXiv 1308.3432).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.networks import grid
from pipeline.networks.inference import predict
from pipeline.networks.layers import conv_and_linear
from pipeline.networks.pixels import PixelsToLogits

_WEIGHT_LEVELS = 127
_INPUT_LEVELS = 255
_SMALLEST_SCALE = 1e-12


@dataclass(frozen=True)
class Grid:
    """The values of a quantized input: (q - zero_point) * scale for q in [0, 255]."""

    scale: float
    zero_point: int

    @classmethod
    def spanning(cls, low: float, high: float) -> Grid:
        """The finest grid over [low, high] and 0; it contains 0 exactly."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / _INPUT_LEVELS
        return cls(scale, round(-low / scale)) if scale > _SMALLEST_SCALE else cls(1.0, 0)


PIXELS = Grid(grid.SCALE, grid.CENTRE)
"""The grid of a student's input (x - 128) / 64, on which all pixels lie: see `networks.grid`."""


def calibrate(model: PixelsToLogits, images: NDArray[np.uint8]) -> dict[str, Grid]:
    """The grid of the input of every conv and linear layer, by module path.

    It spans the smallest and the largest value in eval mode. A layer that takes the network's own
    input has the grid `PIXELS`.

    Args:
        model: a student.
        images: raw pixels [N, H, W, C] of the calibration set.
    """
    grids: dict[str, Grid] = {}
    ranges: dict[str, tuple[float, float]] = {}
    given: list[torch.Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        given[:] = inputs[:1]

    def note(path: str, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0] is given[0]:
            grids[path] = PIXELS
            return
        low, high = torch.aminmax(inputs[0])
        lowest, highest = ranges.get(path, (0.0, 0.0))
        ranges[path] = min(lowest, low.item()), max(highest, high.item())

    with ExitStack() as hooks:
        hooks.callback(model.network.register_forward_pre_hook(keep).remove)
        for path, layer in conv_and_linear(model.network).items():
            hooks.callback(layer.register_forward_pre_hook(partial(note, path)).remove)
        predict(model, images)
    return {path: Grid.spanning(*ends) for path, ends in ranges.items()} | grids


@contextmanager
def fake_quantization(network: nn.Module, grids: Mapping[str, Grid]) -> Iterator[None]:
    """Within this, the layers in `grids` compute with rounded weights and inputs.

    Weights are rounded in every forward pass. Parameters stay float and can be trained. Outputs are
    not rounded; the next layer rounds its input. Batch norm uses its running statistics in
    training mode, too, while its scale and shift can be trained. It is not folded: a factor per
    output channel does not change the rounding of a weight that has a scale per output channel.
    Autocast is off, as lower precision would round again, to another grid.

    Afterwards the network computes in float again, with the parameters that training has changed.

    Args:
        network: of a student.
        grids: of the inputs of the layers to be rounded, by module path: see `calibrate`.
    """
    layers = conv_and_linear(network)
    with ExitStack() as undo:
        for path, its in grids.items():
            layer = layers[path]
            undo.callback(layer.register_forward_pre_hook(partial(_round, its)).remove)
            hook = layer.register_forward_hook(_plain, always_call=True)
            undo.callback(hook.remove)
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                undo.callback(module.register_forward_pre_hook(_freeze).remove)
        network.__dict__["forward"] = partial(_in_float32, network.forward)
        undo.callback(network.__dict__.pop, "forward")
        yield


def round_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight float [O, ...] rounded to 255 levels per output channel, symmetric around 0."""
    scale = weight.detach().abs().flatten(1).amax(1) / _WEIGHT_LEVELS
    scale = scale.clamp(min=_SMALLEST_SCALE)  # a channel of zeros stays 0
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(
        weight, scale, zeros, 0, -_WEIGHT_LEVELS, _WEIGHT_LEVELS
    )


def round_input(x: torch.Tensor, its: Grid) -> torch.Tensor:
    """A tensor of any shape as float32, rounded to a grid and clamped to its ends."""
    rounded: torch.Tensor = _Round.apply(x.float(), its)  # type: ignore[no-untyped-call]
    return rounded


class _Round(torch.autograd.Function):
    """`torch.fake_quantize_per_tensor_affine`, eight times as fast on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, its: Grid) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.grid = its
        low, high = -its.zero_point, _INPUT_LEVELS - its.zero_point
        return (x * (1 / its.scale)).round_().clamp_(low, high).mul_(its.scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,), its = ctx.saved_tensors, ctx.grid
        low = (-its.zero_point - 0.5) * its.scale
        high = (_INPUT_LEVELS - its.zero_point + 0.5) * its.scale
        return torch.ops.aten.hardtanh_backward(gradient, x, low, high), None


def _round(its: Grid, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    # An attribute of the instance hides the parameter, which keeps its name and its place.
    layer.__dict__["weight"] = round_weight(layer.get_parameter("weight"))
    return round_input(inputs[0], its), *inputs[1:]


def _plain(layer: nn.Module, _inputs: object, _output: object) -> None:
    layer.__dict__.pop("weight", None)


def _in_float32(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())


def _freeze(module: nn.Module, _inputs: tuple[Any, ...]) -> None:
    module.training = False
