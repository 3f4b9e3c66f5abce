"""Where images come from: a source is registered by an entry point `edgestill.sources`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.core import plugins
from pipeline.core.files import whole_folder
from pipeline.data.params import Data
from pipeline.data.records import RAW

KIND = "sources"

Read = Callable[[int], Image.Image | Path]
"""By its place in `Samples`: an image, or the file that holds it."""


@dataclass(frozen=True)
class Samples:
    """All images of a source, nothing decoded yet."""

    source: str
    """What it is, for people."""
    licence: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    """[N], places in `classes`."""
    splits: NDArray[np.str_]
    """[N]: train, val or test. Splits that do not occur are cut from train."""
    warnings: tuple[str, ...] = ()
    files: tuple[str, ...] | None = None
    """Names of the images' files; None where a source has none."""

    def name(self, index: int) -> str:
        """A file, or a number that counts through the source's own splits: train, val, test."""
        return self.files[index] if self.files is not None else f"image {index}"


class Source(Protocol):
    """What a source has to offer."""

    def check(self, data: Data) -> None:
        """Raise `PipelineError` for settings that can be known to be wrong before fetching."""

    def fetch(self, data: Data, folder: Path) -> None:
        """Write what `samples` and `reader` need into the empty `folder`.

        Raises:
            PipelineError: for images that cannot be had or used.
        """

    def samples(self, data: Data, folder: Path) -> Samples:
        """List the images that `fetch` has brought into `folder`."""

    def reader(self, data: Data, folder: Path) -> Read:
        """What reads single images of `samples`; called once in each decoding process."""


def find_source(data: Data) -> Source:
    """The source that params.yaml names; `PipelineError` for an unknown one."""
    source: Source = plugins.find(KIND, data.source)
    return source


def fetch(data: Data, out: Path = RAW) -> None:
    """Stage `fetch`: data/raw/, as the source gives its images.

    Raises:
        PipelineError: for images that cannot be had or used.
    """
    source = find_source(data)
    with whole_folder(out) as scratch:
        source.fetch(data, scratch)
