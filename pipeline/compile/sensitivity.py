"""The layers that int8 affects most, measured in torch on the calibration set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.networks.fake_quantization import calibrate, fake_quantization
from pipeline.networks.inference import predict
from pipeline.networks.layers import conv_and_linear
from pipeline.networks.weights import load_pixels_to_logits

IMAGES = 128
"""Number of calibration images; their order is random, so the first ones are a sample."""


def most_sensitive(student: Path, calibration: NDArray[np.uint8]) -> tuple[str, ...]:
    """The student's conv and linear layers, the most sensitive to int8 first.

    One layer at a time is rounded to int8; the measure is the mean square error of the logits.

    Args:
        student: the folder of its weights and card.
        calibration: raw pixels [N, H, W, C].

    Returns:
        Module paths.
    """
    model, _ = load_pixels_to_logits(student)
    images = calibration[:IMAGES]
    grids = calibrate(model, images)
    exact = predict(model, images)
    noise = {}
    for name in conv_and_linear(model.network).keys() & grids.keys():
        with fake_quantization(model.network, {name: grids[name]}):
            noise[name] = float((predict(model, images) - exact).square().mean())
    return tuple(sorted(noise, key=lambda name: (-noise[name], name)))
