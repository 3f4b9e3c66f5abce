"""Grad-CAM of torch networks, by Captum."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from pipeline.attribution.agreement import Floats
from pipeline.attribution.occlusion import Sample
from pipeline.core.errors import PipelineError
from pipeline.core.progress import track
from pipeline.networks.pixels import PixelsToLogits

_IMAGES = 64
"""Per call at most: see `pipeline.data.batches`."""


@dataclass(frozen=True)
class Layer:
    """The last feature map of a network that still has positions."""

    name: str
    """Path of the module in the network whose output it is."""
    height: int
    width: int
    channels_last: bool
    """The map is [N, H, W, F] instead of [N, F, H, W]."""

    def __str__(self) -> str:
        return f"{self.name} ({self.height} x {self.width})"


def require_captum() -> None:
    """Raise `PipelineError` where Captum is not installed."""
    if importlib.util.find_spec("captum") is None:
        raise PipelineError(
            "the package captum, which Grad-CAM needs, is not installed",
            where="the stage attribution",
            fix="`pip install '.[explain]'`, or leave attribution.enabled empty",
        )


def find_layer(model: PixelsToLogits, size: int, channels: int) -> Layer | str:
    """The last feature map with more than one position, or why there is none.

    Found by a forward pass of two black images: of all outputs that have several positions, maps
    and sequences of tokens, the last one in order of execution. Where it is a sequence, as in a
    vision transformer, no map leads to the logits.

    Args:
        model: takes raw pixels.
        size: height and width of the images in pixels.
        channels: of the images.
    """
    found: list[tuple[str, torch.Size]] = []

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                found.append((name, output.shape))

        return hook

    modules = [(name, module) for name, module in model.network.named_modules() if name]
    handles = [module.register_forward_hook(keep(name)) for name, module in modules]
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model(torch.zeros(2, size, size, channels, dtype=torch.uint8, device=device))
    finally:
        for handle in handles:
            handle.remove()
    channels_last = getattr(model.network, "output_fmt", "NCHW") == "NHWC"
    for name, shape in reversed(found):
        if len(shape) == 3 and shape[1] > 1:
            return f"its last features, of `{name}`, are {shape[1]} tokens and no map"
        if len(shape) == 4:
            height, width = shape[1:3] if channels_last else shape[2:]
            if height * width > 1:
                return Layer(name, height, width, channels_last)
    return "no feature map of it has more than one position"


class _ChannelsFirst(nn.Module):
    """A module whose output [N, H, W, F] passes through `seen` as [N, F, H, W]."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.seen = module, nn.Identity()

    def forward(self, *inputs: Any) -> torch.Tensor:
        maps: torch.Tensor = self.seen(self.module(*inputs).permute(0, 3, 1, 2))
        return maps.permute(0, 2, 3, 1)


def grad_cam(
    model: PixelsToLogits, layer: Layer, sample: Sample, targets: NDArray[np.int64], label: str
) -> Floats:
    """Grad-CAM, resized to the positions of the occlusion maps.

    Selvaraju et al., Grad-CAM (arXiv 1610.02391): the features of a layer, each weighted with the
    mean gradient of the target's logit to it, summed, and the negative part cut off. Bilinear
    interpolation brings it to the grid of the sample's patches.

    Args:
        model: is changed: its parameters need no gradient any more.
        layer: of its network, as `find_layer` gives it.
        sample: the images.
        targets: a class for each image [N].
        label: of the progress bar.

    Returns:
        float64 [N, G, G], at least 0; a map without any positive part is all 0.
    """
    from captum.attr import LayerGradCam

    model.eval().requires_grad_(False)
    module = model.network.get_submodule(layer.name)
    if layer.channels_last:
        parent, _, leaf = layer.name.rpartition(".")
        wrapped = _ChannelsFirst(module)
        setattr(model.network.get_submodule(parent), leaf, wrapped)
        module = wrapped.seen
    method = LayerGradCam(model, module)
    device = next(model.parameters()).device
    grid, size = sample.strips.shape
    step = model.images_per_call(_IMAGES, size, size)
    parts = []
    starts = range(0, len(sample), step)
    for start in track(starts, label, total=len(sample), step=step):
        places = sample.places[start : start + step]
        pixels = torch.tensor(sample.images[places], device=device)
        classes = torch.tensor(targets[start : start + step], device=device)
        maps = method.attribute(pixels, target=classes, relu_attributions=True)
        resized = F.interpolate(maps, (grid, grid), mode="bilinear", antialias=True)
        parts.append(resized[:, 0].detach().cpu().numpy().astype(np.float64))
    return np.concatenate(parts)
