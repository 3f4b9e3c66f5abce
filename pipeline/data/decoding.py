"""Samples of any source behind one face, decoded on all cores in bounded memory."""

from __future__ import annotations

import gc
import hashlib
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.contracts import Rejected, Split
from pipeline.data.folder import FolderIndex
from pipeline.data.images import BROKEN, is_grey, load_image, upright_size
from pipeline.errors import PipelineError
from pipeline.params import Data
from pipeline.progress import track

CHUNK = 64
CHUNK_BYTES = 4 << 20
"""Images per task, at most, and their pixels: enough to hide the cost of a task, small enough
for memory at any image size and number of cores."""

PROBED = 2000
"""Of a torchvision set, which has no headers to read, `auto` looks at so many images."""

Read = Callable[[int], Image.Image | Path]


@dataclass(frozen=True)
class Samples:
    """All images of a source; labels int64 [N], splits [N] of names, both in one order."""

    data: Data
    raw: Path
    source: str
    licence: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    warnings: tuple[str, ...]
    files: tuple[str, ...] | None
    """Relative paths of a folder's images; null for a torchvision set."""

    def name(self, index: int) -> str:
        """A file, or a number that counts through the set's own splits: train, val, test."""
        return self.files[index] if self.files is not None else f"image {index}"


@dataclass(frozen=True)
class Decoded:
    """Some samples in order: images uint8 [n, H, W, C], their indices and pixel digests."""

    images: NDArray[np.uint8]
    indices: NDArray[np.int64]
    digests: list[bytes]
    rejected: list[Rejected]


def open_samples(data: Data, raw: Path) -> Samples:
    """What `fetch` has brought, nothing decoded yet."""
    if data.source == "torchvision":
        return _torchvision_samples(data, raw)
    index = FolderIndex.read(raw / "index.json")
    ignored = f"{len(index.ignored)} files are not used: {', '.join(index.ignored[:20])}"
    return Samples(
        data=data,
        raw=raw,
        source=f"folder {index.folder}",
        licence="the user's own",
        classes=index.classes,
        labels=np.array([file.label for file in index.files], np.int64),
        splits=np.array([file.split for file in index.files]),
        warnings=(ignored,) if index.ignored else (),
        files=tuple(file.path for file in index.files),
    )


class Decoder:
    """Worker processes, one per core, that read the source; a context manager."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._cores = len(os.sched_getaffinity(0))
        # Fresh processes, not forks: torch may have started threads in this one.
        context = multiprocessing.get_context("spawn")
        opening = (samples.data, samples.raw)
        self._pool = ProcessPoolExecutor(self._cores, context, _open_worker, opening)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def probe(self) -> tuple[set[tuple[int, int]], bool]:
        """All (width, height) that occur, upright, and whether every image is grey."""
        count = len(self._samples.labels)
        step = 1 if self._samples.files is not None else max(1, count // PROBED)
        sizes: set[tuple[int, int]] = set()
        grey = True
        looked_at = np.arange(0, count, step)
        for found, all_grey in self._map(_probe, looked_at, (), "look at images", CHUNK):
            sizes |= found
            grey = grey and all_grey
        return sizes, grey

    def decode(
        self, indices: NDArray[np.int64], shape: tuple[int, int, int], label: str
    ) -> Iterator[Decoded]:
        """The samples of `indices` in their order, as [H, W, C] = `shape`, in parts."""
        chunk = max(1, min(CHUNK, CHUNK_BYTES // math.prod(shape)))
        yield from self._map(_decode, indices, (shape[0], shape[2]), label, chunk)

    def _map(
        self,
        task: Callable[..., Any],
        indices: NDArray[np.int64],
        arguments: tuple[int, ...],
        label: str,
        chunk: int,
    ) -> Iterator[Any]:
        """`task(part, *arguments)` for parts of `indices` of size `chunk`, results in order.

        Only a few chunks per core are ahead of the consumer, which bounds memory.
        """
        chunks = deque(np.split(indices, range(chunk, len(indices), chunk)))
        ahead: deque[Future[Any]] = deque()

        def results() -> Iterator[Any]:
            while chunks or ahead:
                while chunks and len(ahead) < 4 * self._cores:
                    ahead.append(self._submit(task, chunks.popleft(), *arguments))
                yield ahead.popleft().result()

        try:
            yield from track(results(), label, total=len(indices), step=chunk)
        except BrokenProcessPool:
            raise PipelineError(
                "a decoding process died, as it does when memory runs out", where=label
            ) from None

    def _submit(self, *task: Any) -> Future[Any]:
        """Start a worker, if one is due, that a Ctrl-C in the terminal does not reach.

        It inherits the blocked signal, so there is no moment in which it could be told: the
        parent alone decides how an interrupt ends.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.submit(*task)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_read: Read


def _open_worker(data: Data, raw: Path) -> None:
    """In each worker: open the source once, and end when the parent is killed."""
    global _read
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _read = _reader(data, raw)
    gc.freeze()  # what torchvision brings need not be searched for garbage at the end: 2 s


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _reader(data: Data, raw: Path) -> Read:
    if data.source == "folder":
        index = FolderIndex.read(raw / "index.json")
        root = Path(index.folder)
        paths = [root / file.path for file in index.files]
        return lambda i: paths[i]
    from pipeline.data.torchvision_sets import open_set

    sets = list(open_set(data, raw).values())
    starts = np.cumsum([0, *map(len, sets)])

    def read(i: int) -> Image.Image:
        which = int(np.searchsorted(starts, i, side="right")) - 1
        image, _ = sets[which][i - int(starts[which])]
        if not isinstance(image, Image.Image):
            raise ValueError(f"gives {type(image).__name__}, not images")
        return image

    return read


def _probe(indices: NDArray[np.int64]) -> tuple[set[tuple[int, int]], bool]:
    sizes, grey = set(), True
    for index in indices:
        try:
            source = _read(int(index))
            image = Image.open(source) if isinstance(source, Path) else source
            with image:
                sizes.add(upright_size(image))
                grey = grey and is_grey(image)
        except BROKEN:
            continue  # `decode` finds it again and names it
    return sizes, grey


def _decode(indices: NDArray[np.int64], size: int, channels: int) -> Decoded:
    images, kept, rejected = [], [], []
    for index in indices:
        name = f"image {index}"
        try:
            source = _read(int(index))
            name = str(source) if isinstance(source, Path) else name
            images.append(load_image(source, size, channels))
            kept.append(index)
        except PipelineError as error:
            rejected.append(Rejected(file=name, reason=error.what))
        except BROKEN as error:
            rejected.append(Rejected(file=name, reason=str(error)))
    stack = np.stack(images) if images else np.empty((0, size, size, channels), np.uint8)
    digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
    return Decoded(stack, np.array(kept, np.int64), digests, rejected)


def _torchvision_samples(data: Data, raw: Path) -> Samples:
    from pipeline.data.torchvision_sets import LICENCES, open_set

    sets = open_set(data, raw)
    labels = np.concatenate([_targets(part, data.name) for part in sets.values()])
    names = _class_names(next(iter(sets.values())), int(labels.max()) + 1)
    # Some sets name classes that no image has (EMNIST's letters start with `N/A`).
    present, labels = np.unique(labels, return_inverse=True)
    absent = [name for label, name in enumerate(names) if label not in set(present.tolist())]
    left_out = f"{len(absent)} classes have no image and are left out: {', '.join(absent[:20])}"
    splits: list[Split] = [split for split, part in sets.items() for _ in range(len(part))]
    return Samples(
        data=data,
        raw=raw,
        source=f"torchvision {data.name}",
        licence=LICENCES.get(data.name, "see the source"),
        classes=tuple(names[label] for label in present),
        labels=labels.astype(np.int64),
        splits=np.array(splits),
        warnings=(left_out,) if absent else (),
        files=None,
    )


def _class_names(part: Any, count: int) -> list[str]:
    """A name per label, each one different; the number where the set brings no names."""
    named = getattr(part, "classes", None) or getattr(part, "categories", None) or ()
    if len(named) < count:
        named = range(count)
    # ImageNet's names are tuples of synonyms, and two of its classes are called `crane`.
    names = [", ".join(name) if isinstance(name, tuple) else str(name) for name in named]
    return [f"{n} ({i})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _targets(part: Any, name: str) -> NDArray[np.int64]:
    """Labels of a torchvision set, without decoding its images where it lists them."""
    for attribute in ("targets", "labels", "_labels", "y"):
        listed = getattr(part, attribute, None)
        if listed is not None and len(listed) == len(part):
            break
    else:
        listed = [part[i][1] for i in range(len(part))]
    labels = np.asarray(listed)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise PipelineError("its targets are not one class per image", where=f"data.name: {name}")
    if len(labels) == 0 or labels.min() < 0:
        raise PipelineError("it has images without a class, or none", where=f"data.name: {name}")
    return labels.astype(np.int64)
