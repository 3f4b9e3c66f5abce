"""Schedules of the weight of a loss term."""

from __future__ import annotations

from typing import Literal

import torch


def weight_factor(
    schedule: Literal["constant", "warmup", "decay"], span: float, progress: float | torch.Tensor
) -> float | torch.Tensor:
    """The factor in [0, 1] of a term's weight.

    Args:
        schedule: `warmup` rises linearly from 0 at the start to 1 at `span`; `decay` is 1 until
            `1 - span` and falls linearly to 0 at the end; `constant` is 1.
        span: share of all steps in which the factor changes, in (0, 1].
        progress: share of all steps that are done, in [0, 1]; a tensor [] gives a tensor.
    """
    if schedule == "constant":
        return 1.0
    factor = (progress if schedule == "warmup" else 1 - progress) / span
    return factor.clamp(max=1) if isinstance(factor, torch.Tensor) else min(1.0, factor)
