"""Stage `prepare`: packed splits, the manifest and the calibration set."""

from __future__ import annotations

import math
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256, whole_folder
from pipeline.core.text import printable
from pipeline.data.decoding import Decoded, Decoder
from pipeline.data.packing import ArrayWriter, draw
from pipeline.data.params import Data
from pipeline.data.records import (
    CALIBRATION,
    MANIFEST,
    PACKED,
    RAW,
    SPLITS,
    Fetched,
    Manifest,
    Rejected,
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

NAMED = 20
"""Files named in a warning; further ones are only counted."""


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
        size, channels = _shape(decoder, data)
        shape = (size, size, channels)
        total = sum(map(len, splits.values())) + len(unlabelled)
        _check_space(packed, total * math.prod(shape))
        tally = _Tally(limit=data.max_rejected * total)
        for split in SPLITS:
            with (
                ArrayWriter(scratch / f"{split}_images.npy", shape, np.uint8) as images,
                ArrayWriter(scratch / f"{split}_labels.npy", (), np.int64) as labels,
            ):
                for part in decoder.decode(splits[split], shape, f"prepare {split}"):
                    images.append(part.images)
                    labels.append(samples.labels[part.indices])
                    tally.add(split, part)
        with ArrayWriter(scratch / FILE, shape, np.uint8) as images:
            if len(unlabelled):
                for part in decoder.decode(unlabelled, shape, "prepare unlabelled"):
                    images.append(part.images[tally.new(part, samples)])
        if not images.rows:
            (scratch / FILE).unlink()
        warnings = [*samples.warnings, *tally.lossy(), *tally.suspicious(samples)]
        warnings += tally.repeated()
        chosen = _calibration_set(data, scratch, random, warnings)
        np.save(calibration_scratch / "images.npy", chosen)
        mean, std = tally.statistics()
        manifest = Manifest(
            source=samples.source,
            licence=samples.licence,
            classes=samples.classes,
            image_size=size,
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
        )
        manifest.write(scratch / MANIFEST)
    return manifest


def _check_space(packed: Path, needed: int) -> None:
    """Raise `PipelineError` where the disk of `packed` has not `needed` bytes free."""
    free = shutil.disk_usage(packed.parent).free
    if needed > free:
        raise PipelineError(
            f"the packed images take {needed / 1e6:,.1f} MB and the disk has "
            f"{free / 1e6:,.1f} MB free",
            where=str(packed),
            fix="free space, or set a smaller `data.image_size` or `data.limit`",
        )


def summary(manifest: Manifest) -> list[str]:
    """What a person should know of the packed images, line by line."""
    sizes = ", ".join(f"{manifest.size(split):,} {split}" for split in manifest.counts)
    lines = [f"{manifest.source}: {manifest.layout}"] if manifest.layout else []
    sizes += f" and {manifest.unlabelled:,} unlabelled" if manifest.unlabelled else ""
    lines += [f"{sizes} images of {manifest.image_size} px, {len(manifest.classes)} classes"]
    lines += [f"warning: {warning}" for warning in manifest.warnings]
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


def _shape(decoder: Decoder, data: Data) -> tuple[int, int]:
    """Image size and channels; `auto` is decided by the images' headers."""
    if data.image_size != "auto" and data.channels != "auto":
        return data.image_size, data.channels
    sizes, grey = decoder.probe()
    size = _auto_size(sizes) if data.image_size == "auto" else data.image_size
    return size, data.channels if data.channels != "auto" else (1 if grey else 3)


def _auto_size(sizes: Counter[tuple[int, int]]) -> int:
    """The size that images are packed at, from how often each (width, height) occurs."""
    if len(sizes) == 1:
        ((width, height),) = sizes
        if width == height and 8 <= width <= SMALL:
            return width
    shorter = np.repeat([min(size) for size in sizes], list(sizes.values()))
    median = float(np.median(shorter)) if len(shorter) else 0.0
    size = next((size for size, below in SIZES.items() if median < below), PHOTO)
    return min(size, OF_MANY) if sizes.total() > MANY else size


@dataclass
class _Tally:
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
            channels = part.images.shape[-1]
            flat = part.images.reshape(-1, channels)
            counts = np.stack([np.bincount(flat[:, c], minlength=256) for c in range(channels)])
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
    data: Data, packed: Path, random: np.random.Generator, warnings: list[str]
) -> NDArray[np.uint8]:
    """A stratified, seeded draw from train, uint8 [N, H, W, C]."""
    images = np.load(packed / "train_images.npy", mmap_mode="r")
    labels = np.load(packed / "train_labels.npy")
    count = min(data.calibration_images, len(labels))
    if count < data.calibration_images:
        warnings.append(
            f"train has {count} images: the calibration set has not {data.calibration_images}"
        )
    chosen: NDArray[np.uint8] = images[draw(labels, count, random)]
    return chosen
