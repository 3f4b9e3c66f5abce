"""Simulated int8: a float network with the rounding that a backend's quantizer will add.

Weights are rounded symmetrically per output channel, tensors asymmetrically as a whole
(arXiv 1712.05877, 1806.08342). These tensors are the inputs of conv and linear layers, and of
activations that no runtime fuses into the layer before them. The gradient of the rounding is 1, and
0 where a value is outside its range (straight-through estimator, arXiv 1308.3432).
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
_UNFUSED = ("swish", "sigmoid", "silu", "gelu", "mish", "tanh")
"""Parts of class names, of torch and timm: activations that runtimes compute by themselves."""


@dataclass(frozen=True)
class Grid:
    """The values of a quantized tensor: (q - zero_point) * scale for q in [0, 255]."""

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


@dataclass(frozen=True)
class Rounded:
    """How the input of a module is rounded."""

    grid: Grid
    at: str
    """Path of the module where the tensor is rounded: the outermost one that takes it as its
    input. Within a residual block the shortcut then has the same rounded values."""


def calibrate(model: PixelsToLogits, images: NDArray[np.uint8]) -> dict[str, Rounded]:
    """How to round the input of every conv and linear layer and unfused activation, by path.

    A grid spans the smallest and the largest value in eval mode. A layer that takes the network's
    own input has the grid `PIXELS`.

    Args:
        model: a student.
        images: raw pixels [N, H, W, C] of the calibration set.
    """
    network = model.network
    targets = conv_and_linear(network).keys() | _unfused(network)
    ranges: dict[str, tuple[float, float]] = {}
    found: dict[str, Rounded] = {}
    taken: dict[str, torch.Tensor] = {}  # by the modules that are at work, so that few are held

    def note(path: str, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if not inputs:
            return
        x = taken[path] = inputs[0]
        if path not in targets:
            return
        parts = path.split(".")
        above = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        at = next(one for one in above if taken.get(one) is x)
        if x is taken[""]:
            found[path] = Rounded(PIXELS, at)
            return
        low, high = torch.aminmax(x)
        lowest, highest = ranges.get(path, (0.0, 0.0))
        ends = ranges[path] = min(lowest, low.item()), max(highest, high.item())
        found[path] = Rounded(Grid.spanning(*ends), at)

    def forget(path: str, *_: object) -> None:
        taken.pop(path, None)

    with ExitStack() as hooks:
        for path, module in network.named_modules():
            hooks.callback(module.register_forward_pre_hook(partial(note, path)).remove)
            hooks.callback(module.register_forward_hook(partial(forget, path)).remove)
        predict(model, images)
    return found


def _unfused(network: nn.Module) -> set[str]:
    """Paths of the activations that round their input, as they are not part of a layer."""
    kinds = {path: type(module).__name__.lower() for path, module in network.named_modules()}
    return {path for path, kind in kinds.items() if any(part in kind for part in _UNFUSED)}


@contextmanager
def fake_quantization(network: nn.Module, grids: Mapping[str, Rounded]) -> Iterator[None]:
    """Within this, the modules in `grids` compute with rounded inputs, and layers rounded weights.

    Weights are rounded in every forward pass. Parameters stay float and can be trained. Outputs are
    not rounded; the next layer rounds its input. Batch norm uses its running statistics in
    training mode, too, while its scale and shift can be trained. It is not folded: a factor per
    output channel does not change the rounding of a weight that has a scale per output channel.
    Autocast is off, as lower precision would round again, to another grid.

    Afterwards the network computes in float again, with the parameters that training has changed.

    Args:
        network: of a student.
        grids: how inputs are rounded, by the path of what takes them: see `calibrate`.
    """
    layers = conv_and_linear(network)
    with ExitStack() as undo:
        for at, its in {one.at: one.grid for one in grids.values()}.items():
            module = network.get_submodule(at)
            undo.callback(module.register_forward_pre_hook(partial(_round_input, its)).remove)
        for path in grids.keys() & layers.keys():
            undo.callback(layers[path].register_forward_pre_hook(_round_weight).remove)
            hook = layers[path].register_forward_hook(_plain, always_call=True)
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


def _round_input(its: Grid, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return round_input(inputs[0], its), *inputs[1:]


def _round_weight(layer: nn.Module, _inputs: object) -> None:
    # An attribute of the instance hides the parameter, which keeps its name and its place.
    layer.__dict__["weight"] = round_weight(layer.get_parameter("weight"))


def _plain(layer: nn.Module, _inputs: object, _output: object) -> None:
    layer.__dict__.pop("weight", None)


def _in_float32(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())


def _freeze(module: nn.Module, _inputs: tuple[Any, ...]) -> None:
    module.training = False
