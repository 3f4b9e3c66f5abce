"""Runs a model by TFLite Micro in a process of its own, which some models make crash.

    python -P micro_worker.py FOLDER

Reads model.tflite and images.npy in FOLDER, writes logits.npy, and prints the bytes of the smallest
tensor arena that works.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tflite_micro import runtime

ARENA = 1 << 28
"""Bytes of the tensor arena where its size does not matter; what is not used costs nothing."""
ALIGNMENT = 16
"""Bytes: TFLite Micro aligns the arena and what it puts into it."""


def logits(content: bytes, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits [N, classes] of images [N, H, W, C], one after the other."""
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=ARENA)
    found = []
    for i in range(len(images)):
        interpreter.set_input(images[i : i + 1], 0)
        interpreter.invoke()
        found.append(interpreter.get_output(0).copy())
    return np.concatenate(found)


def smallest_arena(content: bytes) -> int:
    """Bytes of the smallest arena in which the model, which can be run, is prepared."""
    fails, works = 0, ARENA
    while works - fails > ALIGNMENT:
        middle = (fails + works) // 2 // ALIGNMENT * ALIGNMENT
        fails, works = (fails, middle) if _prepares(content, middle) else (middle, works)
    return works


def _prepares(content: bytes, arena: int) -> bool:
    """Whether an arena is large enough. In one that is not, TFLite Micro may crash."""
    child = os.fork()
    if child == 0:
        try:
            runtime.Interpreter.from_bytes(content, arena_size=arena)
        except RuntimeError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    model = (folder / "model.tflite").read_bytes()
    np.save(folder / "logits.npy", logits(model, np.load(folder / "images.npy")))
    print(smallest_arena(model))
