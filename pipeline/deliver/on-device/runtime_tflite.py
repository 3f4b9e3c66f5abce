"""LiteRT (TensorFlow Lite) on the CPU, from whichever package brings its interpreter."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from common import Runner

PACKAGES = {
    "ai_edge_litert": "ai_edge_litert.interpreter",
    "tflite_runtime": "tflite_runtime.interpreter",
    "tensorflow": "tensorflow.lite.python.interpreter",
}
"""Module of the interpreter by package; the first that is installed counts."""


def load(model: str, threads: int, batch: int = 1) -> Runner:
    """`model`, whose graph takes one image: of `batch` images it gets one after the other."""
    module = importlib.import_module(PACKAGES[_package()])
    interpreter = module.Interpreter(model, num_threads=threads)
    interpreter.allocate_tensors()
    image_index = interpreter.get_input_details()[0]["index"]
    logits_index = interpreter.get_output_details()[0]["index"]

    def run(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        interpreter.set_tensor(image_index, image)
        interpreter.invoke()
        logits: np.ndarray[Any, Any] = interpreter.get_tensor(logits_index)
        return logits

    def run_all(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.concatenate([run(images[i : i + 1]) for i in range(batch)])

    return run if batch == 1 else run_all


def versions() -> dict[str, str]:
    package = _package()
    version = getattr(importlib.import_module(package), "__version__", "of unknown version")
    return {package.replace("_", "-"): str(version)}


def _package() -> str:
    for package in PACKAGES:
        if importlib.util.find_spec(package):
            return package
    raise ImportError(f"none of {', '.join(PACKAGES)} is installed")
