from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.export.evaluate import logits_of


def test_logits_of_a_split_are_in_order_and_whole_whatever_the_batch() -> None:
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    seen: list[int] = []

    def runner(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(len(batch))
        return np.float32(batch.reshape(-1, 1))

    assert logits_of(runner, images, most=3).ravel().tolist() == list(range(7))
    assert seen == [3, 3, 1]
