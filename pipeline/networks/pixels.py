"""From raw pixels to logits: the normalisation as a part of the model."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.data import batches
from pipeline.networks import grid
from pipeline.networks.records import Normalisation


class PixelsToLogits(nn.Module):
    """A network with its normalisation inside: raw pixels in, logits out.

    Pixels are uint8 [N, H, W, C] in [0, 255], logits float32 [N, classes], as for every artifact.

    Args:
        network: takes normalised images float32 [N, C, H, W].
        normalisation: mean and std per channel, in [0, 255].
        input_size: height and width that images are resized to; None leaves their size.
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
        # A permuted NHWC tensor is channels-last in memory, the faster layout for convolutions.
        images = ((pixels.float() - self.mean) * self.scale).permute(0, 3, 1, 2)
        if self.input_size is not None:
            size = (self.input_size, self.input_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return cast(torch.Tensor, self.network(images))

    def images_per_call(self, most: int, height: int, width: int) -> int:
        """See `pipeline.data.batches`, for images that `forward` may resize."""
        if self.input_size is not None:
            height, width = max(height, self.input_size), max(width, self.input_size)
        return batches.images_per_call(most, height, width)


def student_normalisation(channels: int) -> Normalisation:
    """(x - 128) / 64 for every channel: see `networks.grid`."""
    return Normalisation(mean=(float(grid.CENTRE),) * channels, std=(float(grid.STEPS),) * channels)


def pretrained_normalisation(model: nn.Module, channels: int) -> Normalisation:
    """Mean and std that timm's weights of `model` were trained with, in [0, 255]."""
    config = cast(dict[str, Any], model.pretrained_cfg)
    mean, std = (tuple(255 * value for value in config[key]) for key in ("mean", "std"))
    if channels == 1:  # timm sums the stem's weights over RGB: use the mean of the statistics
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return Normalisation(mean=mean, std=std)
