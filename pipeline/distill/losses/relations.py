"""Losses on the relations between the samples of a batch, [N, ...]; shapes beyond N may differ.

All are zero where the student equals the teacher. They depend on the whole batch, whose parts
have fewer relations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pipeline.distill.losses.numerics import EPSILON, unit
from pipeline.distill.losses.registry import loss


@loss("relations", batchwise=True)
def similarity_preserving(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """‖G_s - G_t‖²_F / N² of the similarities G = Q Qᵀ, Q [N, F·H·W], rows of G L2-normalised.

    Tung, Mori 2019, arXiv 1907.09682. Range [0, 4 / N].
    """

    def similarities(features: torch.Tensor) -> torch.Tensor:
        flat = features.flatten(1)
        return unit(flat @ flat.T, 1)

    return F.mse_loss(similarities(student), similarities(teacher))


@loss("relations", batchwise=True)
def rkd(
    student: torch.Tensor, teacher: torch.Tensor, *, distance: float = 25.0, angle: float = 50.0
) -> torch.Tensor:
    """`distance` · Huber(ψ_D) + `angle` · Huber(ψ_A) on globally pooled features [N, F].

    ψ_D is the Euclidean distance of two samples over its mean over all pairs, ψ_A the cosine
    of the angle between the directions from one sample to two others; Huber's δ is 1. Means are
    over all N² pairs and N³ triples, including degenerate ones (which are 0), as in the authors'
    code, whose weights are the defaults. Park et al. 2019, arXiv 1904.05068. Memory grows with
    N² (N + F), time with N³ F. Range [0, inf).
    """
    differences_s, differences_t = _differences(student), _differences(teacher)
    far = F.huber_loss(_distances(differences_s), _distances(differences_t))
    turned = F.huber_loss(_cosines(differences_s), _cosines(differences_t))
    return distance * far + angle * turned


def _differences(features: torch.Tensor) -> torch.Tensor:
    """[N, N, F]: from each sample to each other.

    The Gram matrix needs less memory, but cancels for close samples far from the origin.
    """
    pooled = features.flatten(2).mean(dim=2) if features.ndim > 2 else features
    return pooled[None] - pooled[:, None]


def _distances(differences: torch.Tensor) -> torch.Tensor:
    """[N, N], divided by their mean over pairs of different samples."""
    n = len(differences)
    distances: torch.Tensor = torch.linalg.vector_norm(differences, dim=2)
    mean = distances.sum() / max(1, n * (n - 1))
    return distances / mean.clamp(min=EPSILON)


def _cosines(differences: torch.Tensor) -> torch.Tensor:
    """[N, N, N]: cosine between the directions from the first sample to the other two."""
    directions = unit(differences, 2)
    return torch.bmm(directions, directions.transpose(1, 2))
