"""Numerics of all losses: sufficient precision, unit vectors, deterministic averages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

LossFunction = Callable[..., torch.Tensor]
Operand = torch.Tensor | Sequence[torch.Tensor]

EPSILON = 1e-12
"""Vectors with at most this L2 norm count as 0."""


def in_full_precision(function: LossFunction) -> LossFunction:
    """`function` with operands and result of at least float32, also under autocast.

    Squares of features and exponentials of logits exceed the range of float16 (65504), and
    differences of nearly equal numbers lose all 8 bits of bfloat16.
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
    """Vectors along `dim` divided by their L2 norm; a norm up to EPSILON gives 0 and gradient 0.

    `F.normalize` clamps the norm instead. Such vectors then have a gradient of 1 / EPSILON, and one
    sample with features of 0 ruins the student.
    """
    norm = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors * torch.where(norm > EPSILON, 1 / norm.clamp(min=EPSILON), 0)


def centred(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Values minus their mean along `dim`; exactly 0 with gradient 0 where they are constant.

    Constant means up to rounding: the mean of equal values may differ from them in the last bit,
    and the difference would become a unit vector later.
    """
    rest = values - values.mean(dim=dim, keepdim=True)
    with torch.no_grad():
        rounding = 8 * torch.finfo(values.dtype).eps * values.abs().amax(dim=dim, keepdim=True)
        varies = rest.abs().amax(dim=dim, keepdim=True) > rounding
    return torch.where(varies, rest, 0)


def average_to(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Average [N, F, H, W] down to [N, F, *size]: the values of `F.adaptive_avg_pool2d`.

    The backward of that function is not deterministic on CUDA. Plain pooling is, for sizes that
    divide; for others this uses matrix products, as the average is linear and separable.
    """
    height, width = features.shape[2:]
    if (height, width) == size:
        return features
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(features, (height // size[0], width // size[1]))
    rows, columns = _averages(height, size[0], features), _averages(width, size[1], features)
    return rows @ features @ columns.T


def _averages(positions: int, bins: int, features: torch.Tensor) -> torch.Tensor:
    """[bins, positions]: each row is the mean over the positions that its bin overlaps."""
    position = torch.arange(positions, device=features.device)
    index = torch.arange(bins, device=features.device)[:, None]
    starts, ends = index * positions, (index + 1) * positions  # in units of 1 / bins
    inside = ((position + 1) * bins > starts) & (position * bins < ends)
    return inside.to(features.dtype) / inside.sum(dim=1, keepdim=True)
