"""The changes that small images and int8 need in a timm network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import nn

from pipeline.core.errors import PipelineError
from pipeline.networks.params import Network

SMALL_IMAGE = 64
"""Up to this many pixels `auto` keeps the resolution in the stem: stride 1, no pooling."""


def change_stem(model: nn.Module, network: Network, image_size: int) -> None:
    """Set the stride of the first convolution and the pooling behind it.

    Args:
        model: is changed in place.
        network: `stem_stride` and `stem_pool` say what is wanted.
        image_size: `auto` depends on it: see `SMALL_IMAGE`.

    Raises:
        PipelineError: for a network that has no such stem.
    """
    small = image_size <= SMALL_IMAGE
    stem = _stem(model)
    if network.stem_stride != "auto":
        if stem is None:
            raise PipelineError(
                "it has no convolution as its stem whose stride could be set",
                where=network.arch,
                fix="`stem_stride: auto`, or another network",
            )
        stem.stride = (network.stem_stride, network.stem_stride)
    elif small and stem is not None:
        stem.stride = (1, 1)
    has_pool = isinstance(getattr(model, "maxpool", None), nn.Module)
    if network.stem_pool is True and not has_pool:
        raise PipelineError("it has no stem pooling", where=network.arch, fix="`stem_pool: auto`")
    if has_pool and (network.stem_pool is False or (network.stem_pool == "auto" and small)):
        model.maxpool = nn.Identity()


def change_hard_swish(model: nn.Module, network: Network) -> None:
    """Replace every hard-swish by ReLU6, if `network.hard_swish` asks for it."""
    if network.hard_swish == "relu6" and not replace_hard_swish(model, nn.ReLU6):
        raise PipelineError(
            "it has no hard-swish that could be replaced",
            where=network.arch,
            fix="`hard_swish: keep`",
        )


def replace_hard_swish(model: nn.Module, kind: Callable[[], nn.Module]) -> int:
    """Replace every hard-swish by a new `kind()`; returns their number."""
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Hardswish)
    ]
    for parent, name in places:
        setattr(parent, name, kind())
    return len(places)


def _stem(model: nn.Module) -> nn.Conv2d | None:
    """The first convolution; None where it cuts the image into patches, as its stride is fixed."""
    name = cast(dict[str, Any], model.pretrained_cfg).get("first_conv")
    stem = model.get_submodule(name) if isinstance(name, str) else None
    if not isinstance(stem, nn.Conv2d) or stem.stride == stem.kernel_size:
        return None
    return stem
