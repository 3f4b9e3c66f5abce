"""Opens a .mlpackage by Core ML on a Mac: in the lab and, as runtime.py, in bundles.

Needs macOS, NumPy, Pillow and coremltools, whose Python interface takes images of Pillow. This file
was written without a Mac and has not run on one.
"""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any, Callable

import numpy as np


def load(
    model: str, threads: int, batch: int = 0
) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """A function of raw pixels uint8 [N, H, W, C] to logits float32 [N, classes].

    The program takes one image. Several images run one after the other. Core ML chooses among CPU,
    GPU and Neural Engine, as it does in an app by default.

    Args:
        model: path of the .mlpackage.
        threads: of the CPU; unused, as Core ML has no such setting.
        batch: images per call; the runner takes any number.
    """
    del threads, batch
    if sys.platform != "darwin":
        raise RuntimeError(
            "Core ML runs on Apple's systems alone, and this script on a Mac; elsewhere "
            "`python verify.py --graph` evaluates the same program by torch"
        )
    import coremltools
    from PIL import Image

    opened = coremltools.models.MLModel(model, compute_units=coremltools.ComputeUnit.ALL)

    def one(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        grey = pixels.shape[-1] == 1
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels))
        return np.asarray(opened.predict({"image": image})["logits"], np.float32).reshape(1, -1)

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.concatenate([one(pixels) for pixels in images])

    return run


def versions() -> dict[str, str]:
    """The version of coremltools by its package's name."""
    return {"coremltools": importlib.metadata.version("coremltools")}
