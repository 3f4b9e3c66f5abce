"""Images without labels: listed by `fetch`, packed by `prepare`, shown beside those with labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.core.files import checked
from pipeline.core.records import Record
from pipeline.data.folder import file_digests, list_folder, relative_name
from pipeline.data.params import UNLABELLED, Data, Views
from pipeline.data.records import MANIFEST, PACKED, Arrays, Manifest, load_split, load_stored
from pipeline.data.sources import Read, Samples, find_source

INDEX = "unlabelled.json"
"""In data/raw, where there are such images."""

FILE = "unlabelled_images.npy"
"""In data/packed, likewise: uint8 [N, H, W, C]."""

UNKNOWN = -1
"""The label of an image without one."""


class UnlabelledIndex(Record):
    """data/raw/unlabelled.json. No image is copied; a digest shows whether a file has changed."""

    folder: str
    files: dict[str, str]
    """SHA-256 by path below the folder."""


def list_unlabelled(folder: Path) -> list[Path]:
    """The images in `folder`, in any depth; none in the project's own empty one.

    Raises:
        PipelineError: for any other folder without images.
    """
    own = folder == UNLABELLED
    if own and not folder.exists():
        return []
    if not folder.is_dir():
        raise PipelineError(
            "there is no such folder",
            where=f"data.unlabelled: {folder}",
            fix=f"name a folder of images without labels, or {UNLABELLED}",
        )
    found = list_folder(folder, below=True)
    suffixes = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = [file for file in found.files if file.suffix.lower() in suffixes and file.is_file()]
    if not files:
        if own and not found.folders and {file.name for file in found.files} <= {"README.md"}:
            return []
        raise PipelineError(
            "there is no image in it",
            where=f"data.unlabelled: {folder}",
            fix=f"add images, or name {UNLABELLED}, which may be empty",
        )
    return files


def index_unlabelled(folder: Path, out: Path) -> None:
    """Write the index of the images in `folder` to `out`; no file where there are none."""
    if files := list_unlabelled(folder):
        names = (relative_name(file, folder) for file in files)
        digests = dict(zip(names, file_digests(files), strict=True))
        UnlabelledIndex(folder=str(folder), files=digests).write(out)


def all_samples(data: Data, raw: Path) -> Samples:
    """The samples of the source, and behind them those without labels, in a split of their own."""
    samples = find_source(data).samples(data, raw)
    if not (raw / INDEX).exists():
        return samples
    index = UnlabelledIndex.read(raw / INDEX)
    more = len(index.files)
    named = samples.files or tuple(samples.name(i) for i in range(len(samples.labels)))
    return replace(
        samples,
        labels=np.concatenate([samples.labels, np.full(more, UNKNOWN)]),
        splits=np.concatenate([samples.splits, np.full(more, "unlabelled")]),
        files=(*named, *(str(Path(index.folder, file)) for file in index.files)),
    )


def reader(data: Data, raw: Path) -> Read:
    """Reads the images of `all_samples`."""
    read = find_source(data).reader(data, raw)
    if not (raw / INDEX).exists():
        return read
    samples = all_samples(data, raw)
    first = int((samples.splits != "unlabelled").sum())
    assert samples.files is not None
    files = samples.files
    return lambda i: read(i) if i < first else Path(files[i])


def choose_unlabelled(
    samples: Samples, train: NDArray[np.int64], data: Data, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What of `train` keeps its labels, and all images without: indices into `samples`.

    Raises:
        PipelineError: for a class with fewer images than `data.labels`.
    """
    unlabelled = np.flatnonzero(samples.splits == "unlabelled").astype(np.int64)
    if data.labels is not None:
        kept = np.zeros(len(train), bool)
        for label, name in enumerate(samples.classes):
            its = np.flatnonzero(samples.labels[train] == label)
            if len(its) < data.labels:
                raise PipelineError(
                    f"{data.labels} labels of each class are asked for; `{name}` has {len(its)} in "
                    "train",
                    where="params.yaml: data.labels",
                    fix="lower it, or set it to null",
                )
            kept[random.permutation(its)[: data.labels]] = True
        train, unlabelled = train[kept], np.concatenate([train[~kept], unlabelled])
    if data.limit is not None and len(unlabelled) > data.limit:
        unlabelled = np.sort(random.permutation(unlabelled)[: data.limit])
    return train, unlabelled


class Joined:
    """Images with labels, `repeats[0]` times, and behind them those without, `repeats[1]` times.

    Behaves like an array uint8 [N, H, W, C] that is only indexed along N; nothing is copied before.
    """

    def __init__(
        self,
        labelled: NDArray[np.uint8],
        unlabelled: NDArray[np.uint8],
        repeats: tuple[int, int],
    ) -> None:
        self._labelled, self._unlabelled = labelled, unlabelled
        self._first = repeats[0] * len(labelled)
        self.shape = (self._first + repeats[1] * len(unlabelled), *labelled.shape[1:])

    def __len__(self) -> int:
        """Images of both kinds, repeated ones counted."""
        return int(self.shape[0])

    def __getitem__(self, key: slice | NDArray[np.integer]) -> NDArray[np.uint8]:
        """A copy of the images at `key`."""
        places = np.arange(len(self))[key] if isinstance(key, slice) else key
        known = places < self._first
        found = np.empty((len(places), *self.shape[1:]), np.uint8)
        found[known] = self._labelled[places[known] % len(self._labelled)]
        others = (places[~known] - self._first) % max(len(self._unlabelled), 1)
        found[~known] = self._unlabelled[others]
        return found


@dataclass(frozen=True)
class Shown:
    """What an epoch shows: images [N, H, W, C], as they are stored, labels int64 [N], those of
    `UNKNOWN` last."""

    images: NDArray[np.uint8] | Joined
    labels: NDArray[np.int64]
    known: Arrays
    """The images with labels, each once, as they are evaluated."""


def repeats(labelled: int, unlabelled: int, views: Views) -> tuple[int, int]:
    """How often an epoch shows each image with a label, and each without.

    The rarer ones are repeated, in other views each time, until the shares are those of `views`.

    Args:
        labelled: number of images with labels.
        unlabelled: number of those without.
        views: whose share of images without labels, in [0, 1), is to be met.
    """
    if not unlabelled or views.unlabelled == 0:
        return 1, 0
    most, as_they_are = views.most_unlabelled, unlabelled / (labelled + unlabelled)
    taken = min(most, as_they_are) if views.unlabelled == "auto" else views.unlabelled
    odds = taken / (1 - taken)
    return max(1, round(unlabelled / odds / labelled)), max(1, round(labelled * odds / unlabelled))


def epoch_images(manifest: Manifest, views: Views) -> tuple[int, int]:
    """How many images with labels, and without, an epoch shows: see `repeats`."""
    labelled = manifest.size("train")
    times = repeats(labelled, manifest.unlabelled, views)
    return times[0] * labelled, times[1] * manifest.unlabelled


def load_shown(manifest: Manifest, views: Views, folder: Path = PACKED) -> Shown:
    """The images of an epoch: the train split and, where there are any, images without labels.

    Raises:
        PipelineError: where `prepare` has not written them, or they were changed since.
    """
    known, (images, labels) = load_split("train", folder), load_stored("train", folder)
    times = repeats(len(labels), manifest.unlabelled, views)
    if not times[1]:
        return Shown(images, labels, known)
    digest = Manifest.read(folder / MANIFEST).digests.get(FILE)
    more = np.load(checked(folder / FILE, digest), mmap_mode="r")
    unknown = np.full(times[1] * len(more), UNKNOWN)
    stream = np.concatenate([np.tile(labels, times[0]), unknown])
    return Shown(Joined(images, more, times), stream, known)
