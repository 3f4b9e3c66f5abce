"""What the training loop trains: a loss around a model, and the run's settings and outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.networks.pixels import PixelsToLogits
from pipeline.training.params import Recipe

Terms = dict[str, torch.Tensor]
"""The weighted terms of an objective by name; their sum is the loss."""


class DivergedError(PipelineError):
    """A loss that became infinite or NaN."""


class Objective(nn.Module):
    """A loss, and the `model` that it trains. Its other parameters are trained and not kept."""

    model: PixelsToLogits

    def forward(
        self,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        recorded: torch.Tensor | None,
        progress: float,
    ) -> Terms:
        """The weighted terms of the loss on one batch.

        Args:
            pixels: uint8 [N, H, W, C].
            labels: int64 [N], or class probabilities float32 [N, classes].
            recorded: teacher logits float32 [teachers, N, classes], if there are any.
            progress: the share of all steps that are done, in [0, 1].
        """
        raise NotImplementedError


class Recording(Protocol):
    """Teacher logits by epoch and sample."""

    epochs: int
    """That were recorded; a longer training sees their views again."""

    def batch(self, epoch: int, samples: NDArray[np.int64], device: torch.device) -> torch.Tensor:
        """float32 [teachers, samples, classes] for the views of `samples` in `epoch`."""


@dataclass(frozen=True)
class Fitted:
    """The best epoch on val, whose state has been loaded into the model."""

    best_epoch: int
    """From 1; 0 for a network that was not trained, or whose fitted classifier stayed the best."""
    val_top1: float


@dataclass(frozen=True)
class Run:
    """One training run: its recipe, and where its checkpoint and curves go."""

    name: str
    key: str
    """Of the checkpoint: see `run_key`."""
    seed: int
    training: Recipe
    epochs: int
    checkpoint_seconds: float
    """Time between checkpoints within an epoch; there is one after every epoch as well."""
    curves: bool = True
    """Whether the curves are written to metrics/."""
