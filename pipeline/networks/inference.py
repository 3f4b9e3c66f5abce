"""Logits and accuracy of a network on a whole split, and deterministic torch."""

from __future__ import annotations

import os

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.core.patches import keep_freed_memory
from pipeline.data.answers import top1
from pipeline.networks.pixels import PixelsToLogits

_IMAGES = 500
"""Per call at most: see `pipeline.data.batches`."""


def set_up_torch(seed: int) -> None:
    """Seed torch and allow deterministic kernels only.

    The same seed then gives the same bits on the same machine; an operator without a deterministic
    kernel is an error. Also lets the process keep freed memory: see `keep_freed_memory`.
    """
    keep_freed_memory()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # makes cuBLAS deterministic
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    # On by default with deterministic algorithms; costs 7% of a small network's training step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def training_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def evaluate(
    model: PixelsToLogits, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> tuple[float, float]:
    """Mean cross entropy and top-1 (a fraction) over images [N, H, W, C] and labels [N]."""
    logits = predict(model, images)
    loss = F.cross_entropy(logits, torch.from_numpy(labels)).item()
    return loss, top1(logits.numpy(), labels)


@torch.no_grad()
def predict(model: PixelsToLogits, images: NDArray[np.uint8]) -> torch.Tensor:
    """Logits float32 [N, classes] on the CPU for raw pixels [N, H, W, C], in eval mode.

    Takes less memory than a training step of the same network: see `pipeline.data.batches`.
    """
    step = model.images_per_call(_IMAGES, *images.shape[1:3])
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = [
        model(torch.tensor(np.ascontiguousarray(images[i : i + step]), device=device)).cpu()
        for i in range(0, len(images), step)
    ]
    model.train(was_training)
    return torch.cat(parts)
