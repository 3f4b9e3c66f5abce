"""Batch norms and input normalisations folded into the convolutions next to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pipeline.core.errors import PipelineError
from pipeline.networks.records import Normalisation


@torch.no_grad()
def fold_batch_norm(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """A copy of `model` in eval mode with fewer operators and, up to rounding, the same outputs.

    A batch norm is folded into a convolution if it alone reads the convolution's output and both
    are used once per forward pass. litert-torch traces every operator in Python several times;
    without the batch norms it takes two thirds of the time. torch's ONNX exporter folds by itself.
    Without a batch norm in front of it, it exports the flattening of a pooled channels-last tensor
    as a Gather with a computed index, so do not fold for it.

    Args:
        model: is not changed.
        example: one input; a forward pass with it finds out which operator reads which output.
    """
    folded = deepcopy(model).eval()
    with _Watching() as watched:
        folded(example)
    for conv, norm in watched.pairs(folded):
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
            norm.weight, norm.bias,
        )  # fmt: skip
        _replace(folded, norm)
    return folded


@torch.no_grad()
def fold_normalisation(model: nn.Module, old: Normalisation, new: Normalisation) -> None:
    """Let `model` take images normalised by `new` that was trained on images normalised by `old`.

    Both are affine in the pixel x: with s = std_new / std_old, x_old = s x_new + (mean_new -
    mean_old) / std_old. So the first convolution's weights are multiplied by s, and the constant
    joins its bias, or the mean of the batch norm behind it. This is exact but for the border, where
    the padding's zeros now stand for `new`'s mean pixel instead of `old`'s.

    Args:
        model: is changed; a timm network.
        old: the normalisation that its weights need.
        new: the normalisation of the images that it will get.

    Raises:
        PipelineError: for a network whose first layer cannot take the constant.
    """
    if old == new:
        return
    name = cast(dict[str, Any], model.pretrained_cfg).get("first_conv")
    stem = model.get_submodule(name) if isinstance(name, str) else None
    if not isinstance(stem, nn.Conv2d):
        raise PipelineError(
            "it has no convolution as its first layer, into which the normalisation of pretrained "
            "weights could be folded",
            where=str(cast(dict[str, Any], model.pretrained_cfg).get("architecture")),
            fix="choose another student, or `weights: none`",
        )
    factors = torch.tensor(new.std).div(torch.tensor(old.std))
    offsets = (torch.tensor(new.mean) - torch.tensor(old.mean)).div(torch.tensor(old.std))
    shift = (stem.weight.sum((2, 3)) * offsets).sum(1)
    if stem.bias is not None:
        stem.bias += shift
    else:
        modules = list(model.modules())
        after = modules[modules.index(stem) + 1 :]
        norm = next((module for module in after if isinstance(module, _BatchNorm)), None)
        if norm is None or norm.running_mean is None or norm.num_features != stem.out_channels:
            raise PipelineError(
                "its first convolution has no bias and no batch norm behind it, which could take "
                "the normalisation of pretrained weights",
                where=str(name),
                fix="choose another student, or `weights: none`",
            )
        norm.running_mean -= shift
    stem.weight *= factors[:, None, None]


class _Watching(TorchFunctionMode):
    """Records which functions read the output of each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: Counter[int] = Counter()
        """Number of calls of each convolution and batch norm, by the id of its weight."""
        self._given: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """By id of a convolution's output: the output, which must stay alive, and the weight."""
        self._readers: dict[int, list[torch.Tensor | None]] = {}
        """By id of a convolution's weight: the weights of its readers, None for no batch norm."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        norm = None
        if func is F.batch_norm:
            norm = args[3] if len(args) > 3 else kwargs.get("weight")
        if norm is not None:
            self._calls[id(norm)] += 1
        result = func(*args, **kwargs)
        if any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(result)):  # not `x.dim()`
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self._given:
                    _, weight = self._given[id(leaf)]
                    self._readers[id(weight)].append(norm)
        if func is torch.conv2d:
            weight = args[1]
            self._calls[id(weight)] += 1
            self._given[id(result)] = result, weight
            self._readers.setdefault(id(weight), [])
        return result

    def pairs(self, model: nn.Module) -> list[tuple[nn.Conv2d, _BatchNorm]]:
        """The convolutions of `model` that can be folded, each with its batch norm."""
        norms = {
            id(norm.weight): norm
            for norm in model.modules()
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None
        }
        return [
            (module, norms[id(readers[0])])
            for module in model.modules()
            if isinstance(module, nn.Conv2d)
            and len(readers := self._readers.get(id(module.weight), [])) == 1
            and id(readers[0]) in norms
            and self._calls[id(module.weight)] == self._calls[id(readers[0])] == 1
        ]


def _replace(model: nn.Module, norm: _BatchNorm) -> None:
    """Remove a batch norm, but keep the activation inside timm's BatchNormAct2d."""
    after = nn.Sequential(*(getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)))
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is norm:
                setattr(parent, name, after)
