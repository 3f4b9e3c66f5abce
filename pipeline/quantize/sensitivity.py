"""Which layers int8 hurts most, measured in torch on the calibration set."""

from __future__ import annotations

from pipeline.backends.base import Job
from pipeline.distill.fake_quantization import calibrate, fake_quantization
from pipeline.networks.build import load_pixels_to_logits
from pipeline.networks.inference import predict

IMAGES = 128
"""Of the calibration set; their order is drawn, so that the first are a sample."""


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
