"""The files of `data/`: the manifest, the packed splits and the calibration set."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.core.files import checked
from pipeline.core.records import Record

RAW = Path("data/raw")

FETCHED = "fetched.json"
"""In `RAW`."""

PACKED = Path("data/packed")

MANIFEST = "manifest.json"
"""In the folder of the packed splits."""

CALIBRATION = Path("data/calibration")

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images [N, H, W, C], raw pixels, and their labels [N]."""


class Fetched(Record):
    """data/raw/fetched.json: the files beside it, as their source gave them."""

    digests: dict[str, str] = Field(description="SHA-256 by path")

    @classmethod
    def check(cls, folder: Path) -> None:
        """Raise `PipelineError` for a file that is missing, damaged or of another run."""
        for name, digest in cls.read(folder / FETCHED).digests.items():
            checked(folder / name, digest)


class Rejected(Record):
    """A file that could not be decoded."""

    file: str
    reason: str


class Manifest(Record):
    """data/packed/manifest.json. Images are uint8 [N, H, W, C]; labels int64 [N]."""

    source: str
    licence: str
    classes: tuple[str, ...]
    image_size: int
    channels: int
    counts: dict[Split, dict[str, int]] = Field(description="images per split and class")
    digests: dict[str, str] = Field(description="SHA-256 of each array file, by file name")
    unlabelled: int = Field(0, description="images without labels")
    calibration_digest: str
    mean: tuple[float, ...] = Field(description="of the train split per channel, in [0, 255]")
    std: tuple[float, ...] = Field(description="of the train split per channel, in [0, 255]")
    layout: str = Field("", description="how classes and splits were found, where not by the set")
    rejected: tuple[Rejected, ...]
    warnings: tuple[str, ...] = Field((), description="findings that are suspicious but not fatal")

    def size(self, split: Split) -> int:
        """Images in a split."""
        return sum(self.counts[split].values())


def load_split(split: Split, folder: Path = PACKED) -> Arrays:
    """Images uint8 [N, H, W, C] (memory-mapped, read-only) and labels int64 [N] of a split.

    Raises:
        PipelineError: where `prepare` has not written them, or they were changed since.
    """
    digests = Manifest.read(folder / MANIFEST).digests
    names = [f"{split}_{part}.npy" for part in ("images", "labels")]
    files = [checked(folder / name, digests.get(name)) for name in names]
    return np.load(files[0], mmap_mode="r"), np.load(files[1])


def load_calibration(manifest: Manifest, folder: Path = CALIBRATION) -> NDArray[np.uint8]:
    """The calibration set, uint8 [N, H, W, C], drawn from the train split.

    Raises:
        PipelineError: where it is not the one that `manifest` describes.
    """
    file = checked(folder / "images.npy", manifest.calibration_digest)
    images: NDArray[np.uint8] = np.load(file)
    return images
