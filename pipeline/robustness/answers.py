"""Every network's answers to changed test images, batch by batch, and the figures of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError
from pipeline.core.progress import track
from pipeline.data.answers import correct
from pipeline.data.batches import images_per_call
from pipeline.export.evaluate import Runner
from pipeline.robustness.adversarial import Attacker
from pipeline.robustness.corruptions import CORRUPTIONS, corrupt
from pipeline.robustness.records import PGD, Limited, Measured, packed
from pipeline.robustness.statistics import mean_accuracy, mean_corruption_error, resample

_IMAGES = 100
"""Per batch at most: see `pipeline.data.batches`. Attacks hold the tensors of a training step."""

Pixels = NDArray[np.uint8]
Bits = NDArray[np.bool_]
Change = Callable[[Pixels, NDArray[np.int64], NDArray[np.int64]], Pixels]
"""Makes images [n, H, W, C] of images, their labels [n] and their numbers in the split [n]."""


@dataclass(frozen=True)
class Drawn:
    """The images of the split that are used."""

    numbers: NDArray[np.int64]
    """[N], of the images in the split."""
    pixels: Pixels
    """The whole split, [M, H, W, C]; it may be memory-mapped."""
    labels: NDArray[np.int64]
    """[M]."""


@dataclass(frozen=True)
class Answers:
    """Which answers of K networks are right. All arrays have the networks' order."""

    clean: Bits
    """[K, N]."""
    accuracy: NDArray[np.float64]
    """[K, C, S], under each of C corruptions at S strengths."""
    wrong: NDArray[np.uint8]
    """[K, C, N]: at how many strengths an image is answered wrongly."""
    attacked: dict[str, Bits]
    """[K, N], by attack."""
    unrounded: dict[str, float]
    """Accuracy of the attacked network before rounding to uint8, by attack."""


def ask(
    networks: dict[str, Runner],
    drawn: Drawn,
    strengths: tuple[int, ...],
    attacks: Iterable[str],
    attacker: Attacker,
    seed: int,
) -> Answers:
    """Show all networks all images: as they are, corrupted, and attacked.

    Args:
        networks: functions of raw pixels to logits, by name.
        drawn: the images.
        strengths: of each corruption.
        attacks: by name.
        attacker: of the network that is attacked.
        seed: of the corruptions.

    Raises:
        PipelineError: for logits that are not finite.
    """
    shape = (len(networks), len(CORRUPTIONS), len(drawn.numbers))
    wrong = np.zeros(shape, np.uint8)
    accuracy = np.zeros((*shape[:2], len(strengths)))
    clean = _right(networks, drawn, _unchanged, "clean")
    for c, name in enumerate(CORRUPTIONS):
        for s, strength in enumerate(strengths):
            change = partial(_corrupted, name, strength, seed)
            right = _right(networks, drawn, change, f"{name} {strength}")
            accuracy[:, c, s] = right.mean(axis=1)
            wrong[:, c] += ~right
    attacked, unrounded = {}, {}
    for name in attacks:
        made = _Attacked(attacker, name)
        attacked[name] = _right(networks, drawn, made, name)
        unrounded[name] = float(np.concatenate(made.right).mean())
    return Answers(clean, accuracy, wrong, attacked, unrounded)


def figures(
    answers: Answers, names: list[str], strengths: tuple[int, ...], references: dict[str, str]
) -> dict[str, Measured]:
    """What is recorded of each network.

    Args:
        answers: of all networks.
        names: of the networks, in order.
        strengths: of each corruption.
        references: of the mean corruption error: name in the record by name of the network.
    """
    sums = resample(answers.wrong)
    settings = len(CORRUPTIONS) * len(strengths)
    found = {}
    for k, name in enumerate(names):
        own = sums[:, k]
        mce = {
            shown: mean_corruption_error(own, sums[:, names.index(reference)])
            for reference, shown in references.items()
        }
        accuracy = zip(CORRUPTIONS, answers.accuracy[k].tolist(), strict=True)
        total = settings * answers.clean.shape[1]
        found[name] = Measured(
            clean=float(answers.clean[k].mean()),
            corrupted={corruption: tuple(by_strength) for corruption, by_strength in accuracy},
            mean_corrupted=Limited.of(mean_accuracy(own, total)),
            mce={shown: its and Limited.of(its) for shown, its in mce.items()},
            attacked={attack: float(right[k].mean()) for attack, right in answers.attacked.items()},
            right=packed(settings - answers.wrong[k].sum(axis=0, dtype=np.int64)),
            withstood=packed(answers.attacked[PGD][k]),
        )
    return found


def _right(networks: dict[str, Runner], drawn: Drawn, change: Change, label: str) -> Bits:
    """[K, N]: which answers to changed images are right."""
    numbers = drawn.numbers
    right = np.zeros((len(networks), len(numbers)), np.bool_)
    step = images_per_call(_IMAGES, *drawn.pixels.shape[1:3])
    starts = range(0, len(numbers), step)
    for start in track(starts, label, total=len(numbers), step=step):
        chosen = numbers[start : start + step]
        labels = drawn.labels[chosen]
        images = change(np.ascontiguousarray(drawn.pixels[chosen]), labels, chosen)
        for k, (name, runner) in enumerate(networks.items()):
            logits = runner(images)
            if not np.isfinite(logits).all():
                raise PipelineError(
                    f"some logits of {label} images are not finite numbers",
                    where=f"robustness of {name}",
                    fix="find the layer with `python -m pipeline inspect`, or leave it out",
                )
            right[k, start : start + step] = correct(logits, labels)
    return right


def _unchanged(images: Pixels, *_: object) -> Pixels:
    return images


def _corrupted(
    name: str,
    strength: int,
    seed: int,
    images: Pixels,
    _: NDArray[np.int64],
    numbers: NDArray[np.int64],
) -> Pixels:
    return corrupt(name, images, strength, seed=seed, numbers=numbers)


@dataclass(frozen=True)
class _Attacked:
    """A `Change` that keeps which answers were right before rounding."""

    attacker: Attacker
    name: str
    right: list[Bits] = field(default_factory=list)

    def __call__(self, images: Pixels, labels: NDArray[np.int64], _: object) -> Pixels:
        made = self.attacker.attack(self.name, images, labels)
        self.right.append(made.right)
        return made.images
