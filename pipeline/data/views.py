"""Replayable views: what a network sees of sample i in epoch e is decided by (seed, e, i) alone.

So a teacher's signal that was recorded for a view belongs to exactly that view whenever it is
made again, in whatever batch, order or process.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.augment import (
    WHOLE,
    crop_boxes,
    cutmix,
    cutmix_boxes,
    erase,
    erase_boxes,
    flip_and_shift,
    kept,
    mixup,
    resized_crop,
)
from pipeline.data.params import Augment
from pipeline.data.trivial import LEVELS, OPERATIONS, trivial

STREAMS = (
    "flip",
    "shift",
    "crop",
    "trivial",
    "erase",
    "erase_colour",
    "partner",
    "takes_mixup",
    "mixup",
    "cutmix",
    "cutmix_centre",
)
"""Each has random numbers of its own, keyed by its place here: add new ones at the end."""

Draws = dict[str, NDArray[Any]]
"""By stream: what it draws for every sample, [N] or [N, per sample]."""


def seed_of(purpose: str, seed: int) -> int:
    """A seed of its own for a purpose: what a teacher trains on is not what it is asked about."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:6], "big")


def draw(options: Augment, samples: int, channels: int, *, seed: int, epoch: int) -> Draws:
    """All draws that `options` need for the `samples` of a split in one epoch.

    From Philox (Salmon et al. 2011), a counter-based generator, keyed by seed, epoch and
    stream: switching an option on leaves the draws of the others. All but the partners are
    the same for a longer split. At most 72 bytes a sample.
    """

    def stream(name: str) -> np.random.Generator:
        key = np.array([seed, epoch * 256 + STREAMS.index(name)], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def uniform(name: str, *count: int) -> NDArray[np.float32]:
        return stream(name).random((samples, *count), dtype=np.float32)

    draws: Draws = {}
    if options.flip:
        draws["flip"] = uniform("flip") < 0.5
    if options.shift:
        most = options.shift
        draws["shift"] = stream("shift").integers(
            -most, most, (samples, 2), dtype=np.int32, endpoint=True
        )
    if options.crop is not None:
        draws["crop"] = uniform("crop", 4)
    if options.trivial:
        bounds = [len(OPERATIONS), LEVELS, 2]  # operation, level, direction
        draws["trivial"] = stream("trivial").integers(bounds, size=(samples, 3), dtype=np.int8)
    if options.erase:
        draws["erase"] = uniform("erase", 5)
        draws["erase_colour"] = stream("erase_colour").integers(
            256, size=(samples, channels), dtype=np.uint8
        )
    if options.mixup or options.cutmix:
        draws["partner"] = stream("partner").permutation(samples).astype(np.int32)
        draws["takes_mixup"] = uniform("takes_mixup") < _mixup_share(options)
    if options.mixup:
        share = stream("mixup").beta(options.mixup, options.mixup, samples)
        draws["mixup"] = np.rint(share * WHOLE).astype(np.int32)
    if options.cutmix:
        share = stream("cutmix").beta(options.cutmix, options.cutmix, samples)
        draws["cutmix"] = share.astype(np.float32)
        draws["cutmix_centre"] = uniform("cutmix_centre", 2)
    return draws


def _mixup_share(options: Augment) -> float:
    if options.mixup and options.cutmix:
        return 0.5
    return 1.0 if options.mixup else 0.0


class Views:
    """All views of a split: sample i in epoch e is decided by (seed, e, i) alone.

    A view is cropped, flipped and shifted, changed by one of TrivialAugment's operations, and
    erased, as far as `augment` asks. Where MixUp or CutMix is on, every sample is mixed with
    a partner: each image of the split is the partner of one, by a permutation drawn anew per
    epoch. What is mixed is two views, the partner's the one that it has in this epoch. With
    both on, each sample takes either by a probability of 1/2.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        augment: Augment,
        *,
        classes: int,
        seed: int,
    ) -> None:
        """`images` [N, H, W, C], C 1 or 3, may be memory-mapped; `labels` [N] in [0, classes).

        Raises `ValueError` where the two do not fit each other.
        """
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images, but {len(labels)} labels")
        self.images, self.labels = images, labels
        self._augment, self._classes, self._seed = augment, classes, seed
        self._drawn: tuple[int, Draws] | None = None

    def __len__(self) -> int:
        """Samples per epoch."""
        return len(self.labels)

    def batch(
        self, epoch: int, samples: NDArray[np.int64], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The views of `samples` (indices [B], in any order), and their labels, on `device`.

        Pixels are uint8 [B, H, W, C]. Labels are int64 [B], or, where MixUp or CutMix mixes,
        class probabilities float32 [B, classes]: the exact shares of the two images.
        """
        draws = self._draws(epoch)
        if "partner" not in draws:
            labels = torch.from_numpy(self.labels[samples]).to(device)
            return self._unmixed(draws, samples, device), labels
        partners = draws["partner"][samples]
        both = self._unmixed(draws, np.concatenate([samples, partners]), device)
        own, other = both[: len(samples)], both[len(samples) :]
        return self._mixed(own, other, samples, partners, {k: v[samples] for k, v in draws.items()})

    def _draws(self, epoch: int) -> Draws:
        """The draws of an epoch, kept until another is asked for."""
        drawn = self._drawn
        if drawn is None or drawn[0] != epoch:
            self._drawn = None  # the last epoch's go before the next one's come
            channels = self.images.shape[3]
            draws = draw(self._augment, len(self), channels, seed=self._seed, epoch=epoch)
            self._drawn = drawn = epoch, draws
        return drawn[1]

    def _unmixed(
        self, draws: Draws, samples: NDArray[np.integer], device: torch.device
    ) -> torch.Tensor:
        """The samples' views before any mixing, each read and made once, in file order."""
        if (samples[1:] > samples[:-1]).all():
            return self._made(draws, samples, device)
        distinct, place = np.unique(samples, return_inverse=True)
        return self._made(draws, distinct, device)[torch.from_numpy(place).to(device)]

    def _made(
        self, draws: Draws, samples: NDArray[np.integer], device: torch.device
    ) -> torch.Tensor:
        def put(array: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        pixels = put(self.images[samples])
        n, height, width, _ = pixels.shape
        if "crop" in draws:
            assert self._augment.crop is not None
            crop = crop_boxes(draws["crop"][samples], self._augment.crop, height, width)
            pixels = resized_crop(pixels, put(crop))
        if "flip" in draws or "shift" in draws:
            flip = draws["flip"][samples] if "flip" in draws else np.zeros(n, bool)
            shift = draws["shift"][samples] if "shift" in draws else np.zeros((n, 2), np.int32)
            pixels = flip_and_shift(pixels, put(flip), put(shift))
        if "trivial" in draws:
            operation, level, direction = draws["trivial"][samples].T
            pixels = trivial(pixels, operation, np.where(direction, level, -level))
        if "erase" in draws:
            boxes = erase_boxes(draws["erase"][samples], self._augment.erase, height, width)
            pixels = erase(pixels, put(boxes), put(draws["erase_colour"][samples]))
        return pixels

    def _mixed(
        self,
        own: torch.Tensor,
        other: torch.Tensor,
        samples: NDArray[np.int64],
        partners: NDArray[np.int32],
        draws: Draws,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both mixes in turn; the one that a sample does not take keeps all of its own image."""
        _, height, width, _ = own.shape
        device, share = own.device, np.ones(len(samples))
        if "mixup" in draws:
            weights = np.where(draws["takes_mixup"], draws["mixup"], WHOLE)
            share *= weights / WHOLE
            own = mixup(own, other, torch.from_numpy(weights).to(device))
        if "cutmix" in draws:
            boxes = cutmix_boxes(draws["cutmix"], draws["cutmix_centre"], height, width)
            boxes = np.where(draws["takes_mixup"][:, None], 0, boxes)
            share *= kept(boxes, height, width)
            own = cutmix(own, other, torch.from_numpy(boxes).to(device))
        label, second = (
            torch.from_numpy(self.labels[i]).to(device)[:, None] for i in (samples, partners)
        )
        classes = torch.arange(self._classes, device=device)
        first = torch.from_numpy(share.astype(np.float32)).to(device)[:, None]
        return own, (label == classes) * first + (second == classes) * (1 - first)
