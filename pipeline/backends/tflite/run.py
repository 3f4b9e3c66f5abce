"""Opens a .tflite model by LiteRT on the CPU: in the lab and, as runtime.py, in bundles.

Needs NumPy and any package that brings LiteRT's interpreter.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Callable

import numpy as np

PACKAGES = {
    "ai_edge_litert": "ai_edge_litert.interpreter",
    "tflite_runtime": "tflite_runtime.interpreter",
    "tensorflow": "tensorflow.lite.python.interpreter",
}
"""Module of the interpreter by package; the first that is installed is used."""


def load(
    model: str | bytes, threads: int, batch: int = 0
) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """A function of raw pixels uint8 [N, H, W, C] to logits float32 [N, classes].

    The graph takes one image, the shape that delegates of phones want. Several images run one
    after the other.

    Args:
        model: path of the .tflite file, or its content.
        threads: of the CPU.
        batch: images per call; the runner takes any number.
    """
    del batch
    interpreter = open_interpreter(model, threads)
    image = interpreter.get_input_details()[0]["index"]
    output = interpreter.get_output_details()[0]["index"]

    def one(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        interpreter.set_tensor(image, images)
        interpreter.invoke()
        logits: np.ndarray[Any, Any] = interpreter.get_tensor(output)
        return logits

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if len(images) == 1:
            return one(images)
        return np.concatenate([one(images[i : i + 1]) for i in range(len(images))])

    return run


def open_interpreter(model: str | bytes, threads: int = 1, **options: Any) -> Any:
    """LiteRT's interpreter of a file or its content, with its tensors allocated."""
    module = importlib.import_module(PACKAGES[_package()])
    content = {"model_content": model} if isinstance(model, bytes) else {"model_path": model}
    interpreter = module.Interpreter(**content, num_threads=threads, **options)
    interpreter.allocate_tensors()
    return interpreter


def versions() -> dict[str, str]:
    """The version of the package that brings the interpreter, by its name."""
    package = _package()
    version = getattr(importlib.import_module(package), "__version__", "of unknown version")
    return {package.replace("_", "-"): str(version)}


def _package() -> str:
    for package in PACKAGES:
        if importlib.util.find_spec(package):
            return package
    raise ImportError(f"none of {', '.join(PACKAGES)} is installed")
