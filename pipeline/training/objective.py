"""What the training loop trains: a loss around a model, and the run's settings and outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.networks.pixels import PixelsToLogits
from pipeline.training.params import Recipe
from pipeline.training.rounding import Int8Phase

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
        progress: float | torch.Tensor,
    ) -> Terms:
        """The weighted terms of the loss on one batch.

        Args:
            pixels: uint8 [N, H, W, C].
            labels: int64 [N], or class probabilities float32 [N, classes].
            recorded: teacher logits float32 [teachers, N, classes], if there are any.
            progress: the share of all steps that are done, in [0, 1]; a tensor [] in a CUDA graph.
        """
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """The network's parameters that its authors do not decay, by name; timm asks for this."""
        names: Callable[[], Iterable[str]] = getattr(self.model.network, "no_weight_decay", set)
        return {f"model.network.{name}" for name in names()}


class Recording(Protocol):
    """Teacher logits by epoch and sample."""

    epochs: int
    """That were recorded; a longer training sees their views again."""

    def batch(self, epoch: int, samples: NDArray[np.int64], device: torch.device) -> torch.Tensor:
        """float32 [teachers, samples, classes] for the views of `samples` in `epoch`."""


@dataclass(frozen=True)
class Fitted:
    """The epoch that is kept, whose state has been loaded into the model: see `fit`."""

    best_epoch: int
    """From 1; 0 for a network that was not trained, or whose fitted classifier stayed the best."""
    val_top1: float
    """In float."""


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
    int8: Int8Phase | None = None
    curves: bool = True
    """Whether the curves are written to metrics/."""
    keep_last: bool = False
    """Whether the last epoch is kept, where val does not show what the run is for."""
