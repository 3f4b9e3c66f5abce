from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.measure.accuracy import agreement, logits_of, top1


def test_top1_is_the_share_of_right_answers() -> None:
    logits = np.array([[1, 2], [4, 3], [0, 1], [9, 0]], np.float32)
    assert top1(logits, np.array([1, 0, 0, 1])) == 0.5


def test_agreement_is_about_answers_not_logits() -> None:
    a = np.array([[1, 2], [4, 3]], np.float32)
    assert agreement(a, 10 * a) == 1
    assert agreement(a, -a) == 0


def test_logits_of_a_split_are_in_order_and_whole_whatever_the_batch() -> None:
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    seen: list[int] = []

    def runner(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(len(batch))
        return np.float32(batch.reshape(-1, 1))

    assert logits_of(runner, images, batch=3).ravel().tolist() == list(range(7))
    assert seen == [3, 3, 1]
