"""Which of the images a person looks at, and what the report needs of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.attribution.agreement import Floats
from pipeline.core.files import checked

KINDS = ("flipped", "other reason", "wrong", "right")
"""In this order an image is looked for in; it is shown once."""


@dataclass(frozen=True)
class Examples:
    """The chosen images and all networks' maps of them; the arrays of examples.npz."""

    kinds: NDArray[np.str_]
    """One of `KINDS`, [M]."""
    places: NDArray[np.int64]
    """In the test split, [M]."""
    images: NDArray[np.uint8]
    """Raw pixels [M, H, W, C]."""
    labels: NDArray[np.int64]
    """[M]."""
    names: NDArray[np.str_]
    """Of the K networks that are shown: teachers, the float student, int8 artifacts."""
    maps: NDArray[np.float32]
    """Occlusion maps [M, K, G, G]."""
    answers: NDArray[np.int64]
    """[M, K]."""
    confidence: NDArray[np.float32]
    """Of the answers, [M, K]."""
    strips: NDArray[np.bool_]
    """Of `places.strips`, [G, H]."""

    def write(self, file: Path) -> None:
        """Write as .npz; equal examples give equal bytes."""
        np.savez_compressed(file, allow_pickle=False, **vars(self))

    @classmethod
    def read(cls, file: Path, digest: str | None) -> Examples:
        """What `write` wrote; `PipelineError` unless the file has the digest."""
        with np.load(checked(file, digest)) as arrays:
            fields: dict[str, Any] = {name: arrays[name] for name in cls.__dataclass_fields__}
            return cls(**fields)


def choose(
    student: NDArray[np.int64],
    labels: NDArray[np.int64],
    int8: NDArray[np.int64],
    correlations: Floats,
    limit: float,
    most: int,
) -> list[tuple[str, int]]:
    """Images that show something, as (kind, index): the first of each kind.

    Flipped: some int8 artifact answers otherwise than the float student. Other reason: all answer
    alike, but the map of some int8 artifact hardly correlates with the float student's. Of the
    rest, those that the float student gets wrong, and those that it gets right.

    Args:
        student: answers of the float student [N].
        labels: [N].
        int8: answers of K int8 artifacts [K, N]; K may be 0.
        correlations: of their maps with the float student's, float64 [K, N]; NaN: undefined.
        limit: a lower correlation is another reason.
        most: images of each kind.
    """
    flipped = (int8 != student).any(axis=0)
    other = (np.where(np.isnan(correlations), 1.0, correlations) < limit).any(axis=0) & ~flipped
    wrong = (student != labels) & ~flipped & ~other
    masks = (flipped, other, wrong, ~(flipped | other | wrong))
    return [
        (kind, int(i))
        for kind, mask in zip(KINDS, masks, strict=True)
        for i in np.flatnonzero(mask)[:most]
    ]
