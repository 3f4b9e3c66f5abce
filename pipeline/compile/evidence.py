"""An artifact's answers to the test split and how it computes them; small, and kept in git."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.accuracy.metrics import confusions, reliability, worst_mistakes
from pipeline.accuracy.records import Mistake, ReliabilityBin
from pipeline.backends.base.records import ArtifactRecord, ExecutionReport
from pipeline.core.records import DetailRecord
from pipeline.data.answers import correct
from pipeline.data.records import Manifest

CONFUSIONS, MISTAKES = 1000, 24
"""Kept at most: a thousand classes have a million pairs."""


class Evidence(DetailRecord):
    """metrics/evidence/B/S/P.json: answers on the test split, and how they are computed."""

    test_digest: str = Field(description="SHA-256 over the digests of the test split's arrays")
    images: int = Field(ge=1)
    by_class: dict[str, int] = Field(description="test images of each class")
    correct: str = Field(
        description="one bit per test image, class by class: base64 of numpy.packbits"
    )
    confusions: tuple[tuple[int, int, int], ...] = Field(
        (), description="(label, wrong answer, images), the most frequent first"
    )
    reliability: tuple[ReliabilityBin, ...] = ()
    mistakes: tuple[Mistake, ...] = Field((), description="those of the highest probability")
    execution: ExecutionReport
    digests: dict[str, str] = Field(description="SHA-256 of every file of the artifact")

    @model_validator(mode="after")
    def _one_bit_per_image(self) -> Self:
        try:
            packed = base64.b64decode(self.correct, validate=True)
        except binascii.Error as error:
            raise ValueError(f"`correct` is not base64: {error}") from None
        if len(packed) != -(-self.images // 8):
            raise ValueError("`correct` has not one bit per image")
        if sum(self.by_class.values()) != self.images or min(self.by_class.values()) < 0:
            raise ValueError("`by_class` has not all images")
        return self

    @classmethod
    def of(
        cls,
        artifact: ArtifactRecord,
        manifest: Manifest,
        logits: NDArray[np.float32],
        labels: NDArray[np.int64],
    ) -> Self:
        """The evidence of an artifact.

        Args:
            artifact: its record.
            manifest: of the data.
            logits: what it gave for the test split, [N, C].
            labels: of the test split, [N].
        """
        right = correct(logits, labels)[np.argsort(labels, kind="stable")]
        sizes = np.bincount(labels, minlength=len(manifest.classes))
        return cls(
            test_digest=split_digest(manifest),
            images=len(right),
            by_class=dict(zip(manifest.classes, sizes.tolist(), strict=True)),
            correct=base64.b64encode(np.packbits(right).tobytes()).decode(),
            confusions=confusions(logits, labels)[:CONFUSIONS],
            reliability=reliability(logits, labels),
            mistakes=worst_mistakes(logits, labels, MISTAKES),
            execution=artifact.execution,
            digests=artifact.digests,
        )

    def answers(self) -> NDArray[np.bool_]:
        """Which test images the artifact gets right, bool [N]: those of the first class first."""
        packed = np.frombuffer(base64.b64decode(self.correct), np.uint8)
        return np.unpackbits(packed, count=self.images).astype(np.bool_)

    def count(self, found: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many of each class, [C], are `found` among the images [N], in the order above."""
        sizes = list(self.by_class.values())
        labels = np.repeat(np.arange(len(sizes)), sizes)
        return np.bincount(labels[found], minlength=len(sizes))


def split_digest(manifest: Manifest) -> str:
    """SHA-256 over the digests of the arrays of the split that artifacts are evaluated on."""
    arrays = [manifest.digests[f"{manifest.final}_{part}.npy"] for part in ("images", "labels")]
    return hashlib.sha256("\n".join(arrays).encode()).hexdigest()
