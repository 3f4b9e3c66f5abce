"""Data sources. Each is an object registered by an entry point of `edgestill.sources`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.core import plugins
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256, whole_folder
from pipeline.core.text import printable
from pipeline.data.params import Data
from pipeline.data.records import FETCHED, RAW, Fetched

KIND = "sources"

Read = Callable[[int], Image.Image | Path]
"""From an index into `Samples` to an image, or to the file that holds it."""


@dataclass(frozen=True)
class Samples:
    """The list of all images of a source; none of them is decoded."""

    source: str
    """Its name in reports."""
    licence: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    """[N], indices into `classes`."""
    splits: NDArray[np.str_]
    """[N]: train, val or test. `prepare` cuts missing splits from train."""
    warnings: tuple[str, ...] = ()
    layout: str = ""
    """One sentence: how classes and splits were found, where the source had to find them."""
    files: tuple[str, ...] | None = None
    """Names of the images' files; None for a source without files."""

    def name(self, index: int) -> str:
        """The file's name, or `image INDEX` for a source without files."""
        return self.files[index] if self.files is not None else f"image {index}"


class Source(Protocol):
    """What a data source implements. docs/extending.md has an example."""

    def check(self, data: Data) -> None:
        """Raise `PipelineError` for settings that are known to be wrong without fetching."""

    def fetch(self, data: Data, folder: Path) -> None:
        """Write what `samples` and `reader` need into the empty `folder`.

        Raises:
            PipelineError: where the images are not available or not usable.
        """

    def samples(self, data: Data, folder: Path) -> Samples:
        """List the images that `fetch` wrote into `folder`."""

    def reader(self, data: Data, folder: Path) -> Read:
        """A function that reads single images; called once in each decoding process."""


def find_source(data: Data) -> Source:
    """The source that `data.source` names; `PipelineError` for an unknown one."""
    source: Source = plugins.find(KIND, data.source, "data.source")
    return source


def fetch(data: Data, out: Path = RAW) -> None:
    """Stage `fetch`: write data/raw/.

    Raises:
        PipelineError: where the images are not available or not usable.
    """
    from pipeline.data.unlabelled import INDEX, index_unlabelled  # which imports this module

    source = find_source(data)
    with whole_folder(out) as scratch:
        source.fetch(data, scratch)
        index_unlabelled(data.unlabelled, scratch / INDEX)
        files = sorted(file for file in scratch.rglob("*") if file.is_file())
        digests = {file.relative_to(scratch).as_posix(): sha256(file) for file in files}
        Fetched(digests=digests).write(scratch / FETCHED)


def check_class_names(names: tuple[str, ...], where: str) -> None:
    """Refuse control characters and line ends: names are written as lines and on terminals.

    Raises:
        PipelineError: shows the name escaped.
    """
    for name in names:
        if "\n" in name or printable(name) != name:
            raise PipelineError(
                f"the class name {name!a} has a line end or another control character",
                where=where,
                fix="rename the class",
            )
