"""The convolutions and linear layers of a network: nearly all its work, and what int8 means."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import torch
from torch import nn

from pipeline.networks.inference import predict
from pipeline.networks.pixels import PixelsToLogits
from pipeline.networks.records import Layer


def conv_and_linear(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Convolutions of every kind and linear layers, by module path."""
    kinds = (nn.Conv2d, nn.Linear)
    return {path: m for path, m in network.named_modules() if isinstance(m, kinds)}


def list_layers(model: PixelsToLogits, image_size: int, channels: int) -> tuple[Layer, ...]:
    """The conv and linear layers of `model.network`, in order of execution.

    The multiply-accumulates of a layer that is executed twice are counted twice, its weights once.

    Args:
        model: a student.
        image_size: height and width in pixels.
        channels: of the images.
    """
    layers = conv_and_linear(model.network)
    macs: dict[str, int] = {}

    def note(name: str, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        macs[name] = macs.get(name, 0) + output.numel() * layers[name].weight[0].numel()

    image = torch.zeros(1, image_size, image_size, channels, dtype=torch.uint8)
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(partial(note, name)))
        predict(model, image.numpy())
    return tuple(
        Layer(name=name, macs=count, weights=layers[name].weight.numel())
        for name, count in macs.items()
    )
