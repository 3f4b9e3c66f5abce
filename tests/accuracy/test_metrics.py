from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.accuracy.metrics import (
    calibration_error,
    confusions,
    lost_and_won,
    probabilities,
    reliability,
    signal_to_noise,
    worst_mistakes,
)
from pipeline.data.answers import agreement, top1


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


def _drawn(n: int = 5000, classes: int = 4) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits, and labels that fall as their probabilities say."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (n, classes)).astype(np.float32)
    shares = probabilities(logits)
    labels = (rng.random((n, 1)) > shares.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    return logits, labels


def test_probabilities_are_the_softmax_even_of_large_logits() -> None:
    assert probabilities(np.float32([[0, np.log(3)]])) == pytest.approx(np.array([[0.25, 0.75]]))
    assert probabilities(np.float32([[1000, 1000]])).tolist() == [[0.5, 0.5]]


def test_reliability_puts_every_image_into_the_bin_of_its_probability() -> None:
    logits = np.log(np.float32([[0.9, 0.1], [0.8, 0.2], [0.55, 0.45], [0.02, 0.98]]))
    low, high, top = reliability(logits, np.array([0, 1, 0, 1]), bins=4 * 2)[0:3]
    assert (low.images, low.accuracy) == (1, 1)
    assert low.confidence == pytest.approx(0.55)
    assert (high.images, high.accuracy) == (1, 0)  # 0.8 in (0.75, 0.875]
    assert (top.images, top.accuracy) == (2, 1)
    assert top.confidence == pytest.approx((0.9 + 0.98) / 2)


def test_calibration_error_is_small_where_labels_fall_as_told_large_if_overconfident() -> None:
    logits, labels = _drawn()
    diagram = reliability(logits, labels)
    assert sum(one.images for one in diagram) == len(labels)
    assert calibration_error(diagram) < 0.02
    sharp = reliability(10 * logits, labels)
    by_hand = abs(probabilities(10 * logits).max(axis=1).mean() - top1(logits, labels))
    assert calibration_error(sharp) == pytest.approx(by_hand, abs=0.01)
    assert calibration_error(sharp) > 0.1


def test_confusions_and_mistakes_are_of_wrong_answers_alone() -> None:
    logits, labels = _drawn()
    wrong = logits.argmax(axis=1) != labels
    found = confusions(logits, labels)
    assert sum(count for *_, count in found) == wrong.sum()
    assert all(label != answer for label, answer, _ in found)
    assert [count for *_, count in found] == sorted((c for *_, c in found), reverse=True)
    label, answer, count = found[0]
    assert count == ((labels == label) & (logits.argmax(axis=1) == answer)).sum()
    worst = worst_mistakes(logits, labels, 5)
    confidence = probabilities(logits).max(axis=1)
    assert [one.probability for one in worst] == sorted(confidence[wrong], reverse=True)[:5]
    assert all(labels[one.image] == one.label != one.answer for one in worst)
    assert confusions(logits, logits.argmax(axis=1)) == ()
    assert worst_mistakes(logits, logits.argmax(axis=1), 5) == ()
