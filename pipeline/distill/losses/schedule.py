"""How much a loss term counts as training goes on."""

from __future__ import annotations

from typing import Literal


def weight_factor(
    schedule: Literal["constant", "warmup", "decay"], span: float, progress: float
) -> float:
    """What a term's weight is multiplied with, in [0, 1].

    `progress` in [0, 1] is the share of all steps that are done, `span` in (0, 1] the share
    in which the factor changes: `warmup` rises from 0 at the start to 1 at `span`, `decay`
    stays 1 until `1 - span` and falls to 0 at the end, both linearly.
    """
    if schedule == "warmup":
        return min(1.0, progress / span)
    if schedule == "decay":
        return min(1.0, (1 - progress) / span)
    return 1.0
