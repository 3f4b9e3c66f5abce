"""Which layers int8 hurts most, measured in torch on the calibration set."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from pipeline.backends.base import Job
from pipeline.distill.fake_quantization import calibrate, fake_quantization, products
from pipeline.networks.build import PixelsToLogits, load_pixels_to_logits
from pipeline.networks.inference import predict

IMAGES = 128
"""Of the calibration set; their order is drawn, so that the first are a sample."""


def product_layers(model: PixelsToLogits, image_size: int, channels: int) -> tuple[str, ...]:
    """Names in `model.network` of the convolutions and linear layers, in order of execution."""
    return tuple(_macs(model, image_size, channels))


def float_costs(job: Job) -> dict[str, tuple[float, float]]:
    """By layer of the student, its shares of all multiply-accumulates and of all weights."""
    model, card = load_pixels_to_logits(job.student_folder)
    layers = products(model.network)
    macs = _macs(model, card.image_size, card.channels)
    weights = {name: layers[name].weight.numel() for name in macs}
    all_macs, all_weights = sum(macs.values()), sum(weights.values())
    return {name: (macs[name] / all_macs, weights[name] / all_weights) for name in macs}


def _macs(model: PixelsToLogits, image_size: int, channels: int) -> dict[str, int]:
    """Multiply-accumulates for one image by layer, in order of execution."""
    layers = products(model.network)
    macs: dict[str, int] = {}

    def note(name: str, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        macs[name] = macs.get(name, 0) + output.numel() * layers[name].weight[0].numel()

    hooks = [layer.register_forward_hook(partial(note, name)) for name, layer in layers.items()]
    image = torch.zeros(1, image_size, image_size, channels, dtype=torch.uint8)
    predict(model, image.numpy())
    for hook in hooks:
        hook.remove()
    return macs


def most_sensitive(job: Job) -> tuple[str, ...]:
    """The student's convolutions and products, the one that int8 hurts most first.

    Each is rounded to int8 by itself. What counts is the power of the error in the logits.
    """
    model, _ = load_pixels_to_logits(job.student_folder)
    images = job.calibration[:IMAGES]
    grids = calibrate(model, images)
    exact = predict(model, images)
    noise = {}
    for name, grid in grids.items():
        with fake_quantization(model.network, {name: grid}):
            noise[name] = float((predict(model, images) - exact).square().mean())
    return tuple(sorted(noise, key=lambda name: -noise[name]))
