"""Accuracy on a split: pure functions of logits float32 [N, C] and labels int64 [N]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.accuracy.records import Mistake, ReliabilityBin
from pipeline.data.answers import correct


def lost_and_won(
    logits: NDArray[np.float32], reference: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[int, int]:
    """How many images only the `reference` gets right, and how many only `logits`, both [N, C]."""
    right, was_right = correct(logits, labels), correct(reference, labels)
    return int((was_right & ~right).sum()), int((right & ~was_right).sum())


def signal_to_noise(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float | None:
    """10 log10(|reference|^2 / |logits - reference|^2) of logits [N, C], in dB.

    The mean logit of each image is subtracted from both first: no class probability depends on it.

    Returns:
        The ratio; None where both are equal.
    """
    centred = [z.astype(np.float64) - z.mean(axis=1, keepdims=True) for z in (logits, reference)]
    noise = float(np.square(centred[0] - centred[1]).sum())
    return 10 * math.log10(float(np.square(centred[1]).sum()) / noise) if noise else None


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax in [0, 1] of each row of `logits` [N, C]."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def reliability(
    logits: NDArray[np.float32], labels: NDArray[np.int64], bins: int = 15
) -> tuple[ReliabilityBin, ...]:
    """The reliability diagram: images by the probability of their answer.

    Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599).

    Args:
        logits: [N, C].
        labels: [N].
        bins: equal parts of [0, 1]; a bin's lower end belongs to the bin before it.

    Returns:
        The bins that are not empty.
    """
    confidence = probabilities(logits).max(axis=1)
    right = correct(logits, labels)
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return tuple(
        ReliabilityBin(
            images=int(own.sum()),
            confidence=float(confidence[own].mean()),
            accuracy=float(right[own].mean()),
        )
        for own in (places == place for place in range(bins))
        if own.any()
    )


def calibration_error(diagram: Sequence[ReliabilityBin]) -> float:
    """Expected calibration error: mean over images of their bin's |accuracy - confidence|."""
    gaps = sum(one.images * abs(one.accuracy - one.confidence) for one in diagram)
    return gaps / sum(one.images for one in diagram)


def confusions(
    logits: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[tuple[int, int, int], ...]:
    """(label, wrong answer, images) of all wrong answers, the most frequent first."""
    answers = logits.argmax(axis=1)
    pairs = np.stack([labels, answers], axis=1)[answers != labels]
    kinds, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return tuple((int(kinds[i, 0]), int(kinds[i, 1]), int(counts[i])) for i in order)


def worst_mistakes(
    logits: NDArray[np.float32], labels: NDArray[np.int64], count: int
) -> tuple[Mistake, ...]:
    """The `count` wrong answers of the highest probability, the highest first."""
    confidence = probabilities(logits).max(axis=1)
    answers = logits.argmax(axis=1)
    wrong = np.flatnonzero(answers != labels)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return tuple(
        Mistake(
            image=int(i),
            label=int(labels[i]),
            answer=int(answers[i]),
            probability=float(confidence[i]),
        )
        for i in chosen
    )
