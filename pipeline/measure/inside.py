"""What happens inside an int8 artifact: noise layer by layer, and the exact input."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.backends.base import Backend, Job
from pipeline.contracts import LayerNoise, load_split
from pipeline.errors import PipelineError
from pipeline.measure.accuracy import layer_noise

NOISE_IMAGES = 64
EXACT_IMAGES = 32


@dataclass(frozen=True)
class Inside:
    """What was seen; without `layers` a note says why."""

    layers: tuple[LayerNoise, ...] = ()
    exact_input_images: int | None = None
    notes: tuple[str, ...] = ()


def look_inside(backend: Backend, job: Job, model: Path, where: str) -> Inside:
    """Compare an int8 artifact with the weights that it was made of, in float.

    Noise is measured on val images, evenly spread. Raises `PipelineError` where pixels and
    normalised floats do not give the same logits, bit for bit.
    """
    exact = _exact_input(backend, job, model, where)
    val, _ = load_split("val")
    images = val[np.linspace(0, len(val) - 1, min(NOISE_IMAGES, len(val))).astype(int)]
    with tempfile.TemporaryDirectory() as scratch:
        references = backend.layer_outputs(backend.in_float(job, Path(scratch)), images)
    outputs = backend.layer_outputs(model, images)
    if len(job.layers) != len(references) or references.keys() - outputs.keys():
        note = (
            f"noise by layer is not known: the student has {len(job.layers)} convolutions and "
            f"products, the float graph {len(references)}, of which int8 has "
            f"{len(references.keys() & outputs.keys())}"
        )
        return Inside((), exact, (note,))
    pairs = [(outputs[name], reference) for name, reference in references.items()]
    return Inside(layer_noise([layer.name for layer in job.layers], pairs), exact)


def _exact_input(backend: Backend, job: Job, model: Path, where: str) -> int:
    """On how many images pixels were seen to be the quantized input, every value among them."""
    some = job.calibration[:EXACT_IMAGES]
    count = -(-256 // some[0].size)  # as many as hold every value that a pixel can have
    values = np.resize(np.arange(256, dtype=np.uint8), (count, *some.shape[1:]))
    images = np.concatenate([some, values])
    by_pixels = backend.load(model, threads=1)(images)
    floats = (images.astype(np.float32) - np.float32(128)) / np.float32(64)
    by_floats = backend.float_fed(model)(floats)
    if not np.array_equal(by_pixels, by_floats):
        error = np.abs(by_pixels - by_floats).max()
        raise PipelineError(
            f"pixels are not its int8 input: fed with (x - 128) / 64 in float, its logits differ "
            f"by up to {error:.2g}",
            where=where,
            fix="report the network and the versions of the tools",
        )
    return len(images)
