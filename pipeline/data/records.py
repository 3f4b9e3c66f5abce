"""The files of `data/`: the manifest, the packed splits and the calibration set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.core.files import checked
from pipeline.core.records import Record
from pipeline.data.images import centre

RAW = Path("data/raw")

FETCHED = "fetched.json"
"""In `RAW`."""

PACKED = Path("data/packed")

MANIFEST = "manifest.json"
"""In the folder of the packed splits."""

CALIBRATION = Path("data/calibration")

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")

ORIGINS = "origins.jsonl"
"""In the folder of the packed splits, behind the split's name: a line for each image."""

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


class Origin(NamedTuple):
    """What a packed image was made from."""

    name: str
    """Of its file, or `image INDEX` of a source without files."""
    width: int
    height: int

    def line(self) -> str:
        """As a line of the file `ORIGINS`."""
        return json.dumps(self) + "\n"


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
    stored_size: int = Field(
        description="what shorter sides are resized to, and the size of packed train images; "
        "networks are evaluated on the centre of `image_size`"
    )
    channels: int
    counts: dict[Split, dict[str, int]] = Field(description="images per split and class")
    unlabelled: int = Field(0, description="images without labels")
    digests: dict[str, str] = Field(description="SHA-256 of each file beside it, by file name")
    calibration_digest: str
    mean: tuple[float, ...] = Field(description="of the train split per channel, in [0, 255]")
    std: tuple[float, ...] = Field(description="of the train split per channel, in [0, 255]")
    layout: str = Field("", description="how classes and splits were found, where not by the set")
    rejected: tuple[Rejected, ...]
    warnings: tuple[str, ...] = Field((), description="findings that are suspicious but not fatal")
    made_for: str = Field("", description="digest of the group `data` and the seed")

    def size(self, split: Split) -> int:
        """Images in a split."""
        return sum(self.counts[split].values())

    @property
    def final(self) -> Split:
        """The split that finished networks are evaluated on: test.

        A search, which must not open test, works on a copy of the packed data without it: val
        then, which everything is chosen on.
        """
        return "test" if "test_images.npy" in self.digests else "val"


def load_split(split: Split, folder: Path = PACKED) -> Arrays:
    """What networks are evaluated on: images uint8 [N, H, W, C] and labels int64 [N] of a split.

    The images are memory-mapped and read-only. Those of train are the centres of what is stored.

    Raises:
        PipelineError: where `prepare` has not written them, or they were changed since.
    """
    images, labels = load_stored(split, folder)
    size = Manifest.read(folder / MANIFEST).image_size
    return centre(images, (size, size)), labels


def load_stored(split: Split, folder: Path = PACKED) -> Arrays:
    """As `load_split`, but all of each train image, of `stored_size`: crops are cut from it."""
    digests = Manifest.read(folder / MANIFEST).digests
    names = [f"{split}_{part}.npy" for part in ("images", "labels")]
    files = [checked(folder / name, digests.get(name)) for name in names]
    return np.load(files[0], mmap_mode="r"), np.load(files[1])


def load_origins(split: Split, folder: Path = PACKED) -> list[Origin]:
    """The origin of every image of a split, in their order; `PipelineError` as of `load_split`."""
    name = f"{split}_{ORIGINS}"
    file = checked(folder / name, Manifest.read(folder / MANIFEST).digests.get(name))
    with file.open() as lines:
        return [Origin(*json.loads(line)) for line in lines]


def load_calibration(manifest: Manifest, folder: Path = CALIBRATION) -> NDArray[np.uint8]:
    """The calibration set, uint8 [N, H, W, C], drawn from the train split.

    Raises:
        PipelineError: where it is not the one that `manifest` describes.
    """
    file = checked(folder / "images.npy", manifest.calibration_digest)
    images: NDArray[np.uint8] = np.load(file)
    return images
