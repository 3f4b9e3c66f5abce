"""What the losses share: a precision that is enough, directions, and averages over positions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

LossFunction = Callable[..., torch.Tensor]
Operand = torch.Tensor | Sequence[torch.Tensor]

EPSILON = 1e-12
"""Vectors up to this L2 norm have no direction."""


def in_full_precision(function: LossFunction) -> LossFunction:
    """`function` on operands of at least float32 whatever autocast says; its result, too.

    Squares of features and exponentials of logits leave float16's range (65504), and
    differences of near equals lose all of bfloat16's 8 bits.
    """

    @functools.wraps(function)
    def compute(student: Operand, *others: Operand, **options: bool | float) -> torch.Tensor:
        device = (student if isinstance(student, torch.Tensor) else student[0]).device
        with torch.autocast(device.type, enabled=False):
            return function(_widen(student), *map(_widen, others), **options)

    return compute


def _widen(operand: Operand) -> Operand:
    if isinstance(operand, torch.Tensor):
        return _at_least_float32(operand)
    return [_at_least_float32(level) for level in operand]


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def unit(vectors: torch.Tensor, dim: int) -> torch.Tensor:
    """Vectors along `dim` over their L2 norm; a vector of no direction gives 0, and gradient 0.

    Clamping the norm instead, as `F.normalize` does, would give such vectors a gradient of
    1 / EPSILON, and one dead sample would throw the student away.
    """
    norm = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors * torch.where(norm > EPSILON, 1 / norm.clamp(min=EPSILON), 0)


def centred(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Values less their mean along `dim`; where they are constant, exactly 0 and gradient 0.

    Constant up to rounding, that is: what the mean of equal values leaves is noise, and would
    pass for a direction.
    """
    rest = values - values.mean(dim=dim, keepdim=True)
    with torch.no_grad():
        rounding = 8 * torch.finfo(values.dtype).eps * values.abs().amax(dim=dim, keepdim=True)
        varies = rest.abs().amax(dim=dim, keepdim=True) > rounding
    return torch.where(varies, rest, 0)


def average_to(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Average [N, F, H, W] down to [N, F, *size]: the values of `F.adaptive_avg_pool2d`.

    The backward of that function is not deterministic on CUDA, and an error where only
    deterministic kernels are allowed. Plain pooling (sizes that divide) and matrix products
    (others: the average is linear, and rows and columns separate) are deterministic.
    """
    height, width = features.shape[2:]
    if (height, width) == size:
        return features
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(features, (height // size[0], width // size[1]))
    rows, columns = _averages(height, size[0], features), _averages(width, size[1], features)
    return rows @ features @ columns.T


def _averages(positions: int, bins: int, features: torch.Tensor) -> torch.Tensor:
    """[bins, positions]: each row takes the mean over the positions that its bin touches."""
    position = torch.arange(positions, device=features.device)
    index = torch.arange(bins, device=features.device)[:, None]
    starts, ends = index * positions, (index + 1) * positions  # in units of 1 / bins
    inside = ((position + 1) * bins > starts) & (position * bins < ends)
    return inside.to(features.dtype) / inside.sum(dim=1, keepdim=True)
