from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.measure.accuracy import (
    agreement,
    layer_noise,
    logits_of,
    lost_and_won,
    signal_to_noise,
    top1,
)


def test_top1_is_the_share_of_right_answers() -> None:
    logits = np.array([[1, 2], [4, 3], [0, 1], [9, 0]], np.float32)
    assert top1(logits, np.array([1, 0, 0, 1])) == 0.5


def test_agreement_is_about_answers_not_logits() -> None:
    a = np.array([[1, 2], [4, 3]], np.float32)
    assert agreement(a, 10 * a) == 1
    assert agreement(a, -a) == 0


def test_flips_are_counted_both_ways() -> None:
    labels = np.array([0, 0, 1, 1, 0])
    reference = np.eye(2, dtype=np.float32)[[0, 0, 1, 0, 1]]
    logits = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 1]]
    assert lost_and_won(logits, reference, labels) == (2, 1)
    change = top1(reference, labels) - top1(logits, labels)
    assert change == pytest.approx((2 - 1) / len(labels))


def test_signal_to_noise_is_the_ratio_of_powers_in_decibels() -> None:
    reference = np.float32([[3, -3], [1, -1]])
    assert signal_to_noise(reference, reference) is None
    assert signal_to_noise(reference * np.float32(1.1), reference) == pytest.approx(20, abs=1e-4)
    assert signal_to_noise(reference * 0, reference) == pytest.approx(0)
    assert signal_to_noise(reference * 0.5 + 7, reference + 2) == pytest.approx(6.0206, abs=1e-3)


def test_logits_of_a_split_are_in_order_and_whole_whatever_the_batch() -> None:
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    seen: list[int] = []

    def runner(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(len(batch))
        return np.float32(batch.reshape(-1, 1))

    assert logits_of(runner, images, batch=3).ravel().tolist() == list(range(7))
    assert seen == [3, 3, 1]


def test_noise_of_layers_is_the_ratio_of_powers() -> None:
    reference = np.full((3, 4), 2.0, np.float32)
    pairs = [(reference + 0.2, reference), (reference, reference), (reference, 0 * reference)]
    first, exact, dead = layer_noise(("a", "b", "c"), pairs)
    assert first.name == "a" and first.snr_db == pytest.approx(20, abs=0.01)
    assert exact.snr_db is None
    assert dead.snr_db is not None and dead.snr_db < -300
