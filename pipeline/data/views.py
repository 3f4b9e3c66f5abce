"""Replayable views: the view of sample i in epoch e is a function of (seed, e, i).

Logits that a teacher gave for a view therefore belong to exactly that view whenever it is computed
again, in any batch, order or process.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, cast

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
    put,
    resized_crop,
)
from pipeline.data.images import centre
from pipeline.data.params import Augment
from pipeline.data.records import Arrays
from pipeline.data.trivial import LEVELS, NARROW, OPERATIONS, trivial
from pipeline.data.unlabelled import Joined

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
    "rand",
)
"""Each has its own random numbers, keyed by its position here: append new ones."""

Draws = dict[str, NDArray[Any]]
"""By stream: its draws for all samples, [N] or [N, draws per sample]."""


def seed_of(purpose: str, seed: int) -> int:
    """A seed per purpose: a teacher is trained on other views than those it gives logits for."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:6], "big")


def draw(
    options: Augment, samples: int, channels: int, *, seed: int, epoch: int, labelled: int = 0
) -> Draws:
    """All draws that `options` need for a split of `samples` images in one epoch.

    They come from the counter-based generator Philox (Salmon et al. 2011), keyed by seed, epoch
    and stream: enabling an option does not change the draws of the others. All but the partners
    are the same for a longer split. At most 88 bytes per sample. The first `labelled` samples are
    partners of each other, and so are the others: a mixture has all of its labels or none.

    A sample is mirrored in every other epoch, and half of them in the first: a network sees both
    kinds equally often, which short runs gain by (arXiv 2404.00498).
    """

    def stream(name: str, epoch: int = epoch) -> np.random.Generator:
        key = np.array([seed, epoch * 256 + STREAMS.index(name)], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def uniform(name: str, *count: int) -> NDArray[np.float32]:
        return stream(name).random((samples, *count), dtype=np.float32)

    draws: Draws = {}
    if options.flip:
        at_first = stream("flip", 0).random(samples, dtype=np.float32) < 0.5
        draws["flip"] = at_first ^ bool(epoch % 2)
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
    if options.rand is not None:
        bounds = [len(OPERATIONS), 2]  # operation, direction
        size = (samples, options.rand.operations, 2)
        draws["rand"] = stream("rand").integers(bounds, size=size, dtype=np.int8)
    if options.erase:
        draws["erase"] = uniform("erase", 5)
        draws["erase_colour"] = stream("erase_colour").integers(
            256, size=(samples, channels), dtype=np.uint8
        )
    if options.mixup or options.cutmix:
        random, parts = stream("partner"), (np.arange(labelled), np.arange(labelled, samples))
        partners = [random.permutation(part) for part in parts if len(part)]
        draws["partner"] = np.concatenate(partners).astype(np.int32)
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
    """The views of a split; that of sample i in epoch e is a function of (seed, e, i).

    In this order a view is cropped, flipped and shifted, changed by the operations of
    TrivialAugment and RandAugment, and erased, as `augment` says. With MixUp or CutMix, the views
    of two samples in the epoch are mixed: a permutation of the split, drawn for each epoch, gives
    every sample its partner. With both, each sample takes one of them with probability 1/2.
    """

    def __init__(
        self,
        images: NDArray[np.uint8] | Joined,
        labels: NDArray[np.int64],
        augment: Augment,
        *,
        classes: int,
        seed: int,
        size: int | None = None,
        known: Arrays | None = None,
    ) -> None:
        """The views of `images` under `augment`.

        Args:
            images: uint8 [N, H, W, C], C is 1 or 3; may be memory-mapped.
            labels: int64 [N] in [0, classes); -1 for images without a label, which come last.
            augment: the augmentation.
            classes: how many there are.
            seed: of all draws.
            size: height and width of the views; None: those of `images`. Random crops are cut from
                all of an image, other views from its centre.
            known: what is evaluated: the centres of the images with labels, each once, and their
                labels; all by default.

        Raises:
            ValueError: where there are not as many labels as images.
        """
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images, but {len(labels)} labels")
        self.images, self.labels = images, labels
        height, width = images.shape[1:3]
        self._shape = (height, width) if size is None else (size, size)
        self._labelled = int((labels >= 0).sum())
        own = cast("NDArray[np.uint8]", images)
        self.known = known or (own if size is None else centre(own, self._shape), labels)
        self.augment, self._classes, self._seed = augment, classes, seed
        self._drawn: tuple[int, Draws] | None = None
        self._kept: torch.Tensor | None = None

    def keep_on(self, device: torch.device) -> None:
        """Keep all images in the memory of a GPU, if a quarter of what is free there is enough."""
        free, _ = torch.cuda.mem_get_info(device)
        if 4 * math.prod(self.images.shape) <= free:
            self._kept = torch.tensor(self.images[:], device=device)

    @property
    def labelled_share(self) -> float:
        """Share of the samples that have a label."""
        return self._labelled / len(self)

    def __len__(self) -> int:
        """Samples per epoch."""
        return len(self.labels)

    def batch(
        self, epoch: int, samples: NDArray[np.int64], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute views and their labels on `device`.

        Args:
            epoch: from 0.
            samples: indices int64 [B], in any order.
            device: of the result.

        Returns:
            Pixels uint8 [B, H, W, C], and labels int64 [B]; with MixUp or CutMix, class
            probabilities float32 [B, classes], the exact shares of the two images, or 0 of none.
        """
        draws = self._draws(epoch)
        if "partner" not in draws:
            labels = put(self.labels[samples], device)
            return self._unmixed(draws, samples, device), labels
        partners = draws["partner"][samples]
        both = self._unmixed(draws, np.concatenate([samples, partners]), device)
        own, other = both[: len(samples)], both[len(samples) :]
        return self._mixed(own, other, samples, partners, {k: v[samples] for k, v in draws.items()})

    def _draws(self, epoch: int) -> Draws:
        """The draws of an epoch; those of the last epoch are cached."""
        drawn = self._drawn
        if drawn is None or drawn[0] != epoch:
            self._drawn = None  # frees the old draws before the new ones are made
            channels = self.images.shape[3]
            draws = draw(
                self.augment, len(self), channels,
                seed=self._seed, epoch=epoch, labelled=self._labelled,
            )  # fmt: skip
            self._drawn = drawn = epoch, draws
        return drawn[1]

    def _unmixed(
        self, draws: Draws, samples: NDArray[np.integer], device: torch.device
    ) -> torch.Tensor:
        """The samples' views before mixing; each is read and computed once, in file order."""
        if (samples[1:] > samples[:-1]).all():
            return self._made(draws, samples, device)
        distinct, place = np.unique(samples, return_inverse=True)
        return self._made(draws, distinct, device)[put(place, device)]

    def _made(
        self, draws: Draws, samples: NDArray[np.integer], device: torch.device
    ) -> torch.Tensor:
        n, (height, width), here = len(samples), self._shape, self._kept
        whole: Any = self.images[samples] if here is None else here[put(samples, device)]
        if "crop" in draws:
            assert self.augment.crop is not None
            crop = crop_boxes(draws["crop"][samples], self.augment.crop, *whole.shape[1:3])
            pixels = resized_crop(put(whole, device), put(crop, device), self._shape)
        else:
            pixels = put(centre(whole, self._shape), device)
        if "flip" in draws or "shift" in draws:
            flip = draws["flip"][samples] if "flip" in draws else np.zeros(n, bool)
            shift = draws["shift"][samples] if "shift" in draws else np.zeros((n, 2), np.int32)
            pixels = flip_and_shift(pixels, put(flip, device), put(shift, device))
        if "trivial" in draws:
            operation, level, direction = draws["trivial"][samples].T
            pixels = trivial(pixels, operation, np.where(direction, level, -level))
        if "rand" in draws:
            assert self.augment.rand is not None
            level = self.augment.rand.magnitude
            for operation, direction in draws["rand"][samples].transpose(1, 2, 0):
                signed = np.where(direction, level, -level)
                pixels = trivial(pixels, operation, signed, NARROW)
        if "erase" in draws:
            boxes = erase_boxes(draws["erase"][samples], self.augment.erase, height, width)
            pixels = erase(pixels, put(boxes, device), put(draws["erase_colour"][samples], device))
        return pixels

    def _mixed(
        self,
        own: torch.Tensor,
        other: torch.Tensor,
        samples: NDArray[np.int64],
        partners: NDArray[np.int32],
        draws: Draws,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """MixUp, then CutMix; a sample that takes only one of them keeps its image in the other."""
        _, height, width, _ = own.shape
        device, share = own.device, np.ones(len(samples))
        if "mixup" in draws:
            weights = np.where(draws["takes_mixup"], draws["mixup"], WHOLE)
            share *= weights / WHOLE
            own = mixup(own, other, put(weights, device))
        if "cutmix" in draws:
            boxes = cutmix_boxes(draws["cutmix"], draws["cutmix_centre"], height, width)
            boxes = np.where(draws["takes_mixup"][:, None], 0, boxes)
            share *= kept(boxes, height, width)
            own = cutmix(own, other, put(boxes, device))
        label, second = (put(self.labels[i], device)[:, None] for i in (samples, partners))
        classes = torch.arange(self._classes, device=device)
        first = put(share.astype(np.float32), device)[:, None]
        return own, (label == classes) * first + (second == classes) * (1 - first)
