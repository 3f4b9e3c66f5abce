"""A runtime's logits for a whole split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.core.progress import track

Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Raw pixels uint8 [N, H, W, C] in, logits float32 [N, classes] out."""


def logits_of(
    runner: Runner, images: NDArray[np.uint8], batch: int = 250, label: str = "evaluating"
) -> NDArray[np.float32]:
    """Run a whole split, one batch of it in memory at a time.

    Args:
        runner: an opened model.
        images: raw pixels uint8 [N, H, W, C], may be memory-mapped.
        batch: images per call; the last call may have fewer.
        label: of the progress bar.

    Returns:
        Logits float32 [N, classes].
    """
    starts = range(0, len(images), batch)
    parts = [
        runner(np.ascontiguousarray(images[start : start + batch]))
        for start in track(starts, label, total=len(images), step=batch)
    ]
    return np.concatenate(parts)
