"""A classifier fitted on a frozen backbone, before all layers learn together.

Fine-tuning that starts with a random classifier destroys features that were good; one that was
fitted first keeps them (Kumar et al., arXiv 2202.10054). The features of each image are computed
once, so this costs the time of one or two evaluations.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.data.packing import draw
from pipeline.data.records import Arrays
from pipeline.networks.inference import predict
from pipeline.networks.pixels import PixelsToLogits
from pipeline.training.balance import adjusted, log_prior
from pipeline.training.params import Balance

MOST_IMAGES = 20_000
"""So many train images are enough to fit a linear layer; more are drawn from, stratified."""

_IMAGES = 500
"""Per call at most: see `pipeline.data.batches`."""

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Weights of the squared weights in the loss; the best one on val is taken."""


def fit_classifier(
    model: PixelsToLogits,
    train: Arrays,
    val: Arrays,
    *,
    flip: bool,
    name: str,
    balance: Balance = "none",
) -> float:
    """Fit the last linear layer of `model` on the features that the other layers compute.

    Minimises cross entropy and an L2 penalty over standardised features by L-BFGS, for each of
    `PENALTIES`, and keeps the weights with the best top-1 on val (then the lowest loss).

    Args:
        model: only its last layer changes.
        train: images uint8 [N, H, W, C] and labels int64 [N].
        val: likewise.
        flip: whether mirrored images are further samples.
        name: of the network, for the progress bar and errors.
        balance: of the classes; `sampling` becomes weights here, which have the same effect.

    Returns:
        Top-1 on val, a fraction.

    Raises:
        PipelineError: for a network whose last layer is not linear.
    """
    layer = classifier(model, name)
    images, labels = train
    chosen = np.arange(len(labels))
    if len(labels) > MOST_IMAGES:
        chosen = draw(labels, MOST_IMAGES, np.random.default_rng(0))
    shown = [images, images[:, :, ::-1]] if flip else [images]
    known = torch.empty(len(shown) * len(chosen), layer.in_features)
    for part, some in zip(known.chunk(len(shown)), shown, strict=True):
        _features(model, layer, some, chosen, into=part)
    targets = torch.from_numpy(np.tile(labels[chosen], len(shown)))
    unseen = torch.empty(len(val[1]), layer.in_features)
    _features(model, layer, val[0], np.arange(len(unseen)), into=unseen)
    mean, scale = known.mean(0), known.std(0).clamp_min(1e-6)
    for values in (known, unseen):
        values.sub_(mean).div_(scale)
    answers = torch.from_numpy(val[1])
    best: tuple[float, float] | None = None
    for penalty in PENALTIES:
        weight, bias = _minimise(known, targets, layer.out_features, penalty, balance)
        logits = unseen @ weight.T + bias
        score = (
            (logits.argmax(1) == answers).double().mean().item(),
            -F.cross_entropy(logits, answers).item(),
        )
        if best is None or score > best:
            best = score
            folded = weight / scale
            with torch.no_grad():
                layer.weight.copy_(folded)
                cast(torch.Tensor, layer.bias).copy_(bias - folded @ mean)
    assert best is not None
    return best[0]


def classifier(model: PixelsToLogits, name: str) -> nn.Linear:
    """The last layer of a timm network; `PipelineError` unless it is linear with a bias."""
    path = cast(dict[str, Any], model.network.pretrained_cfg).get("classifier")
    layer = model.network.get_submodule(path) if isinstance(path, str) else None
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        raise PipelineError(
            "its classifier is not one linear layer, which could be fitted by itself",
            where=name,
            fix="set `freeze: none` in its training",
        )
    return layer


def _features(
    model: PixelsToLogits,
    layer: nn.Linear,
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    into: torch.Tensor,
) -> None:
    """What `layer` reads for the images in `rows`, few of which are in memory at a time.

    Args:
        model: the network.
        layer: its last one.
        images: uint8 [N, H, W, C], may be memory-mapped.
        rows: int64 [n].
        into: float32 [n, features], on the CPU; is written.
    """
    step = model.images_per_call(_IMAGES, *images.shape[1:3])
    found: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        for start in range(0, len(rows), step):
            predict(model, images[rows[start : start + step]])
            into[start : start + step] = found.pop()
    finally:
        hook.remove()


def _minimise(
    features: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    penalty: float,
    balance: Balance = "none",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [classes, features] and bias [classes] of multinomial logistic regression."""
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    counts = labels.bincount(minlength=classes).clamp(min=1)
    prior = log_prior(counts.tolist(), balance)
    shares = len(labels) / (classes * counts) if balance == "sampling" else None
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        solver.zero_grad()
        logits = adjusted(features @ weight.T + bias, prior)
        value = F.cross_entropy(logits, labels, weight=shares)
        value = value + penalty * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    solver.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
