"""What a network is feared to lose with each unit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.networks.layers import conv_and_linear
from pipeline.prune.choice import Scores
from pipeline.prune.coupling import Coupling
from pipeline.training.objective import Objective

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Pixels, labels and recorded logits, as an `Objective` takes them."""


def fisher(objective: Objective, cut: Sequence[Coupling], batches: Iterable[Batch]) -> Scores:
    """The mean square of the loss's derivative by a gate on each unit, over single images.

    A gate multiplies the unit's channels wherever a convolution or linear layer reads them; at 1 it
    changes nothing, at 0 the unit is gone. Its derivative for image n is the sum over these
    channels of a dL_n/da, summed over all positions. Its mean square is the diagonal of the
    empirical Fisher information, and half of it approximates by how much the mean loss rises
    without the unit (Theis et al., arXiv 1801.05787; for coupled channels Liu et al., arXiv
    2108.00708). The network runs in eval mode, so that images do not depend on each other.

    Args:
        objective: whose loss counts; its model is not changed.
        cut: the couplings of the model's network.
        batches: what the loss is computed for.
    """
    network = objective.model.network
    layers = conv_and_linear(network)
    wanted = {reader.layer for one in cut for reader in one.readers}
    seen: dict[str, list[torch.Tensor]] = {}
    sums = {one.root: np.zeros(one.units) for one in cut}
    images, training = 0, objective.training

    def note(path: str, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        x = inputs[0].view_as(inputs[0])  # its gradient comes through this layer alone
        axis = 1 if isinstance(layer, nn.Conv2d) else x.dim() - 1
        keep = partial(_gather, seen.setdefault(path, []), x.detach(), axis)
        x.register_hook(keep)  # type: ignore[no-untyped-call]
        return (x,)

    objective.eval()
    with ExitStack() as hooks:
        for path in wanted:
            hooks.callback(layers[path].register_forward_pre_hook(partial(note, path)).remove)
        for pixels, labels, recorded in batches:
            seen.clear()
            loss = torch.stack(list(objective(pixels, labels, recorded, 1.0).values())).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            objective.zero_grad(set_to_none=True)
            images += len(pixels)
            gates = {path: torch.stack(its).sum(0) * len(pixels) for path, its in seen.items()}
            for one in cut:
                sums[one.root] += _squares(one, gates, len(pixels))
    objective.train(training)
    return {root: total / images for root, total in sums.items()}


def _gather(seen: list[torch.Tensor], x: torch.Tensor, axis: int, gradient: torch.Tensor) -> None:
    """Add the sum of x times its gradient for each image and channel, [N, C]."""
    others = [i for i in range(1, x.dim()) if i != axis]
    product = x * gradient
    seen.append(product.sum(others) if others else product)


def _squares(one: Coupling, gates: dict[str, torch.Tensor], images: int) -> NDArray[np.float64]:
    """The sum over images of the squared derivatives of a coupling's gates, [units]."""
    total = torch.zeros(images, one.units, dtype=torch.float64)
    for reader in one.readers:
        found = gates[reader.layer][:, list(reader.channels)].double().cpu()
        total.index_add_(1, torch.tensor(reader.units), found)
    squares: NDArray[np.float64] = total.square().sum(0).numpy()
    return squares


def magnitude(network: nn.Module, cut: Sequence[Coupling]) -> Scores:
    """The sum of squares of the weights that read each unit, over their mean of the coupling.

    Args:
        network: whose weights count.
        cut: its couplings.
    """
    layers = conv_and_linear(network)
    found = {}
    for one in cut:
        total = torch.zeros(one.units, dtype=torch.float64)
        for reader in one.readers:
            weight = layers[reader.layer].weight.detach().double().cpu()
            groups = getattr(layers[reader.layer], "groups", 1)
            by_input = weight.square().reshape(groups, -1, *weight.shape[1:])
            energy = by_input.sum([1, *range(3, by_input.dim())]).flatten()
            total.index_add_(0, torch.tensor(reader.units), energy[list(reader.channels)])
        found[one.root] = (total / total.mean().clamp(min=1e-12)).numpy()
    return found
