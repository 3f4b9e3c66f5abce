"""Maps of what an answer depends on, by hiding parts of the image; any runtime will do.

What is hidden becomes that part of the mean train image. It is what a network expects there: a
patch of one colour is an object of its own where the background is black.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.accuracy.metrics import probabilities
from pipeline.attribution.agreement import Floats
from pipeline.attribution.places import patches, spread
from pipeline.core.progress import track
from pipeline.data.batches import batches
from pipeline.export.evaluate import Runner

_IMAGES = 250
"""Per call at most: see `pipeline.data.batches`."""

_ROUNDING = 16 * float(np.finfo(np.float32).eps)
"""Of a score, relative to its size: differences up to it come from the order of float32 sums."""

Hidden = Callable[[int], NDArray[np.bool_]]
"""For the i-th image: which pixels each of its views hides, bool [V, H, W]."""


@dataclass(frozen=True)
class Sample:
    """The images that maps are made of."""

    images: NDArray[np.uint8]
    """Raw pixels of the whole split [M, H, W, C], may be memory-mapped."""
    places: NDArray[np.int64]
    """Which of them, [N]."""
    labels: NDArray[np.int64]
    """Of the N chosen images."""
    fill: NDArray[np.uint8]
    """The mean train image [H, W, C], of which hidden pixels are taken."""
    strips: NDArray[np.bool_]
    """Of `places.strips`, bool [G, H]; images are square."""

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class Looked:
    """A network's answers to the images of a `Sample`, and what they depend on."""

    maps: Floats
    """By position of the patch: how much hiding it lowers the target's score, [N, G, G]."""
    answers: NDArray[np.int64]
    """Class with the largest logit of the whole image, [N]."""
    confidence: Floats
    """Its probability, [N]."""


@dataclass(frozen=True)
class Areas:
    """Areas under the curve of the target's probability, each float64 [N] in [0, 1]."""

    deletion: Floats
    insertion: Floats


def views(run: Runner, sample: Sample, hidden: Hidden, label: str) -> Iterator[NDArray[np.float32]]:
    """The logits [V, classes] of the views of each image, one image in memory at a time.

    Args:
        run: an opened model.
        sample: the images.
        hidden: what each view hides.
        label: of the progress bar.
    """
    for i in track(range(len(sample)), label, total=len(sample)):
        image = np.asarray(sample.images[sample.places[i]])
        seen = np.where(hidden(i)[..., None], sample.fill, image)
        parts = batches(seen, _IMAGES)
        yield np.concatenate([run(np.ascontiguousarray(part)) for part in parts])


def score(logits: NDArray[np.float32], target: int) -> Floats:
    """The logit of the class `target` above the mean logit, [V] of logits [V, C].

    No probability depends on an offset that all logits share. The probability itself would hardly
    move where the network is sure.
    """
    exact = logits.astype(np.float64)
    above: Floats = exact[:, target] - exact.mean(axis=1)
    return above


def look(run: Runner, sample: Sample, targets: NDArray[np.int64] | None, label: str) -> Looked:
    """Occlusion maps: how much the score of a class falls when a patch is hidden.

    Zeiler and Fergus, Visualizing and Understanding Convolutional Networks (arXiv 1311.2901), 4.2.
    A map whose values differ by no more than float32's rounding of the scores is all 0.

    Args:
        run: an opened model.
        sample: the images.
        targets: whose score falls, a class for each image [N]; None: the model's own answers.
        label: of the progress bar.
    """
    grid, size = sample.strips.shape
    hidden = np.concatenate([np.zeros((1, size, size), np.bool_), patches(sample.strips)])
    count = len(sample)
    maps, confidence = np.zeros((count, grid * grid)), np.zeros(count)
    answers = np.zeros(count, np.int64)
    for i, logits in enumerate(views(run, sample, lambda _: hidden, label)):
        answers[i] = logits[0].argmax()
        confidence[i] = probabilities(logits[:1])[0, answers[i]]
        scores = score(logits, int(answers[i] if targets is None else targets[i]))
        if np.ptp(scores) > _ROUNDING * np.abs(scores).max():
            maps[i] = scores[0] - scores[1:]
    return Looked(maps.reshape(count, grid, grid), answers, confidence)


def removal(order: NDArray[np.int64], steps: int) -> NDArray[np.bool_]:
    """What views hide that delete pixels in this order, and such that insert them.

    Args:
        order: indices of all pixels [P], the most important first.
        steps: K.

    Returns:
        bool [2, K - 1, P]: for k = 1 ... K - 1, the first k / K of the pixels, and all but them.
    """
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    gone = np.round(np.arange(1, steps) / steps * len(order)).astype(np.int64)
    deleted = rank[None] < gone[:, None]
    return np.stack([deleted, ~deleted])


def area(curves: Floats) -> Floats:
    """Area under curves [..., K + 1] over equal parts of [0, 1], by the trapezoidal rule."""
    found: Floats = np.trapezoid(curves, dx=1 / (curves.shape[-1] - 1), axis=-1)
    return found


def removal_areas(
    run: Runner,
    sample: Sample,
    targets: NDArray[np.int64],
    maps: dict[str, Floats],
    steps: int,
    label: str,
) -> dict[str, Areas]:
    """Deletion and insertion: how soon the probability of a class goes, or comes, by a map.

    Petsiuk, Das and Saenko, RISE (arXiv 1806.07421): pixels are hidden, the most important first,
    and revealed likewise. A map that tells what the answer depends on has a small area under the
    deletion curve and a large one under the insertion curve.

    Args:
        run: an opened model.
        sample: the images.
        targets: a class for each image [N].
        maps: of positions, float64 [N, G, G] each, by name.
        steps: K, in which all pixels go.
        label: of the progress bar.

    Returns:
        By name of the map.
    """
    size = sample.strips.shape[1]
    ends = np.stack([np.zeros((size, size), np.bool_), np.ones((size, size), np.bool_)])

    def hidden(i: int) -> NDArray[np.bool_]:
        parts = [ends]
        for its in maps.values():
            order = np.argsort(-spread(its[i], sample.strips).ravel(), kind="stable")
            parts.append(removal(order, steps).reshape(-1, size, size))
        return np.concatenate(parts)

    found = {name: (np.zeros(len(sample)), np.zeros(len(sample))) for name in maps}
    for i, logits in enumerate(views(run, sample, hidden, label)):
        likely = probabilities(logits)[:, targets[i]]
        (whole, nothing), by_map = likely[:2], likely[2:].reshape(len(maps), 2, steps - 1)
        for (deletion, insertion), (falling, rising) in zip(found.values(), by_map, strict=True):
            deletion[i] = area(np.array([whole, *falling, nothing]))
            insertion[i] = area(np.array([nothing, *rising, whole]))
    return {name: Areas(*its) for name, its in found.items()}
