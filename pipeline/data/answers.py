"""Whether a network's answers are right; the answer to an image is its largest logit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def top1(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share in [0, 1] of rows of `logits` [N, C] whose largest entry is at `labels` [N]."""
    return float(correct(logits, labels).mean())


def correct(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the largest entry of each row of `logits` [N, C] is at `labels` [N], bool [N]."""
    right: NDArray[np.bool_] = logits.argmax(axis=1) == labels
    return right


def agreement(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Share in [0, 1] of rows of two logits [N, C] with the same argmax."""
    return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())
