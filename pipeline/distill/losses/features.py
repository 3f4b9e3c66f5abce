"""Losses on features [N, F, H, W]: N samples, F channels, H x W positions.

All are zero where the student equals the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pipeline.distill.losses.numerics import average_to, unit
from pipeline.distill.losses.registry import loss


@loss("features")
def hint(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """(f_s - f_t)², a mean over all elements. FitNets, arXiv 1412.6550. Range [0, inf)."""
    return F.mse_loss(student, teacher)


@loss("features")
def cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """2 (1 - cos θ) = ‖f_s/‖f_s‖ - f_t/‖f_t‖‖² at each position, a mean over N, H and W.

    θ is the angle between the two channel vectors, or between the two embeddings for pooled
    features (H = W = 1). The direction is compared and the length ignored, as 2011.01424 proposes.
    Where one vector is 0, the value is 1 and the gradient 0. Range [0, 4].
    """
    return (unit(student, 1) - unit(teacher, 1)).square().sum(dim=1).mean()


@loss("features")
def cosine_angle(
    student: torch.Tensor, teacher: torch.Tensor, *, balance: float = 1.0
) -> torch.Tensor:
    """`hint` + λ (1 - cos θ), the second a mean over N, H and W; λ = `balance`.

    θ is that of `cosine`. Long vectors dominate the square; the angle weights all positions
    equally. Range [0, inf).
    """
    return hint(student, teacher) + balance / 2 * cosine(student, teacher)


@loss("maps")
def attention_transfer(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of L2-normalised attention maps mean_F(f²), [N, H·W].

    Zagoruyko, Komodakis 2017, arXiv 1612.03928, with the mean over N, H and W of the
    authors' code. The number of channels may differ. Range [0, 2 / (H·W)].
    """

    def attention(features: torch.Tensor) -> torch.Tensor:
        return unit(features.square().mean(dim=1).flatten(1), 1)

    return F.mse_loss(attention(student), attention(teacher))


@loss("levels")
def review(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Hierarchical context loss, a sum over levels. Chen et al. 2021, arXiv 2104.09044.

    At each level: the mean squared difference of the features, and of their averages over
    4 x 4, 2 x 2 and 1 x 1 bins where these are coarser than the features, with the weights 1, 1/2,
    1/4, 1/8 over their sum. `ReviewAdapter` fuses the student's levels before. Range [0, inf).
    """
    return torch.stack([_context(s, t) for s, t in zip(student, teacher, strict=True)]).sum()


def _context(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    value, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for bins in (4, 2, 1):
        if bins < min(student.shape[2:]):
            size = (bins, bins)
            weight /= 2
            total += weight
            value = value + weight * F.mse_loss(
                average_to(student, size), average_to(teacher, size)
            )
    return value / total
