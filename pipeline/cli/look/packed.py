"""The packed images that the page is about, and which of them are near-duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cli.params import Params
from pipeline.core.errors import PipelineError
from pipeline.core.text import printable
from pipeline.data.duplicates import Closest, closest, limit_of, prints
from pipeline.data.prepare import settings_digest
from pipeline.data.records import (
    MANIFEST,
    PACKED,
    SPLITS,
    Manifest,
    Origin,
    Split,
    load_origins,
    load_split,
)
from pipeline.data.views import Views
from pipeline.distill.recording import student_views

_PREPARE = "run `dvc repro prepare`"

PAIRS: tuple[tuple[Split, Split], ...] = (
    ("test", "train"), ("val", "train"), ("test", "val"), ("train", "train"),
)  # fmt: skip
"""Between which splits near-duplicates are looked for, those that distort most first."""


@dataclass(frozen=True)
class Place:
    """An image of a split."""

    split: Split
    index: int


@dataclass(frozen=True)
class Duplicates:
    """The near-duplicates between two splits, or within train."""

    split: Split
    other: Split
    closest: Closest
    pairs: tuple[tuple[Place, Place, float], ...]
    """Each image of `split` that has one, that one, and their similarity: first those of two
    labels, then the most similar."""


@dataclass(frozen=True)
class Packed:
    """All splits with what is known of their images."""

    manifest: Manifest
    views: Views
    """Of train, as students see them; they hold its images and labels."""
    images: dict[Split, NDArray[np.uint8]]
    labels: dict[Split, NDArray[np.int64]]
    origins: dict[Split, list[Origin]]

    def pixels(self, place: Place) -> NDArray[np.uint8]:
        """As it is evaluated, uint8 [H, W, C]."""
        pixels: NDArray[np.uint8] = self.images[place.split][place.index]
        return pixels

    def name(self, place: Place) -> str:
        """Of its file, or `image INDEX` where there is none; without control characters."""
        return printable(self.origins[place.split][place.index].name)

    def label(self, place: Place) -> str:
        """The name of its class."""
        return self.manifest.classes[int(self.labels[place.split][place.index])]


def open_packed(params: Params) -> Packed:
    """Open data/packed.

    Raises:
        PipelineError: where there is none, or one of other settings, or a file in it is damaged.
    """
    if not (PACKED / MANIFEST).exists():
        raise PipelineError("no images are packed yet", where=str(PACKED), fix=_PREPARE)
    manifest = Manifest.read(PACKED / MANIFEST)
    if manifest.made_for != settings_digest(params.data, params.seed):
        raise PipelineError(
            "the images were packed for other settings than those in params.yaml (`data`, `seed`)",
            where=str(PACKED),
            fix=_PREPARE,
        )
    views = student_views(params, manifest)
    train = views.known
    arrays = {split: train if split == "train" else load_split(split) for split in SPLITS}
    return Packed(
        manifest=manifest,
        views=views,
        images={split: arrays[split][0] for split in SPLITS},
        labels={split: arrays[split][1] for split in SPLITS},
        origins={split: load_origins(split) for split in SPLITS},
    )


def find_duplicates(packed: Packed) -> tuple[float, list[Duplicates]]:
    """The similarity from which images are near-duplicates, and those between `PAIRS`."""
    printed = {split: prints(packed.images[split], f"compare {split}") for split in SPLITS}
    limit = limit_of(printed["train"])
    found = []
    for split, other in PAIRS:
        others = None if other == split else printed[other]
        nearest = closest(printed[split], others, limit, f"search {split} in {other}")
        pairs = [
            (Place(split, i), Place(other, int(nearest.place[i])), float(nearest.similarity[i]))
            for i in nearest.found().tolist()
        ]
        pairs.sort(
            key=lambda pair: (packed.label(pair[0]) == packed.label(pair[1]), -round(pair[2], 3))
        )
        found.append(Duplicates(split, other, nearest, tuple(pairs)))
    return limit, found
