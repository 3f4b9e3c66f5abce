"""Which couplings of a network can be pruned, found by pruning a copy of it with random weights.

A library that follows a graph can be wrong about it, and a network may count its channels in
numbers of its own, as attention does with its heads. So each coupling is tried: without some of
its units the network must give the same logits as with these units set to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from pipeline.core.errors import PipelineError
from pipeline.prune.coupling import Coupling, Units, couplings, remove, silence

_CLOSE = 1e-6
"""Relative, in float64."""


def prunable(network: nn.Module, image: torch.Tensor, arch: str) -> tuple[Coupling, ...]:
    """The couplings of `network` from which units can be removed.

    Args:
        network: is not changed; its weights do not matter.
        image: float [1, C, H, W] of its input's shape; the values do not matter.
        arch: its timm name, for the error.

    Raises:
        PipelineError: where no channel of it can be removed, or the library is missing.
    """
    subject = _randomised(network)
    image = torch.randn(
        image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    try:
        found = tuple(one for one in couplings(subject, image) if one.units > 1)
        if found and _agrees(subject, image, found):
            return found
        found = tuple(one for one in found if _agrees(subject, image, [one]))
    except PipelineError:
        raise
    except Exception as error:  # the library meets what it cannot follow with any type
        raise _unfit(arch, f"{type(error).__name__}: {error}".partition("\n")[0]) from None
    if not found or not _agrees(subject, image, found):
        raise _unfit(arch, "without some channels it does not compute what is left of it")
    return found


def _unfit(arch: str, why: str) -> PipelineError:
    return PipelineError(
        f"no channel of this network can be pruned ({why})",
        where=f"{arch} in prune.enabled",
        fix="leave it out of `prune.enabled`, or choose a convolutional network",
    )


def _agrees(network: nn.Module, image: torch.Tensor, tried: Sequence[Coupling]) -> bool:
    """Whether a network without half of the tried units is the same one with them at zero."""
    units: Units = {one.root: range(0, one.units - 1, 2) for one in tried}
    without, silent = deepcopy(network), deepcopy(network)
    try:
        remove(without, image, tried, units)
        silence(silent, image, tried, units)
        with torch.no_grad(), _NormsApart():
            own, expected = without(image), silent(image)
    except Exception:  # a shape that does not fit is an error of any type: it cannot be pruned
        return False
    if own.shape != expected.shape or not own.isfinite().all():
        return False
    return bool((own - expected).abs().max() <= _CLOSE * expected.abs().max())


def _randomised(network: nn.Module) -> nn.Module:
    """A copy in float64 whose channels all matter: new networks have scales of zero or 1e-6."""
    copy, random = deepcopy(network).double().eval(), torch.Generator().manual_seed(0)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.data.copy_(torch.rand(tensor.shape, generator=random).double() * (high - low) + low)

    for module in copy.modules():
        for tensor in module.parameters(recurse=False):
            if tensor.dim() < 2 or min(tensor.shape[0], tensor[0].numel()) == 1:
                uniform(tensor, 0.5, 1.5)  # of one value per channel: a scale, or a bias
            else:
                uniform(tensor, -1, 1)
                tensor.data /= tensor[0].numel() ** 0.5
        if isinstance(module, _BatchNorm) and module.running_var is not None:
            uniform(module.running_var, 0.5, 1.5)
    return copy


class _NormsApart(TorchFunctionMode):
    """Within this, norms over channels scale and shift each channel for itself.

    A layer norm's mean over the channels that are left is rightly another one than with zeros.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.layer_norm:
            return _affine(*args[:1], *args[2:4], **kwargs, axis=-1)
        if func is F.group_norm:
            return _affine(*args[:1], *args[2:4], **kwargs, axis=1)
        return func(*args, **kwargs)


def _affine(
    input: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    axis: int,
    **_: object,
) -> torch.Tensor:
    shape = [1] * input.dim()
    shape[axis] = -1
    scaled = input if weight is None else input * weight.reshape(shape)
    return scaled if bias is None else scaled + bias.reshape(shape)
