"""Images of any source, decoded on all cores in bounded memory."""

from __future__ import annotations

import gc
import hashlib
import math
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.core.patches import keep_freed_memory
from pipeline.core.progress import track
from pipeline.data.images import BROKEN, SIXTEEN_BIT, centre, is_grey, load_image, open_image
from pipeline.data.params import Data
from pipeline.data.records import Rejected
from pipeline.data.sources import Read, Samples
from pipeline.data.unlabelled import reader

CHUNK = 64
CHUNK_BYTES = 4 << 20
"""A task decodes at most so many images and so many bytes of pixels: enough to hide the cost of a
task, few enough for memory at any image size and number of cores."""

PROBED = 2000
"""Images that `auto` looks at in a source without files, where each one has to be decoded."""


DARK = 1 << 14
"""A 16-bit image whose values all lie below becomes at most a quarter as bright as white."""

CUT = "images are not square: their longer sides are cut off, the centre is kept"
REDUCED = "images have 16 bits per value, which are reduced to 8"
DIM = (
    f"16-bit images have no value above {DARK - 1} of 65535 and become dark or black: where 12 or "
    "14 bits were stored in 16, scale them before"
)


@dataclass(frozen=True)
class Decoded:
    """Consecutive samples: images uint8 [n, H, W, C], their indices, digests of their centres."""

    images: NDArray[np.uint8]
    indices: NDArray[np.int64]
    digests: list[bytes]
    sizes: list[tuple[int, int]]
    """(width, height) before they were resized."""
    rejected: list[Rejected]
    losses: Counter[str]
    """How many images lose something on their way to pixels, by CUT, REDUCED and DIM."""


class Decoder:
    """A pool of processes, one per core, that read and decode images; a context manager."""

    def __init__(self, samples: Samples, data: Data, raw: Path) -> None:
        self._samples = samples
        self._cores = len(os.sched_getaffinity(0))
        # Fresh processes, not forks: torch may have started threads in this one.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(self._cores, context, _open_worker, (data, raw))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def probe(self) -> tuple[Counter[tuple[int, int]], bool]:
        """How often each (width, height) occurs, and whether all are grey, of those with labels."""
        count = int((self._samples.labels >= 0).sum())
        step = 1 if self._samples.files is not None else max(1, count // PROBED)
        sizes: Counter[tuple[int, int]] = Counter()
        grey = True
        looked_at = np.arange(0, count, step)
        for found, all_grey in self._map(_probe, looked_at, "look at images", CHUNK):
            sizes += found
            grey = grey and all_grey
        if step > 1:
            sizes = Counter({size: found * step for size, found in sizes.items()})
        return sizes, grey

    def decode(
        self,
        indices: NDArray[np.int64],
        shape: tuple[int, int, int],
        label: str,
        *,
        size: int,
        resize: int,
    ) -> Iterator[Decoded]:
        """Decode the samples `indices`, in their order, part by part.

        Args:
            indices: of samples.
            shape: (H, W, C) of the result, H = W.
            label: of the progress bar.
            size: of the centre that the digests are of: what networks see unless they train.
            resize: what the shorter side becomes; see `load_image`.
        """
        chunk = max(1, min(CHUNK, CHUNK_BYTES // math.prod(shape)))
        task = partial(_decode, shape=shape, size=size, resize=resize)
        yield from self._map(task, indices, label, chunk)

    def _map(
        self, task: Callable[..., Any], indices: NDArray[np.int64], label: str, chunk: int
    ) -> Iterator[Any]:
        """`task(part)` for each part of `chunk` indices, in order.

        Only a few parts per core are computed ahead of the consumer, which bounds memory.
        """
        chunks = deque(np.split(indices, range(chunk, len(indices), chunk)))
        ahead: deque[Future[Any]] = deque()

        def results() -> Iterator[Any]:
            while chunks or ahead:
                while chunks and len(ahead) < 4 * self._cores:
                    ahead.append(self._submit(task, chunks.popleft()))
                yield ahead.popleft().result()

        try:
            yield from track(results(), label, total=len(indices), step=chunk)
        except BrokenProcessPool:
            raise PipelineError(
                "a decoding process died; the memory may be too small", where=label
            ) from None

    def _submit(self, *task: Any) -> Future[Any]:
        """Submit a task. A worker that is started for it does not receive Ctrl-C.

        It inherits the blocked signal, so no moment is left in which SIGINT could reach it: the
        parent alone handles an interrupt.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.submit(*task)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_read: Read


def _open_worker(data: Data, raw: Path) -> None:
    """In each worker: open the source, and watch the parent, which may be killed."""
    global _read
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _read = reader(data, raw)
    gc.freeze()  # a search for garbage in torchvision at exit takes 2 s


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _opened(index: np.int64) -> tuple[str, AbstractContextManager[Image.Image]]:
    """The name of a sample and its image, which is closed in the end where it is a file."""
    source = _read(int(index))
    if isinstance(source, Path):
        return str(source), open_image(source)
    return f"image {index}", nullcontext(source)


def _probe(indices: NDArray[np.int64]) -> tuple[Counter[tuple[int, int]], bool]:
    sizes: Counter[tuple[int, int]] = Counter()
    grey = True
    for index in indices:
        try:
            with _opened(index)[1] as image:
                sizes[image.size] += 1
                grey = grey and is_grey(image)
        except BROKEN:
            continue  # `decode` finds it again and names it
    return sizes, grey


def _decode(
    indices: NDArray[np.int64], shape: tuple[int, int, int], size: int, resize: int
) -> Decoded:
    images, kept, sizes, rejected = [], [], [], []
    losses: Counter[str] = Counter()
    for index in indices:
        name = f"image {index}"
        try:
            name, opened = _opened(index)
            with opened as image:
                lost, size_before = _losses(image), image.size
                images.append(load_image(image, shape[0], shape[2], resize))
            kept.append(index)
            sizes.append(size_before)
            losses.update(lost)
        except BROKEN as error:  # `ImageError` among them
            rejected.append(Rejected(file=name, reason=str(error)))
    stack = np.stack(images) if images else np.empty((0, *shape), np.uint8)
    seen = centre(stack, (size, size))
    digests = [hashlib.sha256(np.ascontiguousarray(one).data).digest()[:16] for one in seen]
    return Decoded(stack, np.array(kept, np.int64), digests, sizes, rejected, losses)


def _losses(image: Image.Image) -> list[str]:
    """What an image loses on its way to pixels: some of CUT, REDUCED and DIM."""
    lost = [CUT] if image.width != image.height else []
    # Pillow itself reduces colours: their 16 bits show only in the format that its decoder reads.
    reduced = any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    if image.mode not in SIXTEEN_BIT and not reduced:
        return lost
    image.load()
    extrema = np.reshape(image.getextrema(), (-1, 2))
    brightest = max(
        high for (_, high), band in zip(extrema, image.getbands(), strict=True) if band != "A"
    )
    dark = DARK if image.mode in SIXTEEN_BIT else DARK >> 8
    return [*lost, REDUCED, *([DIM] if brightest < dark else [])]
