"""Stage `prepare`: packed splits, the manifest and the calibration set."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256, whole_folder
from pipeline.core.text import printable
from pipeline.data.decoding import Decoded, Decoder
from pipeline.data.findings import NAMED, Tally
from pipeline.data.images import centre
from pipeline.data.packing import ArrayWriter, draw
from pipeline.data.params import Data
from pipeline.data.recall import too_small
from pipeline.data.records import (
    CALIBRATION,
    MANIFEST,
    ORIGINS,
    PACKED,
    RAW,
    SPLITS,
    Fetched,
    Manifest,
    Origin,
    Split,
)
from pipeline.data.sources import Samples, check_class_names
from pipeline.data.unlabelled import FILE, all_samples, choose_unlabelled

SMALL = 64
"""`image_size: auto`: square images of one size up to this many pixels keep it."""

SIZES = {64: 96, 128: 192}
"""... others get the first of these sizes if the median of their shorter sides is below the number
beside it, else `PHOTO`."""

PHOTO, MANY, OF_MANY = 224, 50_000, 128
"""... and more than MANY images at most OF_MANY, where training takes a third of the time."""

STORED = 1.15
"""`stored_size: auto`: the shorter side of photos is resized to so many times their size, of which
networks see the centre, but not enlarged for it. A random crop of three quarters of the area then
has as many pixels as a network takes."""


def prepare(
    data: Data,
    seed: int,
    raw: Path = RAW,
    packed: Path = PACKED,
    calibration: Path = CALIBRATION,
) -> Manifest:
    """Decode `raw` into uint8 [N, H, W, C] arrays per split, on all cores, in bounded memory.

    Splits that the source lacks are cut stratified and seeded: test from everything, val
    from train.

    Raises:
        PipelineError: for too many broken files, a class without images in a split, a class name
            with control characters, and a file of `fetch` that is missing, damaged or of another
            run.
    """
    Fetched.check(raw)
    samples = all_samples(data, raw)
    check_class_names(samples.classes, samples.source)
    random = np.random.default_rng(seed)
    splits = _split(samples, data, random)
    splits["train"], unlabelled = choose_unlabelled(samples, splits["train"], data, random)
    with (
        Decoder(samples, data, raw) as decoder,
        # The large folder is renamed first: the time between the two renames is next to nothing.
        whole_folder(calibration) as calibration_scratch,
        whole_folder(packed) as scratch,
    ):
        size, stored, channels = _shape(decoder, data)
        # Random crops are cut from all of a train image; everything else looks at its centre.
        whole = (stored, stored, channels)
        shapes = dict.fromkeys(SPLITS, (size, size, channels)) | {"train": whole}
        needed = sum(len(splits[split]) * math.prod(shapes[split]) for split in SPLITS)
        _check_space(packed, needed + len(unlabelled) * math.prod(whole))
        tally = Tally(data.max_rejected * (sum(map(len, splits.values())) + len(unlabelled)))
        decode = partial(decoder.decode, size=size, resize=stored)
        for split in SPLITS:
            parts = decode(splits[split], shapes[split], f"prepare {split}")
            _pack(parts, samples, split, shapes[split], tally, scratch)
        with ArrayWriter(scratch / FILE, whole, np.uint8) as images:
            if len(unlabelled):
                for part in decode(unlabelled, whole, "prepare unlabelled"):
                    images.append(part.images[tally.new(part, samples)])
        if not images.rows:
            (scratch / FILE).unlink()
        warnings = [*samples.warnings, *tally.lossy(), *tally.suspicious(samples)]
        warnings += tally.repeated()
        chosen = _calibration_set(data, scratch, size, random, warnings)
        np.save(calibration_scratch / "images.npy", chosen)
        mean, std = tally.statistics()
        manifest = Manifest(
            source=samples.source,
            licence=samples.licence,
            classes=samples.classes,
            image_size=size,
            stored_size=stored,
            channels=channels,
            counts={split: _counts(samples, scratch, split) for split in SPLITS},
            unlabelled=images.rows,
            digests={file.name: sha256(file) for file in sorted(scratch.iterdir())},
            calibration_digest=sha256(calibration_scratch / "images.npy"),
            mean=mean,
            std=std,
            layout=samples.layout,
            rejected=tuple(tally.rejected),
            warnings=tuple(warnings),
            made_for=settings_digest(data, seed),
        )
        manifest.write(scratch / MANIFEST)
    return manifest


def _pack(
    parts: Iterable[Decoded],
    samples: Samples,
    split: Split,
    shape: tuple[int, int, int],
    tally: Tally,
    folder: Path,
) -> None:
    """Write the images, labels and origins of a split into `folder`, part by part."""
    with (
        ArrayWriter(folder / f"{split}_images.npy", shape, np.uint8) as images,
        ArrayWriter(folder / f"{split}_labels.npy", (), np.int64) as labels,
        (folder / f"{split}_{ORIGINS}").open("w") as origins,
    ):
        for part in parts:
            images.append(part.images)
            labels.append(samples.labels[part.indices])
            for index, before in zip(part.indices, part.sizes, strict=True):
                origins.write(Origin(samples.name(int(index)), *before).line())
            tally.add(split, part)


def settings_digest(data: Data, seed: int) -> str:
    """SHA-256 of what `prepare` reads of params.yaml: tells packed images of other settings."""
    return hashlib.sha256(f"{data.model_dump_json()} {seed}".encode()).hexdigest()


def _check_space(packed: Path, needed: int) -> None:
    """Raise `PipelineError` where the disk of `packed` has not `needed` bytes free."""
    free = shutil.disk_usage(packed.parent).free
    if needed > free:
        raise PipelineError(
            f"the packed images take {needed / 1e6:,.1f} MB and the disk has "
            f"{free / 1e6:,.1f} MB free",
            where=str(packed),
            fix="free space, or set `data.stored_size: same`, or a smaller `data.image_size` or "
            "`data.limit`",
        )


def summary(manifest: Manifest) -> list[str]:
    """What a person should know of the packed images, line by line."""
    sizes = ", ".join(f"{manifest.size(split):,} {split}" for split in manifest.counts)
    lines = [f"{manifest.source}: {manifest.layout}"] if manifest.layout else []
    sizes += f" and {manifest.unlabelled:,} unlabelled" if manifest.unlabelled else ""
    cut = ""
    if manifest.stored_size != manifest.image_size:
        cut = f", the centre of {manifest.stored_size}"
    lines += [f"{sizes} images of {manifest.image_size} px{cut}, {len(manifest.classes)} classes"]
    warnings = [*manifest.warnings, *too_small(manifest.counts)]
    lines += [f"warning: {warning}" for warning in warnings]
    if manifest.rejected:
        shown = [
            f"\n    {rejected.file}: {rejected.reason}" for rejected in manifest.rejected[:NAMED]
        ]
        lines.append(
            f"warning: {len(manifest.rejected)} broken files are left out"
            f"{' (all: data/packed/manifest.json)' if len(manifest.rejected) > NAMED else ''}:"
            + "".join(shown)
        )
    return [printable(line) for line in lines]


def _split(
    samples: Samples, data: Data, random: np.random.Generator
) -> dict[Split, NDArray[np.int64]]:
    """Indices into `samples` per split: the source's own splits, missing ones cut from train."""
    splits = {split: np.flatnonzero(samples.splits == split).astype(np.int64) for split in SPLITS}
    cuts: dict[Split, float] = {"test": data.test_fraction, "val": data.val_fraction}
    _check_enough(samples, splits["train"], [split for split in cuts if not len(splits[split])])
    for missing, fraction in cuts.items():
        if len(splits[missing]) == 0:
            train = splits["train"]
            count = max(round(fraction * len(train)), len(samples.classes))  # one of each
            cut = draw(samples.labels[train], min(count, len(train)), random)
            splits[missing] = train[cut]
            splits["train"] = np.delete(train, cut)
    if data.limit is not None:
        for split, indices in splits.items():
            if len(indices) > data.limit:
                splits[split] = indices[draw(samples.labels[indices], data.limit, random)]
    return splits


def _check_enough(samples: Samples, train: NDArray[np.int64], cut: list[Split]) -> None:
    """Raise `PipelineError` for a class with fewer images than splits that are made of them."""
    counts = np.bincount(samples.labels[train], minlength=len(samples.classes))
    few = [name for name, n in zip(samples.classes, counts, strict=True) if n <= len(cut)]
    if few and cut:
        count, more = counts[samples.classes.index(few[0])], f", and {len(few) - 1} more"
        raise PipelineError(
            f"the class `{few[0]}`{more if few[1:] else ''} cannot be split: it has {count} "
            f"image(s) and needs at least {1 + len(cut)}, one each for "
            f"{', '.join(['train', *cut])}",
            where=samples.source,
            fix="add images of it, or remove its folder",
        )


def _shape(decoder: Decoder, data: Data) -> tuple[int, int, int]:
    """Image size, stored size and channels; `auto` is decided by the images' headers.

    Raises:
        PipelineError: for a stored size below the image size, or above twice as much.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    grey = False
    photos = data.image_size == "auto" or data.image_size > SMALL
    if "auto" in (data.image_size, data.channels) or (photos and data.stored_size == "auto"):
        sizes, grey = decoder.probe()
    shorter = np.repeat([min(size) for size in sizes], list(sizes.values()))
    median = float(np.median(shorter)) if len(shorter) else 0.0
    size = _auto_size(sizes, median) if data.image_size == "auto" else data.image_size
    channels = (1 if grey else 3) if data.channels == "auto" else data.channels
    stored = size if data.stored_size in ("auto", "same") else int(data.stored_size)
    if data.stored_size == "auto" and size > SMALL:
        stored = max(size, min(round(STORED * size), int(median)))
    if not size <= stored <= 2 * size:
        raise PipelineError(
            f"{stored} px are {'less' if stored < size else 'more than twice as much'} than the "
            f"images' {size} px",
            where="params.yaml: data.stored_size",
            fix=f"set `auto`, `same` or a size between {size} and {2 * size}",
        )
    return size, stored, channels


def _auto_size(sizes: Counter[tuple[int, int]], median: float) -> int:
    """The size of images, from how often each (width, height) occurs and their shorter sides."""
    if len(sizes) == 1:
        ((width, height),) = sizes
        if width == height and 8 <= width <= SMALL:
            return width
    size = next((size for size, below in SIZES.items() if median < below), PHOTO)
    return min(size, OF_MANY) if sizes.total() > MANY else size


def _counts(samples: Samples, folder: Path, split: Split) -> dict[str, int]:
    labels = np.load(folder / f"{split}_labels.npy")
    counts = np.bincount(labels, minlength=len(samples.classes))
    for name, count in zip(samples.classes, counts, strict=True):
        if count == 0:
            raise PipelineError(
                f"the class `{name}` has no image in the {split} split; it has "
                f"{int((samples.labels == samples.classes.index(name)).sum())} images in all, "
                f"broken ones included, and needs one in each of {len(SPLITS)} splits at least",
                where=samples.source,
                fix="add images of it, raise `data.limit` or the split's fraction, or remove it",
            )
    return dict(zip(samples.classes, counts.tolist(), strict=True))


def _calibration_set(
    data: Data, packed: Path, size: int, random: np.random.Generator, warnings: list[str]
) -> NDArray[np.uint8]:
    """A stratified, seeded draw from train, uint8 [N, `size`, `size`, C]."""
    images = np.load(packed / "train_images.npy", mmap_mode="r")
    labels = np.load(packed / "train_labels.npy")
    count = min(data.calibration_images, len(labels))
    if count < data.calibration_images:
        warnings.append(
            f"all {count} train images calibrate int8, fewer than `data.calibration_images` "
            f"({data.calibration_images})"
        )
    chosen = draw(labels, count, random)
    return centre(images[chosen], (size, size))
