"""A network's answers on a whole split, and what makes them the same every time."""

from __future__ import annotations

import os

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.core.patches import keep_freed_memory
from pipeline.networks.pixels import PixelsToLogits


def set_up_torch(seed: int) -> None:
    """Make torch give the same bits from the same seed on one machine, or an error.

    Also has the process keep freed memory, which training and evaluation soon need again.
    """
    keep_freed_memory()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not, without it
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    # A debugging aid that comes with it, and costs 7% of a small network's step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def training_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def evaluate(
    model: PixelsToLogits, images: NDArray[np.uint8], labels: NDArray[np.int64], batch: int = 500
) -> tuple[float, float]:
    """Mean cross entropy and top-1 (a fraction) over a split."""
    logits = predict(model, images, batch)
    target = torch.from_numpy(labels)
    top1 = (logits.argmax(1) == target).double().mean()
    return F.cross_entropy(logits, target).item(), top1.item()


@torch.no_grad()
def predict(model: PixelsToLogits, images: NDArray[np.uint8], batch: int = 500) -> torch.Tensor:
    """Logits float32 [N, C] on the CPU for uint8 [N, H, W, C], in eval mode."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = [
        model(torch.tensor(images[i : i + batch], device=device)).cpu()
        for i in range(0, len(images), batch)
    ]
    model.train(was_training)
    return torch.cat(parts)
