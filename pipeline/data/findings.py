"""What is noticed while images are packed: broken ones, repeated ones, and what they lose."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.data.decoding import Decoded
from pipeline.data.records import Rejected, Split
from pipeline.data.sources import Samples

NAMED = 20
"""Files named in a warning; further ones are only counted."""


@dataclass
class Tally:
    """Statistics and findings that are collected while the images are packed."""

    limit: float
    rejected: list[Rejected] = field(default_factory=list)
    losses: Counter[str] = field(default_factory=Counter)
    images: int = 0
    seen: dict[bytes, list[tuple[Split, int]]] = field(default_factory=lambda: defaultdict(list))
    unlabelled: set[bytes] = field(default_factory=set)
    same: list[str] = field(default_factory=list)
    """Images without labels that are left out, as others have their pixels; of those, ..."""
    leaked: list[str] = field(default_factory=list)
    """... files of `data.unlabelled` that are in val or test."""
    histogram: NDArray[np.int64] | None = None
    """Of the train pixels, int64 [C, 256]."""

    def add(self, split: Split, part: Decoded) -> None:
        self.count(part)
        for index, digest in zip(part.indices, part.digests, strict=True):
            self.seen[digest].append((split, int(index)))
        if split == "train" and len(part.images):
            _, _, width, channels = part.images.shape
            pixels = part.images.reshape(-1, width, channels)
            # Pillow counts the bytes of interleaved channels four times as fast as NumPy.
            image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
            counts = np.array(image.histogram()).reshape(channels, 256)
            self.histogram = counts if self.histogram is None else self.histogram + counts

    def new(self, part: Decoded, samples: Samples) -> NDArray[np.bool_]:
        """Which images of a part without labels have pixels that no image before them has."""
        self.count(part)
        new = np.zeros(len(part.indices), bool)
        for row, (index, digest) in enumerate(zip(part.indices, part.digests, strict=True)):
            same = [f"{split}: {samples.name(i)}" for split, i in self.seen.get(digest, ())]
            new[row] = not same and digest not in self.unlabelled
            self.unlabelled.add(digest)
            if not new[row]:
                self.same.append(" = ".join([samples.name(int(index)), *same]))
                given = samples.splits[index] == "unlabelled"
                if given and any(not name.startswith("train: ") for name in same):
                    self.leaked.append(self.same[-1])
        return new

    def repeated(self) -> list[str]:
        """A warning of images without labels that are left out.

        Raises:
            PipelineError: for files of `data.unlabelled` with the pixels of val or test.
        """
        if self.leaked:
            raise PipelineError(
                _warning("have the pixels of val or test, from which no network may learn",
                         self.leaked),
                where="images of `data.unlabelled`",
                fix="remove these files from that folder",
            )  # fmt: skip
        what = "unlabelled images are left out, whose pixels other images have"
        return [_warning(what, self.same)] if self.same else []

    def count(self, part: Decoded) -> None:
        """Count what was rejected or lost; `PipelineError` for too many broken files."""
        self.rejected += part.rejected
        self.losses += part.losses
        if len(self.rejected) > self.limit:
            shown = "\n    ".join(f"{r.file}: {r.reason}" for r in self.rejected[:NAMED])
            raise PipelineError(
                f"{len(self.rejected)} broken files are more than `data.max_rejected` allows:"
                f"\n    {shown}",
                fix="repair or remove them, or raise `data.max_rejected`",
            )
        self.images += len(part.images)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel of the train pixels, from the histogram."""
        assert self.histogram is not None
        values = np.arange(256)
        total = self.histogram.sum(axis=1)
        mean = self.histogram @ values / total
        std = np.sqrt(np.maximum(self.histogram @ values**2 / total - mean**2, 1e-12))
        return tuple(mean.tolist()), tuple(std.tolist())

    def lossy(self) -> list[str]:
        """Warnings: how many images lose something on their way to pixels."""
        return [f"{count} of {self.images} {what}" for what, count in self.losses.items()]

    def suspicious(self, samples: Samples) -> list[str]:
        """Warnings: the same pixels in train and test (or val), the same pixels with two labels."""
        leaks: dict[str, list[str]] = defaultdict(list)
        torn: list[str] = []
        for places in self.seen.values():
            names = [f"{split}: {samples.name(index)}" for split, index in places]
            found = {split for split, _ in places}
            for other in ("test", "val"):
                if "train" in found and other in found:
                    leaks[other].append(" = ".join(names))
            if len({int(samples.labels[index]) for _, index in places}) > 1:
                torn.append(" = ".join(names))
        warnings = [_warning(f"images are in train and in {k}", v) for k, v in leaks.items()]
        return warnings + ([_warning("images have two labels", torn)] if torn else [])


def _warning(what: str, groups: list[str]) -> str:
    more = f" and {len(groups) - NAMED} more" if len(groups) > NAMED else ""
    return f"{len(groups)} {what}: {'; '.join(groups[:NAMED])}{more}"
