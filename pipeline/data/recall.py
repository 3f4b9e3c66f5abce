"""How often a network is right: in all, by class, and within which limits that is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from pipeline.core.records import Record
from pipeline.data.answers import correct
from pipeline.data.records import Split

LEVEL = 0.95
"""Of the intervals that are shown beside accuracies."""

WORST = 10
"""Classes whose recall is listed: those with the lowest."""

EXAMPLE, WIDE = 0.9, 0.1
"""A split is called small where the interval of the top-1 `EXAMPLE` is wider than `WIDE`."""

FEW = 10
"""Fewer test images of a class than these tell little of its recall."""


class Recall(Record):
    """The images of a split, and the right answers to them, by class as the manifest orders them.

    The recall of a class is the share of its images that are classified correctly.
    """

    images: tuple[int, ...]
    right: tuple[int, ...]

    @model_validator(mode="after")
    def _a_share_of_each_class(self) -> Self:
        pairs = list(zip(self.right, self.images, strict=False))
        if len(self.right) != len(self.images) or not all(0 <= k <= n for k, n in pairs):
            raise ValueError("`right` and `images` are not counts of the same classes")
        return self

    @classmethod
    def of(cls, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Self:
        """From logits [N, C] and labels [N]."""
        classes = logits.shape[1]
        found = labels[correct(logits, labels)]
        images, right = (np.bincount(some, minlength=classes).tolist() for some in (labels, found))
        return cls(images=tuple(images), right=tuple(right))

    @property
    def total(self) -> int:
        """Images of all classes."""
        return sum(self.images)

    @property
    def top1(self) -> float:
        """Share of all images that are classified correctly."""
        return sum(self.right) / self.total

    @property
    def by_class(self) -> NDArray[np.float64]:
        """The recall of each class, [C]; NaN for one without images."""
        images = np.array(self.images, np.float64)
        images[images == 0] = np.nan
        return np.array(self.right) / images

    @property
    def balanced(self) -> float:
        """Balanced accuracy: the mean recall, in which every class counts equally."""
        return float(np.nanmean(self.by_class))

    def worst(self, count: int) -> list[int]:
        """The `count` classes of the lowest recall, the lowest first."""
        order = np.argsort(self.by_class, kind="stable")
        return [int(i) for i in order if self.images[i]][:count]


def wilson(right: float, images: int) -> tuple[float, float]:
    """95% limits of an accuracy of `right` answers to `images` images.

    Wilson's score interval (J. Am. Stat. Assoc. 22, 1927), which is sound for few images and for
    accuracies near 0 and 1, where the usual one of plus or minus two standard errors is not.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, weight = right / images, z**2 / images
    centre = (share + weight / 2) / (1 + weight)
    reach = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def interval(accuracy: float, images: int) -> str:
    """The 95% interval of an accuracy, a fraction of so many images, as text."""
    low, high = wilson(accuracy * images, images)
    return f"{low:.4f} to {high:.4f}"


def too_small(counts: Mapping[Split, Mapping[str, int]]) -> list[str]:
    """What val and test have too few images for, sentence by sentence.

    Args:
        counts: images by split and class.
    """
    found = []
    endings: dict[Split, str] = {"val": ", and what is chosen on it in part by chance", "test": ""}
    for split, ending in endings.items():
        images = sum(counts[split].values())
        low, high = wilson(EXAMPLE * images, images)
        if high - low > WIDE:
            found.append(
                f"{split} has {images:,} images: a top-1 of {EXAMPLE} is known within {low:.2f} to "
                f"{high:.2f} (95%){ending}; add images, or raise `data.{split}_fraction`"
            )
    few = sum(images < FEW for images in counts["test"].values())
    if few:
        found.append(
            f"{few:,} of {len(counts['test']):,} classes have fewer than {FEW} test images: "
            "little is known of their recall"
        )
    return found
