"""Learning from a batch in which some images have no label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.core.errors import PipelineError
from pipeline.data.params import Augment, Rand
from pipeline.data.records import Arrays
from pipeline.data.unlabelled import UNKNOWN, Joined
from pipeline.data.views import Views, seed_of
from pipeline.networks.pixels import PixelsToLogits
from pipeline.training.balance import adjusted
from pipeline.training.objective import Objective, Terms
from pipeline.training.params import Consistency

STRONGLY = {"rand": Rand(operations=2, magnitude=9)}
"""How a strong view is changed, beside a teacher's own `augment`."""

STRONG = -2
"""In place of the label: another view of an image without one, see `PairedViews`."""


def on_labelled(
    loss: Callable[..., torch.Tensor], labels: torch.Tensor, share: float, *others: torch.Tensor
) -> torch.Tensor:
    """`loss(*others, labels)` of the samples that have labels.

    It counts for as many samples as a batch has on average. So the mean over the parts of a batch,
    on several devices or not, is the value for the whole batch.

    Args:
        loss: a mean over samples.
        labels: int64 [N], negative for an unknown one; or class probabilities [N, C], all 0 then.
        share: of all samples of an epoch that have labels.
        others: [N, ...], the first one with a gradient.
    """
    if share == 1:
        return loss(*others, labels)
    known = labels >= 0 if labels.ndim == 1 else labels.sum(1) > 0
    count = int(known.sum())
    if count == 0:
        return others[0].sum() * 0
    value = loss(*(other[known] for other in others), labels[known])
    return value * (count / (share * len(labels)))


def check_unmixed(augment: Augment | Literal["auto"], name: str) -> None:
    """Refuse MixUp and CutMix for the teacher `name`: mixed images have no single answer."""
    if augment != "auto" and (augment.mixup or augment.cutmix):
        raise PipelineError(
            "mixed images have no answer of their own, which images without labels need",
            where=f"teachers.zoo.{name}.views.augment",
            fix="leave out `mixup` and `cutmix`, or set `unlabelled: 0` beside it",
        )


class PairedViews(Views):
    """Views in which an image without a label comes twice: as all others, and strongly changed."""

    def __init__(
        self,
        images: NDArray[np.uint8] | Joined,
        labels: NDArray[np.int64],
        augment: Augment,
        *,
        classes: int,
        seed: int,
        size: int,
        known: Arrays,
    ) -> None:
        """Arguments as of `Views`. Strong views are changed by `STRONGLY` beside `augment`."""
        about: dict[str, Any] = {"classes": classes, "size": size, "known": known}
        super().__init__(images, labels, augment, seed=seed, **about)
        changed, other = augment.model_copy(update=STRONGLY), seed_of("strong", seed)
        self._strong = Views(images, labels, changed, seed=other, **about)

    def batch(
        self, epoch: int, samples: NDArray[np.int64], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels and labels of `Views.batch`, and those of the strong views, labelled `STRONG`."""
        pixels, labels = super().batch(epoch, samples, device)
        unknown = samples[self.labels[samples] == UNKNOWN]
        if not len(unknown):
            return pixels, labels
        strong, _ = self._strong.batch(epoch, unknown, device)
        marks = torch.full((len(unknown),), STRONG, device=device)
        return torch.cat([pixels, strong]), torch.cat([labels, marks])


class Consistent(Objective):
    """FixMatch (arXiv 2001.07685): cross entropy with labels, and with the network's own answers.

    Where the network is confident of an image without a label, its strong view is to have the same
    answer. Images with labels go through the network together with either view of the others, so
    that batch norm always sees both kinds.
    """

    log_prior: torch.Tensor | None

    def __init__(
        self,
        model: PixelsToLogits,
        label_smoothing: float,
        consistency: Consistency,
        share: float,
        log_prior: torch.Tensor | None = None,
    ) -> None:
        """The losses around `model`.

        Args:
            model: is trained.
            label_smoothing: of the labels, in [0, 1).
            consistency: weight of the loss on images without labels, and least confidence; as
                smoothed labels make answers less confident, it is reduced by `label_smoothing`.
            share: of the samples of an epoch that have labels.
            log_prior: added to the logits of images with labels, [C]; the shares of classes among
                those without are not known.
        """
        super().__init__()
        self.register_buffer("log_prior", log_prior, persistent=False)
        self.model, self.label_smoothing = model, label_smoothing
        self.weight, self.share = consistency.weight, share
        self.threshold = consistency.threshold * (1 - label_smoothing)

    def forward(
        self,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        recorded: torch.Tensor | None = None,  # noqa: ARG002 - students use it
        progress: float | torch.Tensor = 0.0,  # noqa: ARG002
    ) -> Terms:
        weak, strong = labels == UNKNOWN, labels == STRONG
        with torch.no_grad():
            answers = self.model(pixels[~strong])[weak[~strong]].float().softmax(1)
        logits, labels = self.model(pixels[~weak]), labels[~weak]

        def supervised(own: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
            own = adjusted(own, self.log_prior)
            return F.cross_entropy(own, truth, label_smoothing=self.label_smoothing)

        confidence, answer = answers.max(1)
        errors = F.cross_entropy(logits[labels == STRONG], answer, reduction="none")
        kept = errors * (confidence >= self.threshold)
        return {
            "cross_entropy": on_labelled(supervised, labels, self.share, logits),
            "consistency": self.weight * kept.sum() / (len(labels) * (1 - self.share)),
        }
