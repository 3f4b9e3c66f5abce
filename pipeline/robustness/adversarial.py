"""White-box attacks on the float student, and the uint8 images that they make."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.networks.attacks import fgsm, pgd, random_start, to_uint8
from pipeline.networks.pixels import PixelsToLogits
from pipeline.robustness.autoattack import autoattack
from pipeline.robustness.params import Attack
from pipeline.robustness.records import FGSM, PGD


@dataclass(frozen=True)
class Adversarial:
    """Images that an attack has made of a batch."""

    images: NDArray[np.uint8]
    """[N, H, W, C]."""
    right: NDArray[np.bool_]
    """[N]: whether the attacked network answers right before rounding to uint8."""


class Attacker:
    """Attacks one network; random starts go on from batch to batch.

    Args:
        model: the float student, in eval mode.
        settings: of FGSM and PGD; the limit holds for all attacks.
        seed: of all that is random.
    """

    def __init__(self, model: PixelsToLogits, settings: Attack, seed: int) -> None:
        self._model, self._settings, self._seed = model, settings, seed
        self._device = next(model.parameters()).device
        self._generator = torch.Generator().manual_seed(seed)

    def attack(
        self, name: str, images: NDArray[np.uint8], labels: NDArray[np.int64]
    ) -> Adversarial:
        """Attack a batch.

        Args:
            name: `FGSM`, `PGD` or `AUTOATTACK`.
            images: [N, H, W, C].
            labels: [N].
        """
        pixels = torch.tensor(np.ascontiguousarray(images), device=self._device)
        answers = torch.tensor(labels, device=self._device)
        loss, epsilon = partial(self._loss, answers), self._settings.epsilon
        if name == FGSM:
            found = fgsm(loss, pixels, epsilon=epsilon)
        elif name == PGD:
            found = self._strongest(pixels, answers)
        else:
            found = autoattack(self._model, pixels, answers, epsilon=epsilon, seed=self._seed)
        return Adversarial(
            to_uint8(found, pixels, epsilon).cpu().numpy(),
            (self._margins(found, answers) < 0).cpu().numpy(),
        )

    def _loss(self, labels: Tensor, pixels: Tensor) -> Tensor:
        return F.cross_entropy(self._model(pixels), labels, reduction="sum")

    def _strongest(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """PGD from each random start; of each image the one with the largest margin, as uint8."""
        its, loss = self._settings, partial(self._loss, labels)
        best = worst = None
        for _ in range(its.restarts):
            start = random_start(pixels, its.epsilon, self._generator)
            found = pgd(
                loss, pixels, epsilon=its.epsilon, steps=its.steps, step_size=its.step_size,
                start=start,
            )  # fmt: skip
            margins = self._margins(to_uint8(found, pixels, its.epsilon), labels)
            if best is None or worst is None:
                best, worst = found, margins
            else:
                better = margins > worst
                best = torch.where(better[:, None, None, None], found, best)
                worst = torch.where(better, margins, worst)
        assert best is not None  # there is at least one start
        return best

    @torch.no_grad()
    def _margins(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """The largest logit of another class minus that of the label, [N]; above 0: fooled."""
        logits = self._model(pixels)
        labelled = F.one_hot(labels, logits.shape[1]).bool()
        own = logits.masked_fill(~labelled, -torch.inf).amax(1)
        margins: Tensor = logits.masked_fill(labelled, -torch.inf).amax(1) - own
        return margins
