"""A network with its normalisation inside: raw pixels in, logits out."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.networks import grid
from pipeline.networks.records import Normalisation


class PixelsToLogits(nn.Module):
    """A network with its normalisation inside: raw pixels in, logits out.

    Pixels are uint8 [N, H, W, C] in [0, 255], logits float32 [N, classes]. This is the
    contract of every artifact. A teacher with an `input_size` of its own sees the images
    resized to it, square; None: as they are.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, network: nn.Module, normalisation: Normalisation, input_size: int | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.normalisation = normalisation
        self.input_size = input_size
        self.register_buffer("mean", torch.tensor(normalisation.mean), persistent=False)
        scale = 1 / torch.tensor(normalisation.std)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        # The permuted NHWC tensor *is* channels-last memory, which the kernels prefer.
        images = ((pixels.float() - self.mean) * self.scale).permute(0, 3, 1, 2)
        if self.input_size is not None:
            size = (self.input_size, self.input_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return cast(torch.Tensor, self.network(images))


def student_normalisation(channels: int) -> Normalisation:
    """(x - 128) / 64: x - 128 is then the int8 input at scale 1/64, zero point 0, exactly."""
    return Normalisation(mean=(float(grid.CENTRE),) * channels, std=(float(grid.STEPS),) * channels)


def pretrained_normalisation(model: nn.Module, channels: int) -> Normalisation:
    """The statistics that timm's weights were trained with, in [0, 255]."""
    config = cast(dict[str, Any], model.pretrained_cfg)
    mean, std = (tuple(255 * value for value in config[key]) for key in ("mean", "std"))
    if channels == 1:  # timm sums the stem's kernels over RGB: grey has the mean statistics
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return Normalisation(mean=mean, std=std)
