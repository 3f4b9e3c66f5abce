"""What compensates for classes of different size: balanced sampling, or logit adjustment."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.training.params import Balance


def log_prior(counts: Iterable[int], balance: Balance) -> torch.Tensor | None:
    """What is added to the logits in the cross entropy: log of each class's share of train, [C].

    Logit adjustment with tau = 1 (Menon et al., arXiv 2007.07314). The network learns the logits
    without the share, so its answers favour no class for being frequent.

    Args:
        counts: train images by class.
        balance: None is returned unless it is `logit_adjusted`.
    """
    if balance != "logit_adjusted":
        return None
    images = torch.tensor(list(counts), dtype=torch.float64).clamp(min=1)
    return (images / images.sum()).log().float()


def adjusted(logits: torch.Tensor, prior: torch.Tensor | None) -> torch.Tensor:
    """Logits [N, C] as the cross entropy takes them; `prior` is that of `log_prior`."""
    return logits if prior is None else logits + prior


def epoch_order(
    labels: NDArray[np.int64], balance: Balance, random: np.random.Generator
) -> NDArray[np.int64]:
    """The samples of an epoch in their order, indices [N] into `labels` [N].

    Samples without a label stand at equal distances, so that every batch has its share of them. Of
    the others, with `sampling`, every part of the order that begins at its start has each class
    equally often, give or take one, and each sample of a class equally often, give or take one. A
    sample that comes several times has the same view, and the same recorded teacher logits, each
    time.

    Args:
        labels: of the train split; negative ones are unknown.
        balance: anything but `sampling` gives a permutation.
        random: decides the order.
    """
    known, unknown = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    parts = known[_drawn(labels[known], balance, random)], random.permutation(unknown)
    places = [(np.arange(len(part)) + 0.5) / max(len(part), 1) for part in parts]
    return np.concatenate(parts)[np.concatenate(places).argsort(kind="stable")]


def _drawn(
    labels: NDArray[np.int64], balance: Balance, random: np.random.Generator
) -> NDArray[np.int64]:
    samples = len(labels)
    if balance != "sampling":
        return random.permutation(samples)
    classes = np.unique(labels)
    rounds = -(-samples // len(classes))
    drawn = np.empty((rounds, len(classes)), np.int64)
    for column, name in enumerate(classes):
        own = np.flatnonzero(labels == name)
        times = -(-rounds // len(own))
        drawn[:, column] = np.concatenate([random.permutation(own) for _ in range(times)])[:rounds]
    return random.permuted(drawn, axis=1).ravel()[:samples]
