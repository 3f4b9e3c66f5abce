"""What happens inside an int8 artifact: noise layer by layer, and the exact input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.base.job import Compiler, Job
from pipeline.backends.base.spec import Backend
from pipeline.compile.records import LayerNoise
from pipeline.core.errors import PipelineError
from pipeline.core.files import temporary_folder
from pipeline.data.batches import batches
from pipeline.export.evaluate import logits_of
from pipeline.networks import grid

NOISE_IMAGES = 64
EXACT_IMAGES = 32


@dataclass(frozen=True)
class Inside:
    """The result of `look_inside`."""

    layers: tuple[LayerNoise, ...] = ()
    exact_input_images: int | None = None
    """See `ArtifactRecord`."""
    notes: tuple[str, ...] = ()
    """Why there are no `layers`."""


def look_inside(
    spec: Backend, compiler: Compiler, job: Job, model: Path, val: NDArray[np.uint8]
) -> Inside:
    """Compare an int8 artifact with the same weights in float, layer by layer on some images.

    Args:
        spec: the artifact's backend.
        compiler: of that backend.
        job: what the artifact was compiled from.
        model: the compiled file.
        val: raw pixels [N, H, W, C], of which `NOISE_IMAGES` are taken.

    Raises:
        PipelineError: where pixels and normalised floats do not give the same logits, bit for bit.
    """
    exact = _exact_input(spec, compiler, job, model)
    images = val[np.linspace(0, len(val) - 1, min(NOISE_IMAGES, len(val))).astype(int)]
    powers = []
    with temporary_folder() as scratch:
        in_float = compiler.in_float(job, scratch)
        for part in batches(images, NOISE_IMAGES):
            references = compiler.layer_outputs(in_float, part)
            outputs = compiler.layer_outputs(model, part)
            if len(job.layers) != len(references) or references.keys() - outputs.keys():
                note = (
                    f"noise by layer is not known: the student has {len(job.layers)} conv and "
                    f"linear layers, the float graph {len(references)}, of which int8 has "
                    f"{len(references.keys() & outputs.keys())}"
                )
                return Inside((), exact, (note,))
            powers.append([power(outputs[name], of) for name, of in references.items()])
    return Inside(layer_noise([layer.name for layer in job.layers], np.sum(powers, axis=0)), exact)


def power(
    output: NDArray[np.float32], reference: NDArray[np.float32]
) -> tuple[np.float64, np.float64]:
    """|reference|^2 and |output - reference|^2 of a layer's outputs [N, elements]."""
    noise = np.square(output.astype(np.float64) - reference).sum()
    return np.square(reference, dtype=np.float64).sum(), noise


def layer_noise(names: Sequence[str], powers: NDArray[np.float64]) -> tuple[LayerNoise, ...]:
    """10 log10(signal / noise) of each layer, over all images together.

    Args:
        names: of the layers.
        powers: signal and noise [layers, 2], each a sum over the images: see `power`. A signal of 0
            counts as 1e-30.
    """
    found = []
    for name, (signal, noise) in zip(names, powers.tolist(), strict=True):
        snr_db = round(10 * math.log10(max(signal, 1e-30) / noise), 2) if noise else None
        found.append(LayerNoise(name=name, snr_db=snr_db))
    return tuple(found)


def _exact_input(spec: Backend, compiler: Compiler, job: Job, model: Path) -> int:
    """Count images whose pixels are the quantized input; one of them holds every pixel value."""
    some = job.calibration[:EXACT_IMAGES]
    images = np.concatenate([some, grid.every_pixel(some.shape[1:])])
    fed = compiler.float_fed(model)
    by_pixels = logits_of(spec.load(model, threads=1), images)
    by_floats = logits_of(lambda pixels: fed(grid.normalise(pixels)), images)
    if not np.array_equal(by_pixels, by_floats):
        error = np.abs(by_pixels - by_floats).max()
        raise PipelineError(
            f"pixels are not its int8 input: fed with (x - 128) / 64 in float, its logits differ "
            f"by up to {error:.2g}",
            where=f"compile of {job.artifact}",
            fix="report the network and the versions of the tools",
        )
    return len(images)
