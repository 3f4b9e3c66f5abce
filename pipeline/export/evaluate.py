"""A runtime's logits for a whole split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.core.progress import track
from pipeline.data.batches import batches, images_per_call

Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Raw pixels uint8 [N, H, W, C] in, logits float32 [N, classes] out."""


def logits_of(
    runner: Runner, images: NDArray[np.uint8], most: int = 250, label: str = "evaluating"
) -> NDArray[np.float32]:
    """Run a whole split, one batch of it in memory at a time.

    Args:
        runner: an opened model.
        images: raw pixels uint8 [N, H, W, C], may be memory-mapped.
        most: images per call; fewer where they are large, see `pipeline.data.batches`.
        label: of the progress bar.

    Returns:
        Logits float32 [N, classes].
    """
    step = images_per_call(most, *images.shape[1:3])
    parts = track(batches(images, most), label, total=len(images), step=step)
    return np.concatenate([runner(np.ascontiguousarray(part)) for part in parts])
