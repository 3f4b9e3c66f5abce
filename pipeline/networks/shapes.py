"""Pruned networks: layers with fewer channels than the architecture says."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.core.errors import PipelineError
from pipeline.networks.records import Shapes


def shapes_of(model: nn.Module, original: nn.Module) -> Shapes:
    """What tells a pruned network from the one that timm builds.

    Args:
        model: the pruned network.
        original: the same network as it was built; its weights do not matter.
    """
    before = original.state_dict()
    after = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    groups = {
        path: layer.groups
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d)
        and layer.groups != _conv(original, path, "a pruned network").groups
    }
    tensors = {name: shape for name, shape in after.items() if shape != before[name].shape}
    return Shapes(tensors=tensors, groups=groups)


@torch.no_grad()
def reshape(model: nn.Module, shapes: Shapes, where: str) -> None:
    """Give the tensors of a network the `shapes` of a pruned one; those that change become zeros.

    Args:
        model: as it was built; is changed.
        shapes: what `shapes_of` gave.
        where: whose they are, for the error.

    Raises:
        PipelineError: for a tensor or a convolution that the network does not have, and for one
            that would grow.
    """
    built = model.state_dict(keep_vars=True)
    for name, shape in shapes.tensors.items():
        old = built.get(name)
        if old is None or not _shrinks(tuple(old.shape), shape):
            has = "none of this name" if old is None else list(old.shape)
            raise _other(f"`{name}` of shape {list(shape)}", str(has), where)
        path, _, leaf = name.rpartition(".")
        new = torch.zeros(shape, dtype=old.dtype)
        owner = model.get_submodule(path)
        setattr(owner, leaf, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    for path, groups in shapes.groups.items():
        _conv(model, path, where).groups = groups
    for layer in model.modules():
        _count_channels(layer)


def _count_channels(layer: nn.Module) -> None:
    """Let the numbers that a layer was built with be those of its tensors."""
    if isinstance(layer, nn.Conv2d):
        layer.out_channels = layer.weight.shape[0]
        layer.in_channels = layer.weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _BatchNorm) and layer.running_mean is not None:
        layer.num_features = len(layer.running_mean)
    elif isinstance(layer, nn.GroupNorm) and layer.affine:
        layer.num_channels = len(layer.weight)
    elif isinstance(layer, nn.LayerNorm) and layer.elementwise_affine:
        layer.normalized_shape = tuple(layer.weight.shape)
    elif hasattr(layer, "reparameterize") and hasattr(layer, "groups"):  # see `fuse_branches`
        branches = (
            its for name, its in layer.named_modules() if not name.startswith(("se", "attn"))
        )
        conv = next((one for one in branches if isinstance(one, nn.Conv2d)), None)
        if conv is None:  # no branch but the identity, of channels that stay apart
            return
        numbers = {"groups": conv.groups, "in_chs": conv.in_channels, "out_chs": conv.out_channels}
        for name in numbers.keys() & vars(layer).keys():
            setattr(layer, name, numbers[name])


def _conv(model: nn.Module, path: str, where: str) -> nn.Conv2d:
    found = dict(model.named_modules()).get(path)
    if not isinstance(found, nn.Conv2d):
        raise _other(f"a convolution `{path}`", "none of this name", where)
    return found


def _shrinks(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    return len(old) == len(new) and all(0 < n <= o for o, n in zip(old, new, strict=True))


def _other(named: str, has: str, where: str) -> PipelineError:
    return PipelineError(
        f"its `shapes` have {named}, and the architecture has {has}",
        where=where,
        fix="run `dvc repro`; a pruned network needs the timm version that it was pruned with",
    )
