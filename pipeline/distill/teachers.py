"""Teachers from disk, each with its own normalisation and size, and their combined logits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pipeline.data.records import Manifest
from pipeline.networks.pixels import PixelsToLogits
from pipeline.networks.records import TEACHERS, ModelCard
from pipeline.networks.weights import check_card, load_pixels_to_logits


def load_teacher(name: str, manifest: Manifest) -> PixelsToLogits:
    """A frozen teacher in eval mode; `PipelineError` where it was made from other data."""
    model, card = load_pixels_to_logits(TEACHERS / name)
    check_card(card, manifest, TEACHERS / name)
    return model.requires_grad_(False)


def teacher_digest(name: str) -> str:
    """SHA-256 of a teacher's card, which names its weights: they decide its logits."""
    card = ModelCard.read_beside(TEACHERS / name)
    return hashlib.sha256(card.model_dump_json().encode()).hexdigest()


def combine(
    logits: torch.Tensor, labels: torch.Tensor, how: str, weights: Sequence[float]
) -> torch.Tensor:
    """Combine the logits of T teachers into one teacher's [N, C].

    Args:
        logits: [T, N, C].
        labels: int64 [N], or class probabilities [N, C].
        how: `mean`: the weighted mean, whose softmax is the weighted geometric mean of the
            teachers' probabilities. `best`: for each sample the logits of the teacher with the
            smallest cross entropy with the label.
        weights: by teacher, for the mean.
    """
    if len(logits) == 1:
        return logits[0]
    if how == "mean":
        share = torch.tensor(weights, dtype=logits.dtype, device=logits.device)
        return (logits * (share / share.sum())[:, None, None]).sum(0)
    errors = torch.stack([F.cross_entropy(one, labels, reduction="none") for one in logits])
    best: torch.Tensor = logits[errors.argmin(0), torch.arange(logits.shape[1])]
    return best
