"""Adapters from student to teacher features; trained with the student and not part of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.distill.losses.numerics import average_to


def match_size(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Average both [N, F, H, W] down to the smaller H and the smaller W of the two.

    The values are those of adaptive average pooling, by kernels that are deterministic.
    """
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return average_to(student, size), average_to(teacher, size)


class Adapter(nn.Module):
    """1x1 convolution and batch norm from student to teacher channels (arXiv 1412.6550)."""

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(teacher_channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        adapted: torch.Tensor = self.norm(self.project(features))
        return adapted


class ReviewAdapter(nn.Module):
    """Attention-based fusion of the student's levels. Chen et al. 2021, arXiv 2104.09044.

    `forward` takes the student's features [N, F, H, W], shallow to deep. It returns as many, each
    fused with all deeper ones, with the teacher's F, H and W.

    Args:
        student_shapes: [1, F, H, W] by level, shallow to deep.
        teacher_shapes: the same for the teacher.
    """

    def __init__(
        self, student_shapes: Sequence[torch.Size], teacher_shapes: Sequence[torch.Size]
    ) -> None:
        super().__init__()
        middle = min(512, student_shapes[-1][1])
        self.fusions = nn.ModuleList(
            _Fusion(student[1], middle, teacher, deepest=level == len(student_shapes) - 1)
            for level, (student, teacher) in enumerate(
                zip(student_shapes, teacher_shapes, strict=True)
            )
        )

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        fused: list[torch.Tensor] = []
        deeper: torch.Tensor | None = None
        for fusion, level in zip(reversed(self.fusions), reversed(features), strict=True):
            adapted, deeper = fusion(level, deeper)
            fused.insert(0, adapted)
        return fused


class _Fusion(nn.Module):
    """One level: a sum of its features and the deeper residual, weighted at each position."""

    def __init__(
        self, student_channels: int, middle: int, teacher: torch.Size, *, deepest: bool
    ) -> None:
        super().__init__()
        self.size = (teacher[2], teacher[3])
        enter = nn.Conv2d(student_channels, middle, 1, bias=False)
        leave = nn.Conv2d(middle, teacher[1], 3, padding=1, bias=False)
        for convolution in (enter, leave):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.enter = nn.Sequential(enter, nn.BatchNorm2d(middle))
        self.attention = None if deepest else nn.Conv2d(2 * middle, 2, 1)
        self.leave = nn.Sequential(leave, nn.BatchNorm2d(teacher[1]))

    def forward(
        self, features: torch.Tensor, deeper: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features with the teacher's shape, and the residual for the next shallower level."""
        own = self.enter(features)
        if self.attention is not None and deeper is not None:
            deeper = _resize(deeper, (own.shape[2], own.shape[3]))
            weight = torch.sigmoid(self.attention(torch.cat([own, deeper], dim=1)))
            own = own * weight[:, :1] + deeper * weight[:, 1:]
        residual = _resize(own, self.size)
        return self.leave(residual), residual


def _resize(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Nearest neighbour: unlike the linear modes, its backward is deterministic on CUDA, too."""
    if features.shape[2:] == size:
        return features
    return F.interpolate(features, size, mode="nearest")
