"""Recall by class, balanced accuracy and Wilson's interval, beside SciPy's and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import binomtest

from pipeline.data.recall import Recall, interval, too_small, wilson


@pytest.mark.parametrize("images", [1, 3, 20, 208, 10_000])
def test_the_interval_is_scipys(images: int) -> None:
    for right in {0, 1, images // 2, images - 1, images}:
        known = binomtest(right, images).proportion_ci(0.95, method="wilson")
        assert wilson(right, images) == pytest.approx((known.low, known.high), abs=1e-12)


def test_the_interval_is_written_with_four_digits() -> None:
    assert interval(0.898, 10_000) == "0.8919 to 0.9038"
    assert interval(1.0, 3) == "0.4385 to 1.0000"


def test_recall_counts_every_class_by_itself() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2])
    answers = np.zeros(100, int)
    answers[90:93] = 1
    recall = Recall.of(np.eye(4, dtype=np.float32)[answers], labels)
    assert recall == Recall(images=(90, 9, 1, 0), right=(90, 3, 0, 0))
    assert (recall.total, recall.top1) == (100, 0.93)
    assert recall.balanced == pytest.approx((1 + 1 / 3 + 0) / 3)  # of those that have images
    assert recall.worst(2) == [2, 1] and recall.worst(10) == [2, 1, 0]


def test_counts_that_cannot_be_are_refused() -> None:
    for right in ((3,), (3, 5), (-1, 2)):
        with pytest.raises(ValidationError, match="counts of the same classes"):
            Recall(images=(3, 4), right=right)


def test_small_splits_are_told_with_what_they_leave_open() -> None:
    few = {"val": {"ant": 1, "bee": 2}, "test": {"ant": 3, "bee": 200}}
    assert too_small(few) == [
        "val has 3 images: a top-1 of 0.9 is known within 0.36 to 0.99 (95%), and what is chosen "
        "on it in part by chance; add images, or raise `data.val_fraction`",
        "1 of 2 classes have fewer than 10 test images: little is known of their recall",
    ]
    assert too_small({"val": {"ant": 150}, "test": {"ant": 140, "bee": 10}}) == []
